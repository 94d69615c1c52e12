"""How the commands and the Python code that a page shows name each method's rank, plan and layers."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from analyzers.methods import METHODS
from app import state
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.targets import select_targets

if TYPE_CHECKING:
    from analyzers.plans import RankPlan


def targets(checkpoint: Checkpoint, plan: RankPlan | None) -> dict:
    """``{"targets": names}`` for a plan of other layers than the paper adapts; else {}, as those are what everything takes anyway."""
    if plan is None or set(plan.ranks) == {weight.name for weight in select_targets(checkpoint, "paper")}:
        return {}
    return {"targets": tuple(plan.ranks)}


def flags(asked: dict, targets: dict) -> str:
    """`` --plan FILE``, or `` --rank R`` and the layers where they are not the paper's; for one method."""
    if "plan" in asked:
        return f" --plan {shlex.quote(str(state.plan_file()))}"
    rank = f" --rank {asked['rank']}" if "rank" in asked else ""
    return rank + target_flags(targets)


def target_flags(targets: dict) -> str:
    """`` --targets NAMES``, or nothing for the layers the paper adapts."""
    return f" --targets {','.join(targets['targets'])}" if targets else ""


def python(ranks: dict[str, dict], targets: dict) -> str:
    """A dictionary, method -> its keyword arguments, as source code."""
    rows = []
    for method, asked in ranks.items():
        if "plan" in asked:
            rows.append(f"    {method!r}: {{'plan': RankPlan.load({str(state.plan_file())!r})}},\n")
        else:
            rows.append(f"    {method!r}: { {**asked, **(targets if METHODS[method].config else {})}!r},\n")
    return "{\n" + "".join(rows) + "}"


def imports(ranks: dict[str, dict]) -> str:
    """The further imports that `python` needs."""
    planned = any("plan" in asked for asked in ranks.values())
    return ("from analyzers.ranks import RankPlan\n" if planned else "") + "from sample_models import open_model\n"
