"""What is trained, the most valuable first: studies of one model, one task and one budget, seed by seed, every rate on every seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEAD = "head"  # trained alone: beside every plan, as nothing can be said where the adapter does not clearly beat it
CORE = ("uniform", "role", "role:inverted", "role:permuted", "energy", "gradient")
LEAD = ("uniform", "role", "role:permuted")  # the one lead that there is, and its control: what a further task is asked first
ALL = (
    *CORE,
    "gradient:permuted",
    "role:x1.5",
    "role:x3",
    "role:x4",
    "role:bothx2",
    "stable-rank",
    "effective-rank",
    "marchenko-pastur",
    "gavish-donoho",
    "activation",
    "adam-gradient",
    "fisher",
    "warm-up",
    "blend",
)


@dataclass(frozen=True)
class Study:
    """rank: the budget is Σ r² of this uniform rank. rates: of the adapter, all on every seed."""

    model: str
    task: str
    rank: int
    rates: tuple[float, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.model}_{self.task}_r{self.rank}"

    def trials(self) -> Iterator[tuple[str, float, int]]:
        """(arm, rate, seed), all of a seed before the next, so that whatever is finished is paired."""
        for seed in self.seeds:
            yield HEAD, 0.0, seed
            for arm in self.arms:
                for rate in self.rates:
                    yield arm, rate, seed


FIVE, TEN = tuple(range(5)), tuple(range(10))
STUDIES = (
    Study("minilm", "wordorder", 4, (0.03, 0.06), CORE, FIVE),
    Study("minilm", "agreement", 4, (0.03, 0.06), LEAD, FIVE),
    Study("minilm", "halves", 4, (0.03, 0.06), LEAD, FIVE),
    Study("minilm", "wordorder", 4, (0.03, 0.06), LEAD, TEN),
    Study("minilm", "stsb", 4, (0.03, 0.06), CORE, FIVE),
    Study("minilm", "agreement", 4, (0.03, 0.06), LEAD, TEN),
    Study("minilm", "halves", 4, (0.03, 0.06), LEAD, TEN),
    Study("minilm", "wordorder", 12, (0.01, 0.02), LEAD, FIVE),
    Study("minilm", "wordorder", 12, (0.01, 0.02), CORE, FIVE),
    Study("minilm", "stsb", 12, (0.01, 0.02), CORE, FIVE),
    Study("minilm", "wordorder", 4, (0.03, 0.06), ALL, FIVE),
    Study("minilm", "tense", 4, (0.03, 0.06), ALL, FIVE),
    Study("minilm", "sst2", 4, (0.03, 0.06), ALL, FIVE),
    Study("smollm2-135m", "boolq", 4, (0.01, 0.02), CORE, FIVE),
    Study("smollm2-135m", "arc-easy", 4, (0.01, 0.02), CORE, FIVE),
)
