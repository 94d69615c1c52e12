"""What is trained, the most valuable first: studies of one model, one task and one budget, seed by seed, every rate on every seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEAD = "head"  # trained alone: beside every plan, as nothing can be said where the adapter does not clearly beat it
CORE = ("uniform", "role", "role:inverted", "role:permuted", "energy", "gradient")
LEAD = (
    "uniform",
    "role",
    "role:permuted",
)  # the first lead that there was, and its control: what a further task is asked first
CONTROLS = (":permuted", ":inverted")  # how the arms end that no claim is made for
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
    "fisher:permuted",
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


# Two stages. What is found among many arms on the first seeds is a lead; leads alone are tried again, on seeds that nothing was chosen on.
EXPLORED, FRESH = tuple(range(5)), tuple(range(5, 15))
SOONER, LATER = FRESH[:5], FRESH[5:]  # both were fixed before any ran; a lead is decided once, on all of them
FEW = (0.03, 0.06)  # rates at r = 4
MORE = (0.01, 0.02)  # rates at r = 12
FISHER = ("uniform", "fisher", "fisher:permuted")
GRADIENT = ("uniform", "gradient", "gradient:permuted")
LEADS = (*FISHER, "role", "role:permuted")
STUDIES = (
    Study("minilm", "wordorder", 4, FEW, CORE, EXPLORED),
    Study("minilm", "agreement", 4, FEW, LEAD, EXPLORED),
    Study("minilm", "halves", 4, FEW, LEAD, EXPLORED),
    Study("minilm", "wordorder", 4, FEW, LEADS, SOONER),
    Study("minilm", "wordorder", 12, MORE, (*CORE, "gradient:permuted"), EXPLORED),
    Study("minilm", "wordorder", 12, MORE, GRADIENT, SOONER),
    Study("minilm", "agreement", 4, FEW, (*LEAD, *FISHER[1:]), EXPLORED),
    Study("minilm", "halves", 4, FEW, (*LEAD, *FISHER[1:]), EXPLORED),
    Study("minilm", "wordorder", 4, FEW, LEADS, LATER),
    Study("minilm", "wordorder", 12, MORE, GRADIENT, LATER),
    Study("minilm", "agreement", 4, FEW, FISHER[:2], FRESH),
    Study("minilm", "wordorder", 4, FEW, ("fisher:permuted",), EXPLORED),
    Study("minilm", "sst2", 4, FEW, LEADS, EXPLORED),
    Study("minilm", "mrpc", 4, FEW, LEADS, EXPLORED),
    Study("minilm", "rte", 4, FEW, LEADS, EXPLORED),
    Study("minilm", "stsb", 4, FEW, CORE, EXPLORED),
    Study("minilm", "wordorder", 4, FEW, ALL, EXPLORED),
    Study("smollm2-135m", "boolq", 4, MORE, LEAD, EXPLORED),
    Study("smollm2-135m", "arc-easy", 4, MORE, LEAD, EXPLORED),
    Study("minilm", "stsb", 12, MORE, CORE, EXPLORED),
    Study("minilm", "agreement", 4, FEW, ALL, EXPLORED),
    Study("minilm", "halves", 4, FEW, ALL, EXPLORED),
    Study("minilm", "tense", 4, FEW, ALL, EXPLORED),
    Study("minilm", "sst2", 4, FEW, ALL, EXPLORED),
    Study("smollm2-135m", "boolq", 4, MORE, CORE, EXPLORED),
    Study("smollm2-135m", "arc-easy", 4, MORE, CORE, EXPLORED),
)
