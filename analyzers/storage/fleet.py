"""What many adapters weigh together, and what keeping them costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from analyzers.checks import not_negative, whole
from analyzers.storage.size import AdapterSize

GB = 10**9  # object stores bill and disks are sold in decimal gigabytes
GIB = 2**30


@dataclass(frozen=True)
class FleetCost:
    """adapters x replicas x versions copies of one file.

    files: how many. fleet_bytes: their length together; fleet_gb in 10⁹ bytes, fleet_gib in 2³⁰. cost_per_month: of keeping them, of
    the requests and of what leaves the store, in the currency of the prices; storage, request and egress cost apart.
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
    price_per_gb_month: float = 0.023,
    loads_per_month: float = 0.0,
    price_per_1000_loads: float = 0.0004,
    egress_price_per_gb: float = 0.0,
) -> FleetCost:
    """The cost of keeping and serving a fleet.

    size: of one adapter, or its bytes. adapters: one a task or a user, 1 to 10⁹ and beyond. replicas: copies of each. versions: how
    many past versions are retained, the current one included. price_per_gb_month: for 10⁹ bytes. loads_per_month: how often an
    adapter is read from the store in a month, over the whole fleet; each is one request and moves one file. The default prices are
    those of S3 Standard in us-east-1 in 2025 (0.023 a GB-month, 0.0004 a thousand GETs), reads within the region free.

    Raises SettingsError for 0 adapters, a negative price and the like.
    """
    for name, value in (("adapters", adapters), ("replicas", replicas), ("versions", versions)):
        whole(value, f"The number of {name}")
    not_negative(price_per_gb_month, "The price per GB and month")
    not_negative(loads_per_month, "The number of loads per month")
    not_negative(price_per_1000_loads, "The price per 1,000 loads")
    not_negative(egress_price_per_gb, "The egress price per GB")
    one = size if isinstance(size, int) else size.file_bytes
    files = int(adapters) * int(replicas) * int(versions)
    return FleetCost(
        adapters=int(adapters),
        replicas=int(replicas),
        versions=int(versions),
        files=files,
        fleet_bytes=files * one,
        storage_per_month=files * one / GB * price_per_gb_month,
        requests_per_month=loads_per_month / 1000 * price_per_1000_loads,
        egress_per_month=loads_per_month * one / GB * egress_price_per_gb,
    )
