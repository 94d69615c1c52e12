"""A question about storage that can be saved, asked again, and asked of several methods side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.checks import not_negative, positive, whole
from analyzers.methods import MAIN_METHODS
from analyzers.methods import method as find_method
from analyzers.plans import RankPlan
from analyzers.storage import fleet as prices
from analyzers.storage.breakeven import BreakEven, break_even
from analyzers.storage.fleet import FleetCost, fleet_cost, load_seconds, resident_adapters
from analyzers.storage.layout import check_dtype
from analyzers.storage.size import AdapterSize, adapter_size, task_type
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.documents import parsed, read_bytes
from loraxs_core.errors import PlanError, RunError, SettingsError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.plans import RankPlan


@dataclass(frozen=True)
class Scenario:
    """One adapter a user, many users.

    model: what the user calls it. ranks: method -> rank, for methods that shall not take their own default. plan: a rank plan
    for LoRA-XS, as `RankPlan.to_dict` writes it; its layers are then those of every method. targets, dtype, task: as for
    `adapter_size`. options: method -> further arguments of its PEFT configuration. adapters, replicas, versions, prices: as for
    `fleet_cost`. gigabits_per_second: of the link adapters are loaded over. memory_gib: of the server that keeps adapters
    resident, beside `base_bytes_in_memory`. title, note: what it is called, and what it stands for.

    Raises SettingsError in one sentence for a value of the wrong kind or one that no fleet can have.
    """

    model: str
    methods: Sequence[str] = ("full", *MAIN_METHODS)
    ranks: Mapping[str, int] | None = None
    plan: Mapping | None = None
    targets: str = "paper"
    dtype: str = "float32"
    task: str | None = None
    options: Mapping[str, Mapping[str, object]] | None = None
    adapters: int = 1
    replicas: int = 1
    versions: int = 1
    price_per_gb_month: float = prices.PRICE_PER_GB_MONTH
    loads_per_month: float = 0.0
    price_per_1000_loads: float = prices.PRICE_PER_1000_LOADS
    egress_price_per_gb: float = 0.0
    gigabits_per_second: float = 1.0
    memory_gib: float = 80.0
    base_bytes_in_memory: float = 0.0
    title: str = ""
    note: str = ""

    def __post_init__(self):
        if not isinstance(self.model, str) or not self.model.strip():
            raise SettingsError(f"A scenario needs the name of a model, not {self.model!r}.")
        if isinstance(self.methods, str) or not isinstance(self.methods, Sequence) or not self.methods:
            raise SettingsError("A scenario compares at least one method; give a list of them.")
        for name in self.methods:
            find_method(name if isinstance(name, str) else repr(name))
        for kind, given in (("ranks", self.ranks), ("options", self.options), ("plan", self.plan)):
            if given is not None and not isinstance(given, Mapping):
                raise SettingsError(f"The {kind} of a scenario are names with values, not {given!r}.")
        for name, rank in (self.ranks or {}).items():
            whole(rank, f"The rank of {name}")
        for name, chosen in (self.options or {}).items():
            if not isinstance(chosen, Mapping):
                raise SettingsError(f"The options of {name} are names with values, not {chosen!r}.")
        for what in ("targets", "title", "note"):
            if not isinstance(getattr(self, what), str):
                raise SettingsError(f"The {what} of a scenario must be text, not {getattr(self, what)!r}.")
        check_dtype(self.dtype)
        task_type(self.task if isinstance(self.task, str | None) else repr(self.task))
        self.fleet(1)
        load_seconds(1, gigabits_per_second=self.gigabits_per_second)
        positive(self.memory_gib, "The memory for adapters")
        not_negative(self.base_bytes_in_memory, "The memory taken by the base model")
        self.rank_plan()

    def but(self, **changes: Any) -> Scenario:
        """This scenario with some values replaced."""
        return replace(self, **changes)

    def alone(self) -> Scenario:
        """The same adapters without the fleet: what their sizes and break-even ranks depend on."""
        return Scenario(self.model, self.methods, self.ranks, self.plan, self.targets, self.dtype, self.task, self.options)

    def frame(self, checkpoint: Checkpoint, sizes: Mapping[str, AdapterSize] | None = None) -> pd.DataFrame:
        """One row a method: method, label, rank, trainable, head_parameters, number_bytes, file_bytes, header_bytes,
        folder_bytes, fleet_bytes, fleet_number_bytes, fleet_gb, fleet_gib, cost_per_month, load_seconds, resident (adapters
        that stay in memory).

        sizes: of one adapter each, when they are known already. Raises SettingsError for impossible settings."""
        import pandas as pd

        rows = []
        for size in (sizes or self.sizes(checkpoint)).values():
            fleet = self.fleet(size)
            rows.append(
                {
                    "method": size.method,
                    "label": size.label,
                    "rank": size.rank_text,
                    "trainable": size.trainable,
                    "head_parameters": size.head_parameters,
                    "number_bytes": size.number_bytes,
                    "file_bytes": size.file_bytes,
                    "header_bytes": size.header_bytes,
                    "folder_bytes": size.folder_bytes,
                    "fleet_bytes": fleet.fleet_bytes,
                    "fleet_number_bytes": fleet.files * size.number_bytes,
                    "fleet_gb": fleet.fleet_gb,
                    "fleet_gib": fleet.fleet_gib,
                    "cost_per_month": fleet.cost_per_month,
                    "load_seconds": load_seconds(size, gigabits_per_second=self.gigabits_per_second),
                    "resident": resident_adapters(size, self.memory_gib * prices.GIB, base_bytes=self.base_bytes_in_memory),
                }
            )
        return pd.DataFrame(rows)

    def curve(self, sizes: Mapping[str, AdapterSize], counts: Sequence[int]) -> pd.DataFrame:
        """The same fleet at other numbers of adapters. Columns: method, label, adapters, bytes, cost_per_month."""
        import pandas as pd

        rows = []
        for size in sizes.values():
            for count in counts:
                fleet = self.fleet(size, adapters=count)
                rows.append(
                    {
                        "method": size.method,
                        "label": size.label,
                        "adapters": count,
                        "bytes": fleet.fleet_bytes,
                        "cost_per_month": fleet.cost_per_month,
                    }
                )
        return pd.DataFrame(rows)

    def fleet(self, size: AdapterSize | int, adapters: int | None = None) -> FleetCost:
        """What the fleet costs when one adapter is of this size (or has so many bytes)."""
        return fleet_cost(
            size,
            adapters=self.adapters if adapters is None else adapters,
            replicas=self.replicas,
            versions=self.versions,
            price_per_gb_month=self.price_per_gb_month,
            loads_per_month=self.loads_per_month,
            price_per_1000_loads=self.price_per_1000_loads,
            egress_price_per_gb=self.egress_price_per_gb,
        )

    def sizes(self, checkpoint: Checkpoint) -> dict[str, AdapterSize]:
        """One adapter of each method, in the order they are compared."""
        return {name: self.size(checkpoint, name) for name in self.methods}

    def size(self, checkpoint: Checkpoint, method: str) -> AdapterSize:
        """One adapter of `method` under these settings."""
        return adapter_size(checkpoint, method, **self.asked(method))

    def asked(self, method: str) -> dict:
        """What `adapter_size` is asked for `method`, besides the model."""
        plan = self.rank_plan()
        if plan is not None and method == "lora-xs":
            layers: dict = {"plan": plan}
        else:
            layers = {"rank": (self.ranks or {}).get(method), "targets": tuple(plan.ranks) if plan else self.targets}
        return {**layers, "dtype": self.dtype, "task": self.task, "options": dict((self.options or {}).get(method, {}))}

    def meets(self, checkpoint: Checkpoint) -> list[BreakEven]:
        """At which rank LoRA-XS costs what LoRA and VeRA do, for those of the two that are compared."""
        return [break_even(checkpoint, name, **self.asked(name)) for name in self.methods if name in ("lora", "vera")]

    def rank_plan(self) -> RankPlan | None:
        """The plan of LoRA-XS's ranks. Raises SettingsError when it is none."""
        if self.plan is None:
            return None
        try:
            return RankPlan.from_dict(self.plan, "The plan in the scenario")
        except PlanError as error:
            raise SettingsError(str(error)) from None

    def to_json(self) -> str:
        """The settings as a JSON document; what `save` writes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "The file") -> Scenario:
        """Reads what `to_json` wrote. Raises SettingsError in one sentence, naming `source`, for anything else."""
        try:
            values = parsed(text)
        except ValueError:
            raise SettingsError(f"{source} is not valid JSON, so it is no scenario.") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or "model" not in values or not set(values) <= known:
            raise SettingsError(f"{source} is not a scenario: it needs a model, and may have {', '.join(sorted(known))}.")
        try:
            return cls(**values | ({"methods": tuple(values["methods"])} if isinstance(values.get("methods"), list) else {}))
        except SettingsError as error:
            raise SettingsError(f"{source} is refused: {error}") from None

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the settings as JSON, whole or not at all."""
        path = Path(path)
        with atomic_file(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Scenario:
        """Reads what `save` wrote. Raises SettingsError in one sentence for a missing or malformed file."""
        try:
            text = read_bytes(Path(path))
        except FileNotFoundError as error:
            raise SettingsError(f"Cannot read the scenario {path}: {error.strerror}.") from None
        except RunError as error:
            raise SettingsError(f"Cannot read the scenario: {error}") from None
        return cls.from_json(text, str(path))


PAPER_EXAMPLE = Scenario(
    model="gpt-3-175b",
    methods=("full", "lora", "lora-xs"),
    ranks={"lora": 16, "lora-xs": 16},
    targets="q_proj,v_proj",
    dtype="float16",
    adapters=1_000_000,
    title="GPT-3, one million users (the paper's example)",
    note=(
        "The example of arXiv 2405.17604: one adapter of rank 16 on query and value of GPT-3 for each of a million users, in 16 bit. "
        "The paper's 144 TB against 96 GB are the numbers alone, counted as a million times 144 MiB and 96 KiB; that is 151 TB and "
        "98.3 GB of 10¹² and 10⁹ bytes (137 TiB and 91.6 GiB). The files that PEFT writes add a header of some 120 bytes a tensor."
    ),
)

SCENARIOS: dict[str, Scenario] = {"gpt-3-one-million-users": PAPER_EXAMPLE}
