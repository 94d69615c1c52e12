"""How much a plan may spend: trained numbers, bytes of the adapter file, or as many numbers as uniform ranks would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analyzers.checks import whole
from loraxs_core.errors import PlanError
from loraxs_core.inventory import Weight


@dataclass(frozen=True)
class Budget:
    """Made by `Budget.parameters`, `Budget.adapter_bytes` or `Budget.like_rank`.

    kind: ``parameters`` (trained numbers, Σ r²), ``adapter_bytes`` (adapter_model.safetensors, header included) or ``like_rank``.
    value: how many. dtype: precision of the saved adapter. task: the task type of the model it is saved from (it decides the
    tensors' names, and so the header); both for ``adapter_bytes`` alone.
    """

    kind: str
    value: int
    dtype: str = "float32"
    task: str | None = None

    @classmethod
    def parameters(cls, count: int) -> Budget:
        """At most `count` trained numbers. Raises PlanError unless it is a whole number of at least 1."""
        return cls("parameters", whole(count, "A budget of trained numbers", error=PlanError))

    @classmethod
    def adapter_bytes(cls, count: int, dtype: str = "float32", task: str | None = None) -> Budget:
        """An adapter file of at most `count` bytes. Raises PlanError unless it is a whole number of at least 1."""
        return cls("adapter_bytes", whole(count, "A budget of adapter bytes", error=PlanError), dtype, task)

    @classmethod
    def like_rank(cls, rank: int) -> Budget:
        """As many trained numbers as rank `rank` in every layer. Raises PlanError unless it is a whole number of at least 1."""
        return cls("like_rank", whole(rank, "The rank that the budget follows", error=PlanError))

    def __str__(self) -> str:
        match self.kind:
            case "parameters":
                return f"{self.value:,} trained numbers"
            case "adapter_bytes":
                return f"{self.value:,} bytes of {self.dtype}"
            case _:
                return f"as many as uniform rank {self.value}"

    def numbers(self, targets: Sequence[Weight]) -> int | None:
        """The largest Σ r² over `targets`; None for ``adapter_bytes``, where it depends on the plan (see `make_plan`).

        Raises PlanError when the uniform rank it follows is larger than one of the matrices.
        """
        if self.kind == "adapter_bytes":
            return None
        if self.kind == "parameters":
            return self.value
        smallest = min(targets, key=lambda weight: weight.full_rank)
        if self.value > smallest.full_rank:
            raise PlanError(
                f"Rank {self.value} is larger than the matrix {smallest.name} ({smallest.shape[0]} x {smallest.shape[1]}); "
                f"the largest uniform rank here is {smallest.full_rank}."
            )
        return len(targets) * self.value**2
