"""`loraxs advise`: the smallest rank that is within the noise of the best on a task, and the learning rate that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options.advice import AdviceOptions, takes_advice
from app.options.common import Json, Model
from app.terminal import print_json, print_table, progress_bar, say


@takes_advice
def run(
    model: Model,
    asked: AdviceOptions,
    out: Annotated[Path | None, typer.Option(help="Folder of the races; those that were finished there are kept.")] = None,
    json: Json = False,
) -> None:
    """Which rank, and which learning rate: short races of LoRA-XS over both, the curve with intervals, and one sentence."""
    from analyzers.compare.rank_advice import advise_rank

    settings = asked.settings(model)
    with progress_bar(f"Racing ranks on {settings.task}", quiet=json) as progress:
        advice = advise_rank(settings, out, progress)
    if json:
        print_json(advice.to_dict())
        return
    print_table(
        f"{model} on {settings.task}: {advice.metric} by rank, {settings.steps} steps of {settings.batch}, {settings.seeds} seeds, "
        f"{advice.trials} trials",
        ("rank", "learning rate", "trained numbers", "score (95 %)", "behind the best (95 %)"),
        [
            (
                str(point.rank),
                f"{point.rate:g}",
                f"{point.trained:,}",
                f"{point.score:.3f} ({point.low:.3f} to {point.high:.3f})",
                "the best"
                if point.rank == advice.best
                else f"{point.behind:+.3f} ({point.behind_low:+.3f} to {point.behind_high:+.3f})",
            )
            for point in advice.points
        ],
        note=f"The head alone: {advice.head[0]:.3f} ({advice.head[1]:.3f} to {advice.head[2]:.3f}). {advice.sentence}",
    )
    say(f"Races: {advice.folder}")
