"""A question about storage that can be saved, asked again, and asked of several methods side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.methods import MAIN_METHODS
from analyzers.storage import fleet as prices
from analyzers.storage.fleet import fleet_cost, load_seconds, resident_adapters
from analyzers.storage.size import AdapterSize, adapter_size
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scenario:
    """One adapter a user, many users.

    model: what the user calls it. ranks: method -> rank, for methods that shall not take their own default. targets, dtype, task:
    as for `adapter_size`. adapters, replicas, versions, prices: as for `fleet_cost`. gigabits_per_second: of the link adapters are
    loaded over. memory_gib: of the server that keeps adapters resident, beside `base_bytes_in_memory`. note: what it stands for.
    """

    model: str
    methods: Sequence[str] = ("full", *MAIN_METHODS)
    ranks: Mapping[str, int] | None = None
    targets: str = "paper"
    dtype: str = "float32"
    task: str | None = None
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
    note: str = ""

    def frame(self, checkpoint: Checkpoint) -> pd.DataFrame:
        """One row a method: method, label, rank, trainable, number_bytes, file_bytes, folder_bytes, fleet_bytes, fleet_gb, fleet_gib,
        cost_per_month, load_seconds, resident (adapters that stay in memory). Raises SettingsError for impossible settings."""
        import pandas as pd

        rows = []
        for name in self.methods:
            size = self.size(checkpoint, name)
            fleet = fleet_cost(
                size,
                adapters=self.adapters,
                replicas=self.replicas,
                versions=self.versions,
                price_per_gb_month=self.price_per_gb_month,
                loads_per_month=self.loads_per_month,
                price_per_1000_loads=self.price_per_1000_loads,
                egress_price_per_gb=self.egress_price_per_gb,
            )
            rows.append(
                {
                    "method": size.method,
                    "label": size.label,
                    "rank": size.rank_text,
                    "trainable": size.trainable,
                    "number_bytes": size.number_bytes,
                    "file_bytes": size.file_bytes,
                    "folder_bytes": size.folder_bytes,
                    "fleet_bytes": fleet.fleet_bytes,
                    "fleet_gb": fleet.fleet_gb,
                    "fleet_gib": fleet.fleet_gib,
                    "cost_per_month": fleet.cost_per_month,
                    "load_seconds": load_seconds(size, gigabits_per_second=self.gigabits_per_second),
                    "resident": resident_adapters(size, self.memory_gib * prices.GIB, base_bytes=self.base_bytes_in_memory),
                }
            )
        return pd.DataFrame(rows)

    def size(self, checkpoint: Checkpoint, method: str) -> AdapterSize:
        """One adapter of `method` under these settings."""
        return adapter_size(
            checkpoint,
            method,
            rank=(self.ranks or {}).get(method),
            targets=self.targets,
            dtype=self.dtype,
            task=self.task,
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the settings as JSON, whole or not at all."""
        path = Path(path)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Scenario:
        """Reads what `save` wrote. Raises SettingsError in one sentence for a missing or malformed file."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"Cannot read the scenario {path}: {error.strerror or error}.") from None
        except ValueError:
            raise SettingsError(f"{path} is not valid JSON, so it is no scenario.") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or "model" not in values or not set(values) <= known:
            raise SettingsError(f"{path} is not a scenario: it needs a model, and may have {', '.join(sorted(known))}.")
        return cls(**values | {"methods": tuple(values.get("methods", cls.methods))})


PAPER_EXAMPLE = Scenario(
    model="gpt-3-175b",
    methods=("full", "lora", "lora-xs"),
    ranks={"lora": 16, "lora-xs": 16},
    targets="q_proj,v_proj",
    dtype="float16",
    adapters=1_000_000,
    note=(
        "The example of arXiv 2405.17604: one adapter of rank 16 on query and value of GPT-3 for each of a million users, in 16 bit. "
        "The paper's 144 TB against 96 GB are the numbers alone, counted as a million times 144 MiB and 96 KiB; that is 151 TB and "
        "98.3 GB of 10¹² and 10⁹ bytes (137 TiB and 91.6 GiB). The files that PEFT writes add a header of some 120 bytes a tensor."
    ),
)

SCENARIOS: dict[str, Scenario] = {"gpt-3-one-million-users": PAPER_EXAMPLE}
