"""`RankPlan`: a rank for every adapted layer, as it travels between rooms, to disk and into PEFT."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.checks import by_name, positive, shown, texts, whole
from analyzers.methods import AdapterSpec, adapter_config, method
from analyzers.plans.rank_pattern import rank_pattern
from loraxs_core.documents import parsed, read_bytes
from loraxs_core.errors import PlanError, RunError
from loraxs_core.html import table
from loraxs_core.paths import atomic_file
from loraxs_core.roles import layer_of, role_of

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig

    from analyzers.spectra import Spectra
    from loraxs_core.checkpoint import Checkpoint
    from loraxs_core.tuner import LoraXSConfig

FORMAT = "loraxs-rank-plan"
VERSION = 1
WIDEST = 1 << 31  # rows or columns; far beyond any matrix
_BESIDE = {
    "format",
    "version",
    "trainable",
    "file_bytes",
}  # what documents of plans say besides; the last is of `loraxs plan --json`


@dataclass(frozen=True)
class RankPlan:
    """Which layers get an adapter, and of what rank.

    model: what the user called the model. strategy: how the ranks were found; ``edited`` after `with_ranks`. ranks: module name
    -> rank, in the order of the inventory. shapes: module name -> (out, in) of W0. targets: PEFT's ``target_modules``.
    alpha_over_r: the scaling, the same in every layer. budget: the largest Σ r² allowed. requested: the budget as it was asked
    for. evidence: what the recommendation rests on. notes: what else its reader should know. modules: module name -> how
    its path ends in memory, for those that transformers renames on load.
    """

    model: str
    strategy: str
    ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[int, int]]
    targets: Sequence[str]
    alpha_over_r: float
    budget: int
    requested: str = ""
    evidence: str = ""
    notes: tuple[str, ...] = field(default=())
    modules: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        """Raises PlanError, naming the layer, for a plan that no adapter can follow."""
        if not self.ranks:
            raise PlanError("A rank plan needs at least one layer.")
        if set(self.ranks) != set(self.shapes):
            odd = sorted(set(self.ranks) ^ set(self.shapes))[0]
            raise PlanError(f"The plan gives only one of rank and shape for {odd}.")
        for name, rank in self.ranks.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise PlanError(f"The rank of {name} must be a whole number of at least 1, not {shown(rank)}.")
            out, inner = self.shapes[name]
            if rank > min(out, inner):
                raise PlanError(
                    f"Rank {shown(rank)} is larger than the matrix {name} ({out} x {inner}); at most {min(out, inner)}."
                )
        positive(self.alpha_over_r, "The scaling alpha/r", error=PlanError)

    @property
    def trainable(self) -> int:
        """Trained numbers of LoRA-XS: Σ r²."""
        return sum(rank**2 for rank in self.ranks.values())

    @property
    def within_budget(self) -> bool:
        return self.trainable <= self.budget

    @property
    def most_frequent_rank(self) -> int:
        """PEFT's ``r``: the rank that most layers have (the larger one of a tie), so that ``rank_pattern`` stays short."""
        counts: dict[int, int] = {}
        for rank in self.ranks.values():
            counts[rank] = counts.get(rank, 0) + 1
        return max(counts, key=lambda rank: (counts[rank], rank))

    def with_ranks(self, ranks: Mapping[str, int]) -> RankPlan:
        """This plan with the ranks of some layers replaced. Raises PlanError for a layer it does not have or a rank too large."""
        for name in ranks:
            if name not in self.ranks:
                raise PlanError(f"The plan has no layer {name!r}, so its rank cannot be set.")
        merged = {name: int(ranks.get(name, rank)) for name, rank in self.ranks.items()}
        if merged == dict(self.ranks):
            return self
        origin = self.strategy.removesuffix(" (edited)")
        return replace(
            self, ranks=merged, strategy=f"{origin} (edited)", evidence=f"Edited by hand from: {self.evidence}", notes=()
        )

    def diff(self, other: RankPlan) -> pd.DataFrame:
        """Layers whose rank differs, from this plan to `other`: name, role, rank_before, rank_after (0: not adapted), and the
        changes in rank and in trained numbers."""
        import pandas as pd

        rows = []
        for name in dict.fromkeys((*self.ranks, *other.ranks)):
            before, after = self.ranks.get(name, 0), other.ranks.get(name, 0)
            if before != after:
                rows.append((name, role_of(name), before, after, after - before, after**2 - before**2))
        return pd.DataFrame(rows, columns=["name", "role", "rank_before", "rank_after", "rank_change", "trainable_change"])

    def frame(self, checkpoint: Checkpoint | None = None, spectra: Spectra | None = None) -> pd.DataFrame:
        """One row a layer: name, role, layer, shape ("out x in"), out, in, rank, trainable (r²), alpha; with spectra also
        energy_at_rank, the share of ‖W0‖²_F inside the rank (NaN for a layer that was not scanned that far).

        checkpoint: takes the roles from its inventory, and checks that it has these layers at these shapes (PlanError).
        """
        import pandas as pd

        if checkpoint is not None:
            self.check(checkpoint)
        roles = {weight.name: weight.role for weight in checkpoint.weights} if checkpoint is not None else {}
        rows = []
        for name, rank in self.ranks.items():
            out, inner = self.shapes[name]
            rows.append(
                {
                    "name": name,
                    "role": roles.get(name) or role_of(name),
                    "layer": layer_of(name),
                    "shape": f"{out}x{inner}",
                    "out": out,
                    "in": inner,
                    "rank": rank,
                    "trainable": rank**2,
                    "alpha": self.alpha_over_r * rank,
                }
            )
            if spectra is not None:
                rows[-1]["energy_at_rank"] = spectra.energy_at(name, rank)
        frame = pd.DataFrame(rows)
        return frame.astype({"layer": "Int64"})

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises PlanError when a layer of the plan is not in `checkpoint` or has another shape there."""
        shapes = {weight.name: weight.shape for weight in checkpoint.weights}
        if self.shapes.keys() - shapes.keys():  # what transformers makes of several, or of a part of one
            from loraxs_core.architecture import as_loaded

            shapes |= {weight.name: weight.shape for weight in as_loaded(checkpoint).weights}
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise PlanError(f"The plan was made for {self.model}: {checkpoint.name} has no layer {name}.")
            if tuple(shapes[name]) != tuple(shape):
                raise PlanError(
                    f"The plan was made for {self.model}, where {name} is {shape[0]} x {shape[1]}; in {checkpoint.name} it is "
                    f"{shapes[name][0]} x {shapes[name][1]}."
                )

    def _repr_html_(self) -> str:
        rows = (
            (name, role_of(name), f"{self.shapes[name][0]} x {self.shapes[name][1]}", rank, rank**2)
            for name, rank in self.ranks.items()
        )
        return table(
            f"{self.strategy} plan for {self.model}: {self.trainable:,} trained numbers of a budget of {self.budget:,}",
            ["layer", "role", "out x in", "rank", "trained numbers (r²)"],
            rows,
            total=len(self.ranks),
        )

    # -- on disk --------------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` reads them back."""
        document = asdict(self) | {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}
        return {"format": FORMAT, "version": VERSION, **document, "trainable": self.trainable} | {
            "ranks": dict(self.ranks),
            "targets": list(self.targets),
            "notes": list(self.notes),
            "modules": dict(self.modules),
        }

    @classmethod
    def from_dict(cls, document: Mapping, source: str = "The plan") -> RankPlan:
        """Raises PlanError, naming `source` and what is wrong in it, for anything `to_dict` would not have written."""
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise PlanError(
                f"{source} is not a rank plan of this program (no format {FORMAT!r}); give a plan.json of the Plan page or of `loraxs plan`."
            )
        if type(document.get("version")) is not int or document["version"] != VERSION:
            raise PlanError(
                f"{source} is a rank plan of version {shown(document.get('version'))}; this program reads version {VERSION}."
            )
        strange = sorted(shown(name) for name in document.keys() - {one.name for one in fields(cls)} - _BESIDE)
        if strange:
            raise PlanError(
                f"{source} holds {strange[0]}, which is nothing that a plan has; correct it or save the plan again."
            )
        try:
            plan = cls(
                model=_text(document, "model"),
                strategy=_text(document, "strategy"),
                ranks=by_name(document["ranks"], "ranks"),
                shapes={name: _shape(name, shape) for name, shape in by_name(document["shapes"], "shapes").items()},
                targets=_targets(document),
                alpha_over_r=positive(document["alpha_over_r"], "The scaling alpha/r", error=PlanError),
                budget=whole(document["budget"], "The budget", error=PlanError),
                requested=_text(document, "requested"),
                evidence=_text(document, "evidence"),
                notes=texts(document["notes"], "notes"),
                modules=_modules(document),
            )
        except KeyError as error:
            raise PlanError(f"{source} lacks {error.args[0]!r}; save the plan again.") from None
        except (TypeError, ValueError) as error:
            raise PlanError(f"{source} holds a value of the wrong kind ({error}); save the plan again.") from None
        except PlanError as error:
            raise PlanError(f"{source} is refused: {error}") from None
        told = document.get("trainable", plan.trainable)
        if type(told) is not int or told != plan.trainable:
            raise PlanError(
                f"{source} says {shown(told)} trained numbers and its ranks add up to {plan.trainable:,}: it was "
                "changed by hand in one place only; correct it or save the plan again."
            )
        return plan

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the plan as JSON, whole or not at all. Raises RunError when it cannot be written."""
        path = Path(path)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> RankPlan:
        """Reads what `save` wrote. Raises PlanError in one sentence for a missing, malformed or inconsistent file."""
        try:
            text = read_bytes(Path(path))
        except FileNotFoundError as error:
            raise PlanError(f"Cannot read the plan {path}: {error.strerror}.") from None
        except RunError as error:
            raise PlanError(f"Cannot read the plan: {error}") from None
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "The plan") -> RankPlan:
        """The plan that the JSON `text` holds; `source` is what errors call it. Raises PlanError as `load` does."""
        try:
            document = parsed(text)
        except ValueError:
            raise PlanError(
                f"{source} is not valid JSON, so it is no rank plan; give a plan.json of the Plan page or of `loraxs plan`, in whole."
            ) from None
        return cls.from_dict(document, source)

    # -- into PEFT ------------------------------------------------------------------------------------------------------------

    @property
    def rank_pattern(self) -> dict[str, int]:
        """PEFT's ``rank_pattern`` beside ``r = most_frequent_rank``: regular expression -> rank (see `plans.rank_pattern`)."""
        ranks = {self.modules.get(name, name): rank for name, rank in self.ranks.items()}
        return rank_pattern(ranks, self.most_frequent_rank)

    def spec(self, name: str = "lora-xs", **changes: Any) -> AdapterSpec:
        """This plan as an adapter of the method `name`, which gets the most frequent rank everywhere if it has no ranks per layer.

        changes: other fields of the spec (dropout, task_type, seed, …). Raises SettingsError for an unknown method.
        """
        return AdapterSpec(
            **{
                "method": name,
                "target_modules": tuple(self.targets),
                "rank": self.most_frequent_rank,
                "ranks": self.rank_pattern if method(name).per_layer_ranks else {},
                "alpha_over_r": self.alpha_over_r,
                **changes,
            }
        )

    def lora_xs_config(self, task_type: str | None = None) -> LoraXSConfig:
        """The PEFT configuration of LoRA-XS with these ranks."""
        return adapter_config(self.spec(task_type=task_type))

    def lora_config(self, task_type: str | None = None) -> LoraConfig:
        """PEFT's own LoRA with these ranks, and ``alpha_pattern`` so that alpha/r is the same in every layer."""
        return adapter_config(self.spec("lora", task_type=task_type))


