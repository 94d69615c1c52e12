"""How much a plan may spend: trained numbers, bytes on disk or on the GPU, as much as uniform ranks, or what a share of the gain takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analyzers.checks import whole
from loraxs_core.errors import PlanError
from loraxs_core.inventory import Weight


@dataclass(frozen=True)
class Budget:
    """Made by one of its class methods, which have the names of the kinds.

    kind: ``parameters`` (trained numbers, Σ r²), ``adapter_bytes`` (adapter_model.safetensors, header included), ``like_rank``,
    ``lora_parameters`` (trained numbers of a LoRA with these ranks, Σ r·(in + out)), ``gpu_bytes`` (what adapters keep on a GPU
    besides activations: A and B, and R with its gradient and AdamW's two states, in float32) or ``gain_kept`` (the smallest plan that
    keeps so many per cent of the strategy's whole gain). value: how many. dtype: precision of the saved adapter. task: the task type of the model it is saved from (it decides the
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

    @classmethod
    def lora_parameters(cls, count: int) -> Budget:
        """At most `count` trained numbers of a LoRA with the plan's ranks. Raises PlanError unless it is a whole number of at least 1."""
        return cls("lora_parameters", whole(count, "A budget of LoRA's trained numbers", error=PlanError))

    @classmethod
    def gpu_bytes(cls, count: int) -> Budget:
        """Adapters of at most `count` bytes on a GPU. Raises PlanError unless it is a whole number of at least 1."""
        return cls("gpu_bytes", whole(count, "A budget of GPU bytes", error=PlanError))

    @classmethod
    def gain_kept(cls, percent: int) -> Budget:
        """The smallest plan that keeps `percent` of the gain. Raises PlanError unless it is a whole number from 1 to 100."""
        if whole(percent, "The share of the gain to keep, in per cent,", error=PlanError) > 100:
            raise PlanError(f"The share of the gain to keep is at most 100 per cent, not {percent}.")
        return cls("gain_kept", int(percent))

    def __str__(self) -> str:
        match self.kind:
            case "parameters" | "lora_parameters" | "gpu_bytes":
                return f"{self.value:,} {self.unit}"
            case "adapter_bytes":
                return f"{self.value:,} bytes of {self.dtype}"
            case "gain_kept":
                return f"{self.value} % of the gain"
            case _:
                return f"as many as uniform rank {self.value}"

    @property
    def unit(self) -> str:
        """What a plan's cost is counted in while it is sought."""
        return {"lora_parameters": "trained numbers of LoRA", "gpu_bytes": "bytes on the GPU"}.get(self.kind, "trained numbers")

    def numbers(self, targets: Sequence[Weight]) -> int | None:
        """The largest Σ r² over `targets`; None for the kinds where it depends on the plan (see `make_plan`).

        Raises PlanError when the uniform rank it follows is larger than one of the matrices.
        """
        if self.kind == "parameters":
            return self.value
        if self.kind != "like_rank":
            return None
        smallest = min(targets, key=lambda weight: weight.full_rank)
        if self.value > smallest.full_rank:
            raise PlanError(
                f"Rank {self.value} is larger than the matrix {smallest.name} ({smallest.shape[0]} x {smallest.shape[1]}); "
                f"the largest uniform rank here is {smallest.full_rank}."
            )
        return len(targets) * self.value**2
