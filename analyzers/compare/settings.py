"""What is compared with what: the settings of a sweep and of each of its trials, what work costs, and who listens to a trial.

Everything else in this package imports this file; it imports none of it but the tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Integral

from analyzers.checks import positive, texts, whole
from analyzers.compare.tasks import CAUSAL, TASKS, Task, open_task, task_name
from analyzers.compare.trial_settings import TrialSettings
from analyzers.compare.variants import ABLATIONS, PLANNED, Variant, variants
from analyzers.methods import MAIN_METHODS, METHODS, Method, method
from analyzers.methods.own import own_method
from analyzers.methods.peft_configs import plain_config, refuse_unknown_type
from analyzers.plans import RankPlan
from loraxs_core.errors import SettingsError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # by the names of their packages, which are Trainer's too
EXECUTORS = ("local", "ray")
MOST_TRIALS = 10_000  # of a sweep: more is a slip of the hand, and nothing that lists runs may be held up by it
MOST_SEED = 2**32 - 1  # what NumPy's generators take


@dataclass(frozen=True)
class SweepSettings:
    """What is compared with what.

    model: whatever `sample_models.open_model` takes. task: a key of `TASKS`, ``csv:PATH`` or ``data:SOURCE`` (a bare path will do). methods: keys of `METHODS` and of
    configs: name -> a PEFT configuration of the user's own (or the values of its adapter_config.json). seeds: how many, or which. rank: of LoRA-XS where there is no plan; ranks: method -> rank. plans: label -> `RankPlan` (or its dict):
    LoRA-XS runs once with each. ablate: keys of `ABLATIONS`, what is taken apart of LoRA-XS. learning_rates: method -> one or several; with several the one that scores best on the
    validation split is reported (`summary`). steps: optimizer steps a trial. batch: examples a step. sequence: tokens a text.
    data: a folder or file for the task, where it needs one. columns: role -> column of data of the user's own (`tasks.own_task`). report_to: `TRACKERS` that transformers' Trainer also tells. threads: CPU threads; None takes torch's choice.
    causal: whether data of the user's own is for a decoder, as its columns say; a run notes it when it is created, so that its rates stay
    what they were whatever becomes of the data. tune_lr: whether each variant's learning rate is looked for first, on training examples that
    are set aside (`halving`); among the rates given where there are several, around the default where there are none.
    executor: ``local``, or ``ray``, a cluster. workers: trials at a time; when left out as many as a cluster has room for, and here what
    `spread.spread` finds. processes: that train each trial together (``accelerate launch``).

    Raises SettingsError in one sentence for anything that cannot be run.
    """

    model: str
    task: str = "stsb"
    methods: Sequence[str] = ("head-only", *MAIN_METHODS)
    seeds: int | Sequence[int] = 1
    steps: int = 100
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
    evaluations: int = 4
    validation_examples: int | None = 256
    test_examples: int | None = None
    device: str = "auto"
    threads: int | None = None
    data: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    report_to: Sequence[str] = ()
    causal: bool | None = None
    tune_lr: bool = False
    executor: str = "local"
    workers: int | None = None
    processes: int = 1

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
        self._refuse_executor()
        put("seeds", self._seeds())
        self._refuse_shared_folders()

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _refuse_executor(self) -> None:
        if self.executor not in EXECUTORS:
            raise SettingsError(f"Trials cannot be run by {self.executor!r}; choose among {', '.join(EXECUTORS)}.")
        if self.processes > 1 and self.executor != "local":
            raise SettingsError("Trials run on a Ray cluster or by several processes each, not both; leave one out.")
        if self.processes > 1 and (self.workers or 1) > 1:
            raise SettingsError("Several processes train one trial at a time; leave out the number of workers or of processes.")
        if self.batch % self.processes:
            nearest = max(1, round(self.batch / self.processes)) * self.processes
            raise SettingsError(
                f"A batch of {self.batch} cannot be shared alike by {self.processes} processes; take {nearest}, or another number of processes."
            )

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
        """The task, found and readable. Raises SettingsError for an unknown task or one whose data is not on this machine, and
        for a configuration of the user's own that PEFT has no adapter for."""
        for name in self.methods:
            if name in self.configs:
                refuse_unknown_type(self.configs[name], name)
        for name in self.report_to:
            if find_spec(name) is None:
                raise SettingsError(f"Reporting to {name} needs its package: pip install {name}, or leave it out.")
        task = open_task(self.task, self.columns)
        reason = None if self.data else task.missing()
        if reason:
            raise SettingsError(reason)
        return task

    def trials(self, tuned: Mapping[str, float] | None = None) -> list[TrialSettings]:
        """Every trial, all methods of the first seed first, so that a first comparison is there early.

        tuned: `TrialSettings.place` -> the rate that was found for it. Where rates are tuned and this one is not yet, the trial has the
        method's default in its place.
        """
        head = self.head_learning_rate or METHODS["head-only"].learning_rate
        found = []
        for seed in self.seeds:
            for name in self.methods:
                usual = self._usual(name)
                rates = (usual,) if self._is_tuned(name) else self.learning_rates.get(name, (usual,))
                for rate in rates:
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
                        processes=self.processes,
                    )
                    found += [_of_variant(common, variant) for variant in self._variants(name)]
        return [_at_rate(trial, (tuned or {}).get(trial.place)) for trial in found]

    def _usual(self, name: str) -> float:
        """The rate of a method that is given none."""
        if name == "head-only":
            return self.head_learning_rate or METHODS["head-only"].learning_rate
        return self.method(name).rate(self._causal).value

    def _is_tuned(self, name: str) -> bool:
        nothing_trained = name == "head-only" and self._causal
        return self.tune_lr and len(self.learning_rates.get(name, ())) != 1 and not nothing_trained

    def to_tune(self) -> list[tuple[TrialSettings, tuple[float, ...]]]:
        """For each variant whose rate is tuned, its trial of the first seed and the rates to try; none where they lie around its own."""
        first = [trial for trial in self.trials() if trial.seed == self.seeds[0] and self._is_tuned(trial.method)]
        return [(trial, _rounded(self.learning_rates.get(trial.method, ()))) for trial in first]

    @property
    def _causal(self) -> bool:
        """Whether the task is language modelling, which has no head and learning rates of its own."""
        return TASKS[self.task].kind == CAUSAL if self.task in TASKS else bool(self.causal)

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
    "workers": "The number of workers",
    "processes": "The number of processes",
}
_OPTIONAL_COUNTS = ("rank", "validation_examples", "test_examples", "threads", "workers")
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
    "causal": (bool, type(None)),
    "tune_lr": bool,
    "executor": str,
}


