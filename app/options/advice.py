"""What races over ranks and learning rates are asked for, as options of `loraxs advise`, and as the words that reproduce it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.options.common import Targets
from app.options.data import ColumnOptions
from app.options.groups import spelled, takes
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from analyzers.compare.rank_advice import AdviceSettings


@dataclass(frozen=True)
class _Races:
    """`analyzers.compare.rank_advice.AdviceSettings` documents what these options mean."""

    task: Annotated[str, typer.Option(help="stsb, sst2, …, or data:SOURCE for a file, a folder or a hub id of your own.")] = (
        "stsb"
    )
    ranks: Annotated[str, typer.Option(help="Ranks to try, comma-separated.")] = "4,8,16,32"
    rates: Annotated[
        str | None,
        typer.Option(help="Learning rates to try with each, comma-separated; around the method's own when left out."),
    ] = None
    steps: Annotated[int, typer.Option(help="Optimizer steps of the last round.")] = 200
    seeds: Annotated[int, typer.Option(help="Seeds of the last round.")] = 3
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 32
    sequence: Annotated[int, typer.Option(help="Tokens a text; longer texts are cut.")] = 128
    targets: Targets = "paper"
    validation_examples: Annotated[int, typer.Option("--validation", help="Validation examples at most.")] = 512
    test_examples: Annotated[int | None, typer.Option("--test", help="Test examples at most; all when left out.")] = None
    data: Annotated[str | None, typer.Option(help="Folder or file of the task's data, where it needs one.")] = None


@dataclass(frozen=True)
class AdviceOptions(ColumnOptions, _Races):
    """All of them: the columns of the user's own data come last."""

    def settings(self, model: str) -> AdviceSettings:
        """The question. Raises SettingsError."""
        from analyzers.compare.rank_advice import AdviceSettings

        rates = _numbers(self.rates, float, "--rates") if self.rates else None
        same = ("task", "steps", "seeds", "batch", "sequence", "targets", "validation_examples", "test_examples", "data")
        return AdviceSettings(
            model=model,
            ranks=_numbers(self.ranks, int, "--ranks"),
            rates=rates,
            columns=self.columns,
            **{name: getattr(self, name) for name in same},
        )


takes_advice = takes("asked", AdviceOptions)


def words(settings: AdviceSettings) -> str:
    """`settings` as options: the task always, of the others those that differ from the default."""
    values: dict[str, Any] = {**vars(settings), **settings.columns}
    values["ranks"] = ",".join(map(str, settings.ranks))
    values["rates"] = ",".join(f"{rate:g}" for rate in settings.rates or ())
    return spelled(AdviceOptions, values, always=("task",))


def _numbers(text: str, kind: type, option: str) -> list:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SettingsError(f"{option} takes numbers separated by commas, not {text!r}.") from None
