"""One word and one sentence on a strategy, from both stages of its comparisons.

``supported``: after correction above zero at each arm's own rate, and above zero at equal rates, where the permuted control does not
gain as well, on at least half of the tasks that need adaptation; and no interval below zero anywhere. Either stage will do, but where
fresh seeds have decided, they decide alone.
``mixed``: as much on some task, and below zero on another. ``lead``: above zero in the exploration, and not decided on fresh seeds yet
(or confirmed on fewer than half of those tasks).
``not confirmed``: leads, none of which fresh seeds bore out. ``loses``: below zero after correction, and no lead.
``nothing shown``: none of these. ``no verdict``: too few seeds, or an adapter that does not clearly beat the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.planner.programme import CONTROLS
from benchmarks.planner.statistics import CONFIRMATION, EXPLORATION, SEEDS, Comparison
from benchmarks.planner.tasks import TASKS

SUPPORTED, MIXED, LEAD, NOT_CONFIRMED, LOSES, NOTHING = (
    "supported", "mixed", "lead", "not confirmed", "loses", "nothing shown",
)  # fmt: skip
MEANING = {
    SUPPORTED: "It beats uniform ranks after correction",
    NOT_CONFIRMED: "A lead that fresh seeds did not confirm",
    LOSES: "It loses to uniform ranks after correction",
    NOTHING: "No difference to uniform ranks is shown",
}


def verdict(arm: str, found: Sequence[Comparison]) -> tuple[str, str]:
    """(one word, one sentence) on the strategy `arm`, from all comparisons."""
    own = [one for one in found if one.arm == arm]
    if not own:
        return "not measured", "No paired trial of this program has been run with it yet."
    complete = [one for one in own if one.complete]
    if not any(one.stage == EXPLORATION for one in complete):
        return "no verdict", f"No verdict: {_lacking(own)}."
    word, meaning = _word(own, found)
    where = ", ".join(dict.fromkeys(one.model for one in complete))
    told = "; ".join(_told(one, found) for one in own if one.complete or one.stage == CONFIRMATION)
    return word, f"{meaning} ({where}, paired by seed): {told}.{_variants(arm, found)}"


def stands(one: Comparison, found: Sequence[Comparison]) -> bool:
    """Whether a gain of `one` outlives correction, equal rates and its control."""
    return one.complete and one.wide_low > 0 and one.equal_low > 0 and not shared(one, found)


def shared(one: Comparison, found: Sequence[Comparison]) -> bool:
    """Whether the same ranks in other layers gain on the same seeds as well."""
    return any(
        other.low > 0
        for other in found
        if (other.study, other.stage, other.arm) == (one.study, one.stage, one.arm + CONTROLS[0]) and other.seeds >= one.seeds
    )


def _word(own: Sequence[Comparison], found: Sequence[Comparison]) -> tuple[str, str]:
    complete = [one for one in own if one.complete]
    adapting = {one.task for one in complete if one.adapting}
    decided = {one.study for one in complete if one.stage == CONFIRMATION}
    last = [one for one in complete if one.stage == CONFIRMATION or one.study not in decided]
    won = {one.task for one in last if one.adapting and stands(one, found)}
    below = {one.task for one in complete if one.high < 0}
    leads = {one.study for one in own if one.lead}
    if won and 2 * len(won) >= len(adapting) and not below:
        return SUPPORTED, MEANING[SUPPORTED]
    if won:
        of = f"above zero after correction on {len(won)} of {len(adapting)} tasks that need adaptation ({_labels(won)})"
        return (
            (MIXED, f"A gain and a loss: {of}, below zero on {_labels(below)}")
            if below
            else (LEAD, f"A lead, not a result: {of}")
        )
    if leads - decided:
        return LEAD, "A lead, not a result: fresh seeds have yet to decide"
    if leads:
        return NOT_CONFIRMED, MEANING[NOT_CONFIRMED]
    if any(one.wide_high < 0 for one in complete):
        return LOSES, MEANING[LOSES]
    return NOTHING, MEANING[NOTHING]


def _variants(arm: str, found: Sequence[Comparison]) -> str:
    """What became of the strategy's variants, such as other factors of role."""
    tried = [one for one in found if one.arm.startswith(f"{arm}:") and one.counted]
    told = [f"{one.arm.partition(':')[2]} {one.tuned:+.1f} ({one.low:+.1f} to {one.high:+.1f})" for one in tried]
    places = dict.fromkeys(f"{TASKS[one.task][0].label} at r={one.rank}" for one in tried)
    return f" Variants, uncorrected, on {', '.join(places)}: {', '.join(told)}." if told else ""


def _labels(tasks: set[str]) -> str:
    return ", ".join(TASKS[task][0].label for task in sorted(tasks))


def _lacking(own: Sequence[Comparison]) -> str:
    seeds, needed = max(one.seeds for one in own), len(SEEDS[EXPLORATION])
    return (
        f"{seeds} of {needed} seeds so far"
        if seeds < needed
        else "the adapter does not clearly beat the head alone; ranks cannot matter there"
    )


def _told(one: Comparison, found: Sequence[Comparison]) -> str:
    place = f"{TASKS[one.task][0].label} at r={one.rank}"
    seeds = f"{one.seeds} seeds" if one.stage == EXPLORATION else f"{one.seeds} of {len(SEEDS[CONFIRMATION])} fresh seeds"
    control = ", and the same ranks in other layers gain as well" if one.low > 0 and shared(one, found) else ""
    if one.seeds < 2:
        return f"{place}, {seeds}: {one.tuned:+.1f} points"
    return (
        f"{place}, {seeds}: {one.tuned:+.1f} points ({one.low:+.1f} to {one.high:+.1f}; corrected for {one.family} "
        f"{one.wide_low:+.1f} to {one.wide_high:+.1f}), at equal rates {one.equal:+.1f} ({one.equal_low:+.1f} to "
        f"{one.equal_high:+.1f}){control}"
    )