def _text(document: Mapping, key: str) -> str:
    value = document[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is not text")
    return value


def _shape(name: str, shape: object) -> tuple[int, int]:
    """(out, in) of the layer `name`."""
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 2
        or not all(type(one) is int and 1 <= one <= WIDEST for one in shape)
    ):
        raise TypeError(f"the shape of {shown(name)} is {shown(shape)}, no two whole numbers")
    return (shape[0], shape[1])


def _modules(document: Mapping) -> dict[str, str]:
    """Layers by what their paths end in when loaded; plans of models whose names stay what they are have none."""
    modules = by_name(document.get("modules", {}), "modules")
    for name, path in modules.items():
        if not isinstance(path, str) or not path:
            raise TypeError(f"the module of {shown(name)} is {shown(path)}, no path")
        if name not in document["ranks"]:
            raise ValueError(f"modules names {shown(name)}, which is none of its layers")
    return modules


def _targets(document: Mapping) -> list[str]:
    """PEFT's ``target_modules``: names or ends of names, each of which means one of the plan's layers at least."""
    targets = document["targets"]
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) and target for target in targets):
        raise TypeError("targets is no list of module names")
    paths = {*by_name(document["ranks"], "ranks"), *_modules(document).values()}
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            raise ValueError(f"the target {shown(target)} is none of its layers")
    return targets
