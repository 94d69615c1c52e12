"""The options that say how long and how often each method is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyzers.compare import SweepSettings

ALWAYS = ("seeds", "seed_numbers", "steps", "batch", "sequence")  # said whatever they are


@dataclass(frozen=True)
class TrainingOptions:
    """Seeds, steps and what a step reads, of every method alike."""

    seeds: Annotated[int, typer.Option(help="Seeds a method, from 0; with several, intervals are given.")] = 1
    seed_numbers: Annotated[str | None, typer.Option(help="NUMBER[,NUMBER…]: these seeds instead, such as 3,7.")] = None
    steps: Annotated[int, typer.Option(help="Optimizer steps a trial.")] = 100
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 32
    sequence: Annotated[int, typer.Option(help="Tokens a text; longer texts are cut.")] = 128
    head_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the head in every method; the head-only method's when left out.")
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """What of `SweepSettings` they say. Raises SettingsError for seeds that are no whole numbers."""
        common = {"steps": self.steps, "batch": self.batch, "sequence": self.sequence, "head_learning_rate": self.head_rate}
        return {"seeds": self.seeds if self.seed_numbers is None else _numbers(self.seed_numbers), **common}

    @classmethod
    def values(cls, sweep: SweepSettings) -> dict[str, Any]:
        """What they are for `sweep`, by option."""
        seeds = tuple(cast("Sequence[int]", sweep.seeds))  # as `SweepSettings` puts them
        counted = seeds == tuple(range(len(seeds)))
        return {
            **({"seeds": len(seeds)} if counted else {"seed_numbers": seeds}),
            "steps": sweep.steps,
            "batch": sweep.batch,
            "sequence": sweep.sequence,
            "head_rate": sweep.head_learning_rate,
        }


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise SettingsError(f"--seed-numbers takes whole numbers separated by commas, such as 3,7, not {text!r}.")
    return tuple(int(word) for word in words)
