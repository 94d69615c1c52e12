"""`loraxs advise`: the smallest rank that is within the noise of the best on a task, and the learning rate that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options.common import Json, Model, Targets
from app.terminal import print_json, print_table, progress_bar, say
from loraxs_core.errors import SettingsError


def run(
    model: Model,
    task: Annotated[str, typer.Option(help="stsb, sst2, …, or csv:PATH for your own file (text[,text_b],label).")] = "stsb",
    ranks: Annotated[str, typer.Option(help="Ranks to try, comma-separated.")] = "4,8,16,32",
    rates: Annotated[
        str | None,
        typer.Option(help="Learning rates to try with each, comma-separated; around the method's own when left out."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the last round.")] = 200,
    seeds: Annotated[int, typer.Option(help="Seeds of the last round.")] = 3,
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    sequence: Annotated[int, typer.Option(help="Tokens a text; longer texts are cut.")] = 128,
    targets: Targets = "paper",
    validation: Annotated[int, typer.Option(help="Validation examples at most.")] = 512,
    test: Annotated[int | None, typer.Option(help="Test examples at most; all when left out.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder or file of the task's data, where it needs one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the races; those that were finished there are kept.")] = None,
    json: Json = False,
) -> None:
    """Which rank, and which learning rate: short races of LoRA-XS over both, the curve with intervals, and one sentence."""
    from analyzers.compare.rank_advice import RATES, AdviceSettings, advise_rank

    settings = AdviceSettings(
        model=model,
        task=task,
        ranks=_numbers(ranks, int, "--ranks"),
        rates=_numbers(rates, float, "--rates") if rates else RATES,
        steps=steps,
        seeds=seeds,
        batch=batch,
        sequence=sequence,
        targets=targets,
        validation_examples=validation,
        test_examples=test,
        data=data,
    )
    with progress_bar(f"Racing ranks on {task}", quiet=json) as progress:
        advice = advise_rank(settings, out, progress)
    if json:
        print_json(advice.to_dict())
        return
    print_table(
        f"{model} on {task}: {advice.metric} by rank, {steps} steps of {batch}, {seeds} seeds, {advice.trials} trials",
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


def _numbers(text: str, kind: type, option: str) -> list:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SettingsError(f"{option} takes numbers separated by commas, not {text!r}.") from None
