"""What a session of the page found, as one report: model, spectra, plan, cost, comparison; whatever of it there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analyzers.compare import RunFolder
from analyzers.compare.behind import behind_the_best
from analyzers.compare.fronts import SCORE, front
from analyzers.compare.overlays import scored
from analyzers.compare.tasks import METRIC_LABELS
from analyzers.memory import GPUS, MemorySettings, estimate_memory, usual_length
from analyzers.memory.gpus import Gpu
from analyzers.methods import MAIN_METHODS, METHODS
from analyzers.plans import RankPlan
from analyzers.spectra import Spectra
from analyzers.storage import Scenario
from analyzers.units import GIB
from app import answers, charts, figure_tables, frames
from app.report import Figure, Section, Table, as_markdown, document
from app.results_table import RESULT_COLUMNS, TUNING_COLUMNS, summary_rows, tuning_rows
from app.units import bytes_text, count_text, gib_text, money_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError

MAP_METRIC = "rank_90"
BATCH = 8  # of the training step, as the Cost page begins
ADAPTERS = 1_000_000  # of the fleet, as the Cost page begins


@dataclass(frozen=True)
class Session:
    """spectra, plan, run: None where there is none yet. run: the comparison on show. card: the GPU that training is to fit, where
    one was chosen."""

    checkpoint: Checkpoint
    spectra: Spectra | None = None
    plan: RankPlan | None = None
    run: RunFolder | None = None
    card: Gpu | None = None

    def html(self) -> str:
        """A self-contained page."""
        return document(**self._parts())

    def markdown(self) -> str:
        return as_markdown(**self._parts())

    def sections(self) -> list[Section]:
        """What there is, in the order of the work."""
        checkpoint, plan = self.checkpoint, self.plan
        sections = [_model(checkpoint)]
        sections += [_spectra(self.spectra, plan)] if self.spectra is not None and self.spectra.layers else []
        sections += [_plan(checkpoint, plan, self.spectra)] if plan else []
        sections.append(_cost(checkpoint, plan))
        sections.append(_memory(checkpoint, plan, self.card))
        sections += [_race(self.run)] if self.run is not None and "score" in self.run.summary() else []
        return sections

    def _parts(self) -> dict[str, Any]:
        checkpoint, plan = self.checkpoint, self.plan
        facts = [
            ("Numbers in the model's matrices", count_text(checkpoint.parameters)),
            ("Layers", count_text(checkpoint.layers)),
        ]
        facts += [("Trained by the plan", count_text(plan.trainable))] if plan else []
        return {
            "title": f"{checkpoint.name}: what LoRA-XS Workbench found",
            "summary": answers.model(checkpoint) + ".",
            "facts": facts,
            "sections": self.sections(),
            "footer": "Made by LoRA-XS Workbench.",
        }


def _model(checkpoint: Checkpoint) -> Section:
    table = frames.roles(checkpoint)
    rows = [
        (row["role"], str(row["matrices"]), row["shapes (out x in)"], f"{row['parameters']:,}", f"{row['share (%)']:.1f}")
        for row in table.to_dict("records")
    ]
    return Section("Model", "", [Table(("role", "matrices", "shapes (out x in)", "parameters", "share (%)"), rows)])


def _spectra(spectra: Spectra, plan: RankPlan | None) -> Section:
    frame = spectra.frame(plan)
    return Section(
        "Spectra",
        answers.spectra(frame, planned="energy_at_rank" in frame) + ".",
        [
            Figure(
                lambda dark: charts.layer_map(frame, MAP_METRIC, dark=dark),
                f"{charts.metric_label(MAP_METRIC)}, layer by module.",
                figure_tables.by_layer(frame, MAP_METRIC, charts.metric_label(MAP_METRIC)),
            )
        ],
    )


def _plan(checkpoint: Checkpoint, plan: RankPlan, spectra: Spectra | None) -> Section:
    frame = plan.frame(checkpoint, spectra)
    rows = [
        (row.name, charts.role_label(row.role), str(row.rank), f"{row.trainable:,}") for row in frame.itertuples(index=False)
    ]
    return Section(
        "Plan",
        f"Strategy {plan.strategy}: {plan.trainable:,} trained numbers of a budget of {plan.budget:,}. {plan.evidence}",
        [
            Figure(
                lambda dark: charts.rank_bars(frame, dark=dark),
                "The rank of every module.",
                Table(("module", "role", "rank", "r²"), rows),
            )
        ],
    )


def _cost(checkpoint: Checkpoint, plan: RankPlan | None) -> Section:
    scenario = Scenario(model=checkpoint.name, adapters=ADAPTERS, plan=plan.to_dict() if plan else None)
    rows = [
        (row["label"], str(row["rank"]), count_text(row["trainable"]), bytes_text(row["file_bytes"]), bytes_text(row["fleet_bytes"]), money_text(row["cost_per_month"]))
        for row in scenario.frame(checkpoint).to_dict("records")
    ]  # fmt: skip
    columns: Sequence[str] = ("method", "rank", "trained numbers", "one file", "the fleet", "a month")
    return Section("Cost", f"{count_text(scenario.adapters)} adapters kept.", [Table(columns, rows)])


def _memory(checkpoint: Checkpoint, plan: RankPlan | None, card: Gpu | None) -> Section:
    """The training step that the Cost page begins with, against the person's card, or all cards of the catalogue."""
    step = MemorySettings(batch=BATCH, sequence=usual_length(checkpoint))
    estimates, refused = {}, []
    for method in MAIN_METHODS:
        asked = step.but(method=method, plan=plan if method == "lora-xs" else None)
        try:
            estimates[METHODS[method].label] = estimate_memory(checkpoint, asked)
        except WorkbenchError as error:
            refused.append(str(error))
    said = f"A step of {BATCH} sequences of {step.sequence:,} tokens, without checkpointing or quantisation."
    if not estimates:
        return Section("GPU memory of training", " ".join([said, *dict.fromkeys(refused)]), [])
    rows = [
        (label, gib_text(one.peak_reserved), " to ".join(map(gib_text, one.interval)), one.how)
        for label, one in estimates.items()
    ]
    cards = {gpu.name: gpu.bytes / GIB for gpu in ([card] if card else GPUS)}
    held, intervals = frames.memory(estimates), frames.memory_intervals(estimates)
    return Section(
        "GPU memory of training",
        " ".join([said, *([f"{answers.fits(card, estimates)}."] if card else []), *dict.fromkeys(refused)]),
        [
            Figure(
                lambda dark: charts.memory_bars(held, cards, intervals=intervals, dark=dark),
                f"Memory at the peak, by part, against {card.name if card else 'the cards there are'}.",
                figure_tables.memory_parts(held, cards),
            ),
            Table(("method", "peak reserved", "interval", "how"), rows),
        ],
    )


def _race(run: RunFolder) -> Section:
    summary = run.summary()
    done = scored(summary)
    done = done.assign(front=front(done, run.draws(done), "parameters", SCORE))
    metric = METRIC_LABELS[done["metric"].iloc[0]]
    tried = tuning_rows(run)
    return Section(
        "Comparison",
        f"{run.settings.model} on {run.settings.task}, {run.settings.steps} steps of {run.settings.batch}. {answers.race(done, metric, behind_the_best(run, done))}.",
        [
            Table(RESULT_COLUMNS, summary_rows(summary)),
            Figure(
                lambda dark: charts.accuracy_against_parameters(done, metric=f"test {metric}", dark=dark),
                "Test score, with its 95 % interval, and size.",
                figure_tables.scores(done, metric),
            ),
            *(
                [Table(TUNING_COLUMNS, tried, "Learning rates tried, on training examples that are set aside.")]
                if tried
                else []
            ),
        ],
    )
