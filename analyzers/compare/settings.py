"""What is compared with what: the settings of a sweep and of each of its trials, what work costs, and who listens to a trial.

Everything else in this package imports this file; it imports none of it but the tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Integral

from analyzers.checks import positive, texts, whole
from analyzers.compare.tasks import CLASSIFICATION, REGRESSION, TASKS, Task, open_task, task_name
from analyzers.compare.variants import ABLATIONS, PLANNED, Variant, variants
from analyzers.methods import MAIN_METHODS, METHODS, Method, method
from analyzers.methods.own import own_method
from analyzers.methods.peft_configs import plain_config
from analyzers.plans import RankPlan
from loraxs_core.errors import SettingsError
from loraxs_core.names import short_name
from loraxs_core.progress import Cancellation, Cancelled

WARMUP = 0.06  # share of the steps; the LoRA-XS paper's GLUE setting, as are AdamW, the linear schedule and no dropout
FORWARD, BACKWARD = 1.0, 1.5  # relative time of the two halves of a step, for the progress bar alone
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # by the names of their packages, which are Trainer's too
MOST_TRIALS = 10_000  # of a sweep: more is a slip of the hand, and nothing that lists runs may be held up by it
MOST_SEED = 2**32 - 1  # what NumPy's generators take


@dataclass(frozen=True)
class Listener:
    """Who is told what a trial does, and may stop it.

    report: takes the curve's points, ``{"kind": "train" | "eval", "step", "epoch", "value"}``. advance: takes finished cost (1
    is one batch read forward) and what is being done. cancelled: whether to stop. began: takes the step that training begins at,
    0 unless it goes on from a checkpoint. note: takes a line for the log.
    """

    report: Callable[[dict], None] = lambda line: None
    advance: Callable[[float, str], None] = lambda cost, message: None
    cancelled: Cancelled = lambda: False
    began: Callable[[int], None] = lambda step: None
    note: Callable[[str], None] = lambda text: None

    def stop_if_asked(self) -> None:
        """Raises Cancellation when somebody asked for it."""
        if self.cancelled():
            raise Cancellation


@dataclass(frozen=True)
class TrialSettings:
    """Everything that decides a trial, besides the model and the task.

    rank: of every module; plan: a rank each instead (`RankPlan.to_dict`), called plan_label. options: further arguments of the method's
    configuration, called note. config: the whole configuration where the method is the user's own. learning_rate: of the adapter (of
    all weights for ``full``); head_learning_rate: of the head. batch: examples a step. sequence: tokens a text at most.
    evaluations: points of the validation curve; validation_examples, test_examples: at most so many, None for all.
    """

    method: str
    seed: int
    learning_rate: float
    head_learning_rate: float
    steps: int
    batch: int
    sequence: int
    rank: int | None = None
    plan: dict | None = field(default=None, compare=False)
    plan_label: str = ""
    options: dict = field(default_factory=dict, compare=False)
    note: str = ""
    config: dict | None = field(default=None, compare=False)
    targets: str | tuple[str, ...] = "paper"
    evaluations: int = 5
    validation_examples: int | None = None
    test_examples: int | None = None
    device: str = "auto"
    report_to: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Its folder's name, unique within a sweep."""
        parts = [_file_name(self.method)]
        if self.plan_label:
            parts.append(_file_name(self.plan_label))
        elif self.rank is not None:
            parts += [*(f"{name}-{value}" for name, value in self.options.items()), f"r{self.rank}"]
        return "_".join([*parts, f"lr{self.learning_rate:g}", f"seed{self.seed}"])

    @property
    def variant(self) -> str:
        """What rows of different seeds have in common: method, ranks, and what an ablation changes."""
        what = self.plan_label or self.note
        return f"{self.kind.label}, {what}" if what else self.kind.label

    @property
    def kind(self) -> Method:
        return method(self.method) if self.config is None else own_method(self.method, self.config, METHODS)

    @property
    def about(self) -> dict:
        """What its record, its failure and its points on the curves all say of it."""
        return {
            "trial": self.id,
            "method": self.method,
            "label": self.variant,
            "seed": self.seed,
            "learning_rate": self.learning_rate,
        }

    @property
    def evaluation_batch(self) -> int:
        return 2 * self.batch

    @property
    def training_cost(self) -> float:
        return self.steps * (FORWARD if self.method == "head-only" else FORWARD + BACKWARD)

    def cost(self, validation: int, test: int) -> float:
        """All its work in batches read forward. validation, test: examples there are of each."""
        evaluated = min(validation, self.validation_examples or validation)
        tested = min(test, self.test_examples or test)
        batch = self.evaluation_batch
        return self.training_cost + FORWARD * (self.evaluations * -(-evaluated // batch) + -(-tested // batch))

    def rank_plan(self) -> RankPlan:
        """`plan` as a `RankPlan`. Raises PlanError."""
        return RankPlan.from_dict(self.plan, f"The plan {self.plan_label!r}")


@dataclass(frozen=True)
class SweepSettings:
    """What is compared with what.

    model: whatever `sample_models.open_model` takes. task: a key of `TASKS`, ``csv:PATH`` or ``data:SOURCE`` (a bare path will do). methods: keys of `METHODS` and of
    configs: name -> a PEFT configuration of the user's own (or the values of its adapter_config.json). seeds: how many, or which. rank: of LoRA-XS where there is no plan; ranks: method -> rank. plans: label -> `RankPlan` (or its dict):
    LoRA-XS runs once with each. ablate: keys of `ABLATIONS`, what is taken apart of LoRA-XS. learning_rates: method -> one or several; with several the one that scores best on the
    validation split is reported (`summary`). steps: optimizer steps a trial. batch: examples a step. sequence: tokens a text.
    data: a folder or file for the task, where it needs one. columns: role -> column of data of the user's own (`tasks.own_task`). report_to: `TRACKERS` that transformers' Trainer also tells. threads: CPU threads; None takes torch's choice.

    Raises SettingsError in one sentence for anything that cannot be run.
    """

    model: str
    task: str = "stsb"
    methods: Sequence[str] = ("head-only", *MAIN_METHODS)
    seeds: int | Sequence[int] = 1
    steps: int = 200
    batch: int = 32
    sequence: int = 128
    rank: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    plans: Mapping[str, RankPlan | dict] = field(default_factory=dict)
    configs: Mapping[str, Mapping] = field(default_factory=dict)
    ablate: Sequence[str] = ()
    targets: str | Sequence[str] = "paper"
    learning_rates: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    head_learning_rate: float | None = None
    evaluations: int = 5
    validation_examples: int | None = 512
    test_examples: int | None = None
    device: str = "auto"
    threads: int | None = None
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    report_to: Sequence[str] = ()

    def __post_init__(self):
        put = self._put
        methods = tuple(dict.fromkeys([self.methods] if isinstance(self.methods, str) else self.methods))
        if not methods:
            raise SettingsError(f"Name at least one method to compare; there are {', '.join(METHODS)}.")
        put("task", task_name(self.task, TASKS))
        put("configs", self._own_configs())
        for name in (*methods, *self.ranks, *self.learning_rates):
            if name not in self.configs:
                method(name)
        put("methods", methods)
        put("ablate", self._ablations())
        put("report_to", tuple(dict.fromkeys([self.report_to] if isinstance(self.report_to, str) else self.report_to)))
        if odd := [name for name in self.report_to if name not in TRACKERS]:
            raise SettingsError(f"Trainer cannot report to {odd[0]!r} here; choose among {', '.join(TRACKERS)}.")
        for name, what in _COUNTS.items():
            if getattr(self, name) is not None or name not in _OPTIONAL_COUNTS:
                put(name, whole(getattr(self, name), what))
        put("ranks", {name: whole(rank, f"The rank of {name}") for name, rank in self.ranks.items()})
        put("plans", {str(label): _plan_dict(plan, label) for label, plan in self.plans.items()})
        if self.plans and PLANNED not in methods:
            raise SettingsError("Plans are for LoRA-XS, which is not among the methods; add lora-xs or leave the plans out.")
        if self.ablate and PLANNED not in methods:
            raise SettingsError("Ablations are of LoRA-XS, which is not among the methods; add lora-xs or leave them out.")
        put("learning_rates", {name: _rates(name, given) for name, given in self.learning_rates.items()})
        if self.head_learning_rate is not None:
            put("head_learning_rate", positive(self.head_learning_rate, "The learning rate of the head"))
        put("targets", self.targets if isinstance(self.targets, str) else texts(self.targets, "targets"))
        put("seeds", self._seeds())
        self._refuse_shared_folders()

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _seeds(self) -> tuple[int, ...]:
        each = sum(max(1, len(self.learning_rates.get(name, ()))) * len(self._variants(name)) for name in self.methods)
        many = whole(self.seeds, "The number of seeds") if isinstance(self.seeds, int) else len(self.seeds)
        if many * each > MOST_TRIALS:
            raise SettingsError(
                f"{many:,} seeds of {each} trials are {many * each:,} trials; a comparison takes at most {MOST_TRIALS:,}."
            )
        if isinstance(self.seeds, int):
            return tuple(range(many))
        odd = [seed for seed in self.seeds if isinstance(seed, bool) or not isinstance(seed, Integral)]
        seeds = () if odd else tuple(dict.fromkeys(int(seed) for seed in self.seeds))
        if not seeds or min(seeds) < 0 or max(seeds) > MOST_SEED:
            raise SettingsError(f"Give at least one seed, each a whole number from 0 to {MOST_SEED:,}.")
        return seeds

    def _own_configs(self) -> dict[str, dict]:
        for name in self.configs:
            if name in METHODS:
                raise SettingsError(f"A configuration of your own cannot be called {name!r}: that is a method; rename it.")
        return {str(name): plain_config(values) for name, values in self.configs.items()}

    def _ablations(self) -> tuple[str, ...]:
        asked = tuple(dict.fromkeys([self.ablate] if isinstance(self.ablate, str) else self.ablate))
        for name in asked:
            if name not in ABLATIONS:
                raise SettingsError(f"There is no ablation {name!r}; there are {', '.join(ABLATIONS)}.")
        return asked

    def method(self, name: str) -> Method:
        """The method called `name`, one of the user's own included."""
        return own_method(name, self.configs[name], METHODS) if name in self.configs else method(name)

    def _variants(self, name: str) -> list[Variant]:
        chosen = self.method(name)
        rank = self.ranks.get(name) or (self.rank if name == PLANNED else None) or chosen.default_rank
        planned = name == PLANNED
        return variants(rank if chosen.ranked else None, self.plans if planned else {}, self.ablate if planned else ())

    def _refuse_shared_folders(self) -> None:
        """Trials whose folder names would be the same: the second would be taken for the first."""
        known: dict[str, TrialSettings] = {}
        for trial in self.trials():
            other = known.setdefault(trial.id, trial)
            if other is trial:
                continue
            if other.method != trial.method:
                what = f"The methods {other.method!r} and {trial.method!r} differ in punctuation alone; rename one."
            elif other.plan_label != trial.plan_label:
                what = f"The plans {other.plan_label!r} and {trial.plan_label!r} differ in punctuation alone; rename one."
            else:
                what = f"Two learning rates of {trial.method} are {trial.learning_rate:g} when rounded; leave one out."
            raise SettingsError(what)

    def check(self) -> Task:
        """The task, found and readable. Raises SettingsError for an unknown task or one whose data is not on this machine."""
        for name in self.report_to:
            if find_spec(name) is None:
                raise SettingsError(f"Reporting to {name} needs its package: pip install {name}, or leave it out.")
        task = open_task(self.task, self.columns)
        reason = None if self.data else task.missing()
        if reason:
            raise SettingsError(reason)
        return task

    def trials(self) -> list[TrialSettings]:
        """Every trial, all methods of the first seed first, so that a first comparison is there early."""
        head = self.head_learning_rate or METHODS["head-only"].learning_rate
        causal, found = self._causal, []
        for seed in self.seeds:
            for name in self.methods:
                usual = head if name == "head-only" else self.method(name).rate(causal).value
                for rate in self.learning_rates.get(name, (usual,)):
                    common = TrialSettings(
                        method=name,
                        seed=seed,
                        learning_rate=rate,
                        head_learning_rate=rate if name == "head-only" else head,
                        steps=self.steps,
                        batch=self.batch,
                        sequence=self.sequence,
                        config=self.configs.get(name),
                        targets=self.targets,
                        evaluations=self.evaluations,
                        validation_examples=self.validation_examples,
                        test_examples=self.test_examples,
                        device=self.device,
                        report_to=tuple(self.report_to),
                    )
                    found += [_of_variant(common, variant) for variant in self._variants(name)]
        return found

    @property
    def _causal(self) -> bool:
        """Whether the task is language modelling, which has no head and learning rates of its own."""
        return self.task in TASKS and TASKS[self.task].kind not in (REGRESSION, CLASSIFICATION)

    @property
    def seed_count(self) -> int:
        return len(self._seeds())

    def rates(self, name: str) -> tuple[float, ...]:
        """The learning rates given for a method; none where it takes its own."""
        return _rates(name, self.learning_rates[name]) if name in self.learning_rates else ()

    def rank_plans(self) -> dict[str, RankPlan]:
        """`plans` as `RankPlan`s, by label. Raises PlanError."""
        return {label: RankPlan.from_dict(_plan_dict(plan, label), f"The plan {label!r}") for label, plan in self.plans.items()}

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping) -> SweepSettings:
        """Raises SettingsError for a document that `to_dict` would not have written, whatever is in it."""
        if not isinstance(document, Mapping):
            raise SettingsError("These are not the settings of a sweep.")
        known = {entry.name for entry in dataclasses.fields(cls)}
        odd = sorted(str(name) for name in set(document) - known)
        if odd or "model" not in document:
            what = f"there is no setting {odd[0]!r} in this version" if odd else "model is missing"
            raise SettingsError(f"These are not the settings of a sweep: {what}.")
        for name, kinds in _KINDS.items():
            if name in document and not isinstance(document[name], kinds):
                raise SettingsError(f"These are not the settings of a sweep: {name} is {_shown(document[name])}.")
        try:
            return cls(**document)
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise SettingsError(f"These are not the settings of a sweep: {error}.") from None


_COUNTS = {
    "steps": "The number of steps",
    "batch": "The batch",
    "sequence": "The tokens a text",
    "evaluations": "The number of evaluations",
    "rank": "The rank",
    "validation_examples": "The number of validation examples",
    "test_examples": "The number of test examples",
    "threads": "The number of threads",
}
_OPTIONAL_COUNTS = ("rank", "validation_examples", "test_examples", "threads")
_KINDS = {  # what JSON may hold where `__post_init__` looks inside
    "model": str,
    "task": str,
    "methods": (str, list, tuple),
    "seeds": (int, list, tuple),
    "ranks": dict,
    "plans": dict,
    "configs": dict,
    "ablate": (str, list, tuple),
    "report_to": (str, list, tuple),
    "targets": (str, list, tuple),
    "learning_rates": dict,
    "device": str,
    "data": (str, type(None)),
    "columns": dict,
}


def _of_variant(trial: TrialSettings, variant: Variant) -> TrialSettings:
    plan_label, note = (variant.note, "") if variant.plan is not None else ("", variant.note)
    options = dict(variant.options)
    return dataclasses.replace(trial, rank=variant.rank, plan=variant.plan, plan_label=plan_label, note=note, options=options)


def _file_name(text: str) -> str:
    return short_name("".join(letter if letter.isalnum() else "-" for letter in text))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _rates(name: str, given: float | Sequence[float]) -> tuple[float, ...]:
    values = [given] if isinstance(given, int | float) else list(given)
    if not values:
        raise SettingsError(f"Give {name} at least one learning rate.")
    return tuple(dict.fromkeys(positive(value, f"The learning rate of {name}") for value in values))


def _plan_dict(plan: RankPlan | dict, label: str) -> dict:
    return (RankPlan.from_dict(plan, f"The plan {label!r}") if isinstance(plan, Mapping) else plan).to_dict()
