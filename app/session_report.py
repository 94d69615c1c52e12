"""What a session of the page found, as one report: model, spectra, plan, cost, comparison; whatever of it there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyzers.compare import RunFolder
from analyzers.compare.behind import behind_the_best
from analyzers.compare.fronts import SCORE, front
from analyzers.compare.overlays import scored
from analyzers.compare.tasks import METRIC_LABELS
from analyzers.memory import GPUS, MemorySettings, estimate_memory, usual_length
from analyzers.memory.gpus import Gpu
from analyzers.methods import MAIN_METHODS
from analyzers.plans import RankPlan
from analyzers.ranks import uniform_baseline
from analyzers.spectra import Spectra
from analyzers.storage import Scenario
from analyzers.units import GIB
from app import answers, charts, figure_tables, frames
from app.report import Figure, Section, Table, as_markdown, document
from app.results_table import RESULT_COLUMNS, TUNING_COLUMNS, summary_rows, tuning_rows
from app.units import bytes_text, count_text, gib_text, money_text
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError

if TYPE_CHECKING:
    import pandas as pd

MAP_METRIC = "rank_90"
BATCH = 8  # of the training step, as the Cost page begins
ADAPTERS = 1_000_000  # of the fleet, as the Cost page begins


@dataclass(frozen=True)
class Session:
    """spectra, plan, run: None where there is none yet. run: the comparison on show. card: the GPU that training is to fit, where
    one was chosen. scenario, training: what the Cost page asks, the latter a method; None: what it begins with. metric: of the map."""

    checkpoint: Checkpoint
    spectra: Spectra | None = None
    plan: RankPlan | None = None
    run: RunFolder | None = None
    card: Gpu | None = None
    scenario: Scenario | None = None
    training: Mapping[str, MemorySettings] | None = None
    metric: str = MAP_METRIC

    def html(self) -> str:
        """A self-contained page."""
        return document(**self._parts())

    def markdown(self) -> str:
        return as_markdown(**self._parts())

    def sections(self) -> list[Section]:
        """What there is, in the order of the work."""
        checkpoint, plan = self.checkpoint, self.plan
        sections = [_model(checkpoint)]
        if self.spectra is not None and self.spectra.layers:
            sections.append(_spectra(self.spectra, plan, self.metric))
        sections += [_plan(checkpoint, plan, self.spectra)] if plan else []
        sections.append(_cost(checkpoint, self.scenario or _usual_fleet(checkpoint, plan)))
        sections.append(_memory(checkpoint, self.training or _usual_training(checkpoint, plan), self.card))
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


def _spectra(spectra: Spectra, plan: RankPlan | None, metric: str) -> Section:
    frame = spectra.frame(plan)
    metric = metric if metric in frame else MAP_METRIC
    return Section(
        "Spectra",
        answers.spectra(frame, planned="energy_at_rank" in frame) + ".",
        [
            Figure(
                lambda dark: charts.layer_map(frame, metric, dark=dark),
                f"{charts.metric_label(metric)}, layer by module.",
                figure_tables.by_layer(frame, metric, charts.metric_label(metric)),
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
        f"{answers.plan(plan, frame, *_baseline(checkpoint, plan, spectra))}. Strategy {plan.strategy}: {plan.trainable:,} trained numbers "
        f"of a budget of {plan.budget:,}. {plan.evidence}",
        [
            Figure(
                lambda dark: charts.rank_bars(frame, dark=dark),
                "The rank of every module.",
                Table(("module", "role", "rank", "r²"), rows),
            )
        ],
    )


def _baseline(checkpoint: Checkpoint, plan: RankPlan, spectra: Spectra | None) -> tuple[RankPlan | None, pd.DataFrame | None]:
    """Uniform ranks of the same budget, and their frame; nothing where the plan is that."""
    if plan.strategy == "uniform":
        return None, None
    uniform = uniform_baseline(checkpoint, plan)
    return uniform, uniform.frame(checkpoint, spectra)


def _usual_fleet(checkpoint: Checkpoint, plan: RankPlan | None) -> Scenario:
    return Scenario(model=checkpoint.name, adapters=ADAPTERS, plan=plan.to_dict() if plan else None)


def _usual_training(checkpoint: Checkpoint, plan: RankPlan | None) -> dict[str, MemorySettings]:
    step = MemorySettings(batch=BATCH, sequence=usual_length(checkpoint))
    return {method: step.but(method=method, plan=plan if method == "lora-xs" else None) for method in MAIN_METHODS}


def _cost(checkpoint: Checkpoint, scenario: Scenario) -> Section:
    frame = scenario.frame(checkpoint)
    rows = [
        (row["label"], str(row["rank"]), count_text(row["trainable"]), f"{row['file_bytes']:,}", bytes_text(row["fleet_bytes"]), money_text(row["cost_per_month"]))
        for row in frame.to_dict("records")
    ]  # fmt: skip
    columns: Sequence[str] = ("method", "rank", "trained numbers", "one file (bytes)", "the fleet", "a month")
    said = answers.fleet(scenario, frame).replace("\\$", "$")
    kept = f"{scenario.replicas} x {scenario.versions} files of each, saved as {scenario.dtype}"
    loads = f", {scenario.loads_per_month:,.0f} loads a month" if scenario.loads_per_month else ""
    return Section("Cost", f"{said}. {kept[0].upper()}{kept[1:]}{loads}.", [Table(columns, rows)])


def _memory(checkpoint: Checkpoint, training: Mapping[str, MemorySettings], card: Gpu | None) -> Section:
    """training: method -> its training step. Against the person's card, or all cards of the catalogue."""
    estimates, refused = {}, []
    for method, asked in training.items():
        try:
            estimate = estimate_memory(checkpoint, asked)
            estimates[frames.memory_label(method, estimate)] = estimate
        except WorkbenchError as error:
            refused.append(str(error))
    said = _step(next(iter(training.values())))
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


def _step(asked: MemorySettings) -> str:
    """What all methods have alike, in words: the batch, and what is not as it is by itself."""
    usual = MemorySettings(batch=asked.batch, sequence=asked.sequence)
    own = {"method", "rank", "plan", "targets", "batch", "sequence"}
    others = {
        one.name: getattr(asked, one.name)
        for one in dataclasses.fields(asked)
        if one.name not in own and getattr(asked, one.name) != getattr(usual, one.name)
    }
    further = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in others.items())
    light = "" if asked.gradient_checkpointing or asked.quantize else ", without checkpointing or quantisation"
    return f"A step of {asked.batch} sequences of {asked.sequence:,} tokens{light}{'; ' + further if further else ''}."


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
