"""What many adapters weigh together, and what keeping, moving and serving them takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from analyzers.checks import not_negative, positive, whole
from analyzers.storage.size import AdapterSize
from analyzers.units import GIB
from loraxs_core.errors import SettingsError

GB = 10**9  # object stores bill and disks are sold in decimal gigabytes

# S3 Standard in us-east-1, first tier each: dollars for a GB-month (up to 50 TB; 0.022 and 0.021 beyond), for a thousand GET
# requests; 0.09 a GB that leaves to the internet (up to 10 TB a month) is charged where asked. https://aws.amazon.com/s3/pricing/
# is the source but fills its tables in by script; read in https://gist.github.com/EverettBerry/a37438006529a55f42da6fdbc44a505c (storage) and
# https://devnotes.tech/understanding-aws-s3-pricing-a-complete-cost-breakdown-with-examples (all three). Every figure is an
# argument: put in your own.
PRICE_PER_GB_MONTH = 0.023
PRICE_PER_1000_LOADS = 0.0004

MOST_FILES = 10**18


@dataclass(frozen=True)
class FleetCost:
    """adapters x replicas x versions copies of one file.

    files: how many. fleet_bytes: their length together; fleet_gb in 10⁹ bytes, fleet_gib in 2³⁰. The costs are per month, in the
    currency of the prices: of keeping the files, of the requests that load them, of what leaves the store.
    """

    adapters: int
    replicas: int
    versions: int
    files: int
    fleet_bytes: int
    storage_per_month: float
    requests_per_month: float
    egress_per_month: float

    @property
    def fleet_gb(self) -> float:
        return self.fleet_bytes / GB

    @property
    def fleet_gib(self) -> float:
        return self.fleet_bytes / GIB

    @property
    def cost_per_month(self) -> float:
        return self.storage_per_month + self.requests_per_month + self.egress_per_month

    def to_dict(self) -> dict:
        """Plain JSON values, the derived ones included."""
        return asdict(self) | {"fleet_gb": self.fleet_gb, "fleet_gib": self.fleet_gib, "cost_per_month": self.cost_per_month}


def fleet_cost(
    size: AdapterSize | int,
    *,
    adapters: int,
    replicas: int = 1,
    versions: int = 1,
    price_per_gb_month: float = PRICE_PER_GB_MONTH,
    loads_per_month: float = 0.0,
    price_per_1000_loads: float = PRICE_PER_1000_LOADS,
    egress_price_per_gb: float = 0.0,
) -> FleetCost:
    """The cost of a fleet.

    size: of one adapter (its file; the folder adds `AdapterSize.config_bytes` and `card_bytes`), or its bytes. adapters: one a task
    or a user. replicas: copies of each. versions: how many are retained of each, the current one included. price_per_gb_month: for
    10⁹ bytes. loads_per_month: how often adapters are read from the store in a month, over the whole fleet; each is one request and
    moves one file. egress_price_per_gb: of what leaves; 0 within the store's region.

    Raises SettingsError for 0 adapters, a negative price and the like.
    """
    files = whole(adapters, "The number of adapters") * whole(replicas, "The number of replicas")
    files *= whole(versions, "The number of versions")
    if files > MOST_FILES:
        raise SettingsError(f"A fleet of more than {MOST_FILES:,} files is beyond what is counted here; give fewer adapters.")
    one = size if isinstance(size, int) else size.file_bytes
    loads = not_negative(loads_per_month, "The number of loads per month")
    return FleetCost(
        adapters=int(adapters),
        replicas=int(replicas),
        versions=int(versions),
        files=files,
        fleet_bytes=files * one,
        storage_per_month=files * one / GB * not_negative(price_per_gb_month, "The price per GB and month"),
        requests_per_month=loads / 1000 * not_negative(price_per_1000_loads, "The price per 1,000 loads"),
        egress_per_month=loads * one / GB * not_negative(egress_price_per_gb, "The egress price per GB"),
    )


def load_seconds(size: AdapterSize | int, *, gigabits_per_second: float, latency_ms: float = 0.0) -> float:
    """Seconds to bring one adapter over a link of 10⁹ bits a second each, at full speed, after one round trip of `latency_ms`.

    Raises SettingsError for a link of no speed or a negative latency.
    """
    one = size if isinstance(size, int) else size.file_bytes
    speed = positive(gigabits_per_second, "The speed of the link")
    return not_negative(latency_ms, "The latency") / 1000 + one * 8 / (speed * 1e9)


def resident_adapters(size: AdapterSize, memory_bytes: float, *, base_bytes: float = 0.0) -> int:
    """How many adapters of this size stay in a memory (RAM or VRAM) beside the base model.

    memory_bytes: of the whole memory; base_bytes: of it that the base model and everything else takes. What all adapters share is
    counted once: LoRA-XS's A and B (`AdapterSize.shared_bytes`), VeRA's projections. For full fine-tuning every copy is a whole
    model. The precision is the saved one. Raises SettingsError for no memory at all.
    """
    free = (
        positive(memory_bytes, "The memory")
        - not_negative(base_bytes, "The memory taken by the base model")
        - size.shared_bytes
    )
    return max(0, int(free // size.resident_bytes))