def _of_variant(trial: TrialSettings, variant: Variant) -> TrialSettings:
    plan_label, note = (variant.note, "") if variant.plan is not None else ("", variant.note)
    options = dict(variant.options)
    return dataclasses.replace(trial, rank=variant.rank, plan=variant.plan, plan_label=plan_label, note=note, options=options)


def _at_rate(trial: TrialSettings, rate: float | None) -> TrialSettings:
    if rate is None:
        return trial
    head = rate if trial.method == "head-only" else trial.head_learning_rate
    return dataclasses.replace(trial, learning_rate=rate, head_learning_rate=head)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _rates(name: str, given: float | Sequence[float]) -> tuple[float, ...]:
    values = [given] if isinstance(given, int | float) else list(given)
    if not values:
        raise SettingsError(f"Give {name} at least one learning rate.")
    return tuple(dict.fromkeys(positive(value, f"The learning rate of {name}") for value in values))


def _rounded(rates: Sequence[float]) -> tuple[float, ...]:
    """As folders are called by them."""
    return tuple(dict.fromkeys(float(f"{rate:g}") for rate in rates))


def _plan_dict(plan: RankPlan | dict, label: str) -> dict:
    return (RankPlan.from_dict(plan, f"The plan {label!r}") if isinstance(plan, Mapping) else plan).to_dict()
