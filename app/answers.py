"""The one line on top of a page: what it answers, in words made of figures that the analyzers give. No maths, no Streamlit.

Every name in a line is text for Markdown already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analyzers.compare.statistics import SAME
from analyzers.compare.summary import adapter_size, upward
from analyzers.spectra.outliers import spread
from app.charts import role_label
from app.text import markdown
from app.units import bytes_text, count_text, gib_text, money_text, percent_text

if TYPE_CHECKING:
    import pandas as pd

    from analyzers.memory import MemoryEstimate
    from analyzers.memory.gpus import Gpu
    from analyzers.plans import RankPlan
    from analyzers.storage import Scenario
    from loraxs_core.checkpoint import Checkpoint


def model(checkpoint: Checkpoint) -> str:
    """What is in it."""
    adaptable = sum(weight.is_adaptable for weight in checkpoint.weights)
    return (
        f"{markdown(checkpoint.name)} holds {count_text(checkpoint.parameters)} parameters in {len(checkpoint.weights):,} matrices; "
        f"{adaptable:,} of them take adapters"
    )


def spectra(frame: pd.DataFrame, *, planned: bool) -> str:
    """How much of a layer a rank can hold. frame: of `Spectra.frame`, with ``energy_at_rank`` where `planned`."""
    found = spread(frame)
    if found is None:
        return "All of these matrices are zero"
    if found.least == found.most:
        line = f"Every layer needs {percent_text(found.least)} of its directions for 90 % of its energy"
    else:
        line = (
            f"For 90 % of its energy a layer needs {100 * found.least:.0f} to {percent_text(found.most, digits=0)} of its directions, "
            f"half of the layers at most {percent_text(found.middle, digits=0)}"
        )
    return line + (f"; the plan's ranks keep {percent_text(frame['energy_at_rank'].mean())}" if planned else "")


def plan(made: RankPlan, frame: pd.DataFrame, uniform: RankPlan | None, uniform_frame: pd.DataFrame | None) -> str:
    """What changes against uniform ranks. frame, uniform_frame: of `RankPlan.frame`; no `uniform` where the plan is that one."""
    said = f"{made.trainable:,} trained numbers, {percent_text(made.trainable / made.budget)} of the budget"
    if uniform is None:
        return f"{_ranks(frame)}: the uniform baseline, {said}"
    if dict(made.ranks) == dict(uniform.ranks):
        return f"{_ranks(frame)}: no different from uniform ranks, {said}"
    line = f"{_by_role(frame)}, where uniform is {_range(uniform_frame['rank'])}"
    if "energy_at_rank" in frame:
        own, other = frame["energy_at_rank"].mean(), uniform_frame["energy_at_rank"].mean()
        line += f"; energy kept {percent_text(own)}, by uniform {percent_text(other)}"
    return line


def fleet(scenario: Scenario, frame: pd.DataFrame) -> str:
    """What all of the adapters cost. frame: of `Scenario.frame`."""
    rows = frame.to_dict("records")
    own = next((row for row in rows if row["method"] == "lora-xs"), rows[0])
    many = f"{count_text(scenario.adapters)} {'adapter' if scenario.adapters == 1 else 'adapters'}"
    line = f"{_money(own)} a month for {many} with {markdown(own['label'])} ({bytes_text(own['fleet_bytes'])})"
    others = [f"{markdown(row['label'])} {_money(row)}" for row in rows if row is not own]
    return line + (f"; {', '.join(others)}" if others else "")


def fits(gpu: Gpu, estimates: Mapping[str, MemoryEstimate]) -> str:
    """Whether training fits the card. estimates: method as it is called -> its estimate, the method that matters most first."""
    verdicts = {label: _verdict(gpu, estimate) for label, estimate in estimates.items()}
    label = "LoRA-XS" if "LoRA-XS" in estimates else next(iter(estimates))
    low, high = estimates[label].interval
    line = f"{markdown(label)} {verdicts[label]} {markdown(gpu.name)}: {gib_text(low)} to {gib_text(high)} of {gib_text(gpu.bytes)}"
    others = {name: verdict for name, verdict in verdicts.items() if name != label}
    alike = [markdown(name) for name, verdict in others.items() if verdict == verdicts[label]]
    unlike = [f"{markdown(name)} {verdict}" for name, verdict in others.items() if verdict != verdicts[label]]
    also = "nor" if verdicts[label] == "does not fit" else "so"
    verb = "may" if verdicts[label] == "may fit" else "does" if len(alike) == 1 else "do"
    said = [*([f"{also} {verb} {_and(alike)}"] if alike else []), *unlike]
    return f"{line}; {', '.join(said)}" if said else line


def adapter(usable: int, modules: int, base: str, first: tuple[str, str] | None) -> str:
    """Whether it is right for this base. first: name and verdict of the first module that is not."""
    if first is None:
        return f"Right for {markdown(base)}: all {modules} modules are rebuilt as they were trained"
    name, verdict = first
    return f"Not right for {markdown(base)}: {modules - usable} of {modules} modules differ; {markdown(name)}: {verdict}"


def race(done: pd.DataFrame, metric: str, apart: pd.DataFrame | None = None) -> str:
    """Who wins, or why nobody can tell.

    done: of `RunFolder.summary`, the rows that have a score. metric: as it is called. apart: what each other is behind the best, on the
    same examples (`analyzers.compare.paired.differences`) or seed by seed (`summary.paired_differences`); None where nothing tells.
    """
    judged = upward(done)
    best = done.loc[judged["score"].idxmax()]
    others = judged.drop(best.name)
    score = f"{markdown(metric)} {best['score']:.3f}"
    if best.get("interval"):
        score += f" ({best['low']:.3f} to {best['high']:.3f})"
    if others.empty:
        return f"{markdown(best['label'])} has {score}, with nothing beside it"
    line = f"{markdown(best['label'])} leads with {score}"
    if apart is not None and len(apart):
        one = done["seeds"].max() == 1
        near = apart.loc[~((apart["high"] < 0) & (one | (apart["high"] - apart["low"] >= SAME))), "label"].tolist()
        if near:
            where = "on these examples" if one else "seed by seed"
            return f"Cannot tell {_and([markdown(best['label']), *map(markdown, near)])} apart {where}: {line}"
        if one:
            return f"{line}, ahead of every other on the same examples by more than their chance; one seed"
        return f"{line}, ahead of every other seed by seed, over {int(done['seeds'].min())} seeds"
    if done["seeds"].max() == 1:
        second = done.loc[others["score"].idxmax()]
        return f"{line}, {markdown(second['label'])} has {second['score']:.3f}; one seed cannot tell how much of that is chance"
    near = others.loc[others["high"] >= judged.loc[best.name, "low"], "label"].tolist()
    if near:
        return f"Cannot tell {_and([markdown(best['label']), *map(markdown, near)])} apart: {line}, and the intervals overlap"
    side = "above" if judged is done else "below"
    return f"{line}, {side} the interval of every other"


def best_here(done: pd.DataFrame, metric: str, apart: pd.DataFrame | None) -> str:
    """What the table of results says, in a sentence; and what it cannot say. As in `race`."""
    judged = upward(done)
    best = done.loc[judged["score"].idxmax()]
    one = done["seeds"].max() == 1
    words = (
        f"Best here: **{markdown(best['label'])}** with {markdown(metric)} {best['score']:.3f} at {count_text(best['parameters'])} "
        f"trained numbers ({bytes_text(adapter_size(best))})."
    )
    if apart is not None and len(apart):
        behind = [
            f"{markdown(row.label)} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in apart.itertuples()
        ]
        words += f" {'On the same test examples, drawn anew' if one else 'Seed by seed'}: {'; '.join(behind)}. An interval that holds 0 shows no difference"
        return (
            words
            + (", and another seed may move all of them." if one else "; not corrected for several comparisons.")
            + _no_width(apart, one)
        )
    if one and best.get("interval"):
        return words + " Its interval is that of the test examples; another seed may move it."
    if one:
        return (
            words
            + " One seed says nothing about the spread, and this run kept no predictions: run it again, with several seeds."
        )
    others = judged.drop(best.name)
    if near := others.loc[others["high"] >= judged.loc[best.name, "low"], "label"].tolist():
        words += (
            f" Its 95 % interval overlaps with that of {markdown(', '.join(near))}, so the order may be chance; "
            "the differences seed by seed, below, tell more."
        )
    return words


def _no_width(apart: pd.DataFrame, one: bool) -> str:
    """What to make of intervals over seeds that all differ by the same."""
    return (
        " One without width shows nothing: all its seeds agree."
        if not one and (apart["high"] - apart["low"] < SAME).any()
        else ""
    )


def _money(row: Mapping[str, object]) -> str:
    return money_text(row["cost_per_month"]).replace("$", "\\$")


def _verdict(gpu: Gpu, estimate: MemoryEstimate) -> str:
    low, high = estimate.interval
    return "fits" if high <= gpu.bytes else "may fit" if low <= gpu.bytes else "does not fit"


def _ranks(frame: pd.DataFrame) -> str:
    return (
        f"{'Rank' if frame['rank'].min() == frame['rank'].max() else 'Ranks'} {_range(frame['rank'])} in {len(frame):,} layers"
    )


def _by_role(frame: pd.DataFrame) -> str:
    """``Rank 24 for MLP down (output dense), 12 for the others``, the largest ranks first."""
    alike: dict[tuple[int, int], list[str]] = {}
    for role, ranks in frame.groupby("role", sort=False)["rank"]:
        alike.setdefault((int(ranks.max()), int(ranks.min())), []).append(role_label(role))
    ordered = sorted(alike.items(), reverse=True)
    if len(ordered) == 1:
        return _ranks(frame)
    named = [f"{_text(low, high)} for {_and(roles)}" for (high, low), roles in ordered]
    (high, low), last = ordered[-1]
    if len(last) > 2:
        named[-1] = f"{_text(low, high)} for the others"
    return "Rank " + ", ".join(named)


def _range(ranks: pd.Series) -> str:
    return _text(ranks.min(), ranks.max())


def _text(low: int, high: int) -> str:
    return f"{low} to {high}" if low < high else f"{low}"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
