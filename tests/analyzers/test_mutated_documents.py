"""Plans, scenarios and the settings of runs with something wrong in them: refused in one sentence, or taken for exactly what they say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from analyzers.plans import RankPlan
from analyzers.storage import Scenario
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, SettingsError, WorkbenchError
from tests.fuzz import dumped, mutated_bytes, mutated_json, one_sentence, some, survived


def damaged(document: dict, number: int) -> bytes:
    """`document` as JSON, mutation number `number` of it: of its values, or of its bytes."""
    draw = random.Random(number)
    if draw.random() < 0.25:
        return mutated_bytes(json.dumps(document).encode(), draw)
    return dumped(mutated_json(document, draw), draw)


def strictly(text: bytes) -> object:
    """What the JSON says, if it says one thing; raises ValueError. Written apart from the reader under test."""

    def pairs(found):
        if len({name for name, _ in found}) != len(found):
            raise ValueError("twice")
        return dict(found)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("deep") from None


def number(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def text_map(value: object) -> bool:
    return isinstance(value, dict) and all(value)


# -- plans --------------------------------------------------------------------------------------------------------------------


def plan_is_allowed(document: object) -> bool:
    """Whether the format allows it: every rule of a plan once more, in the words of this test."""
    if (
        not isinstance(document, dict)
        or document.get("format") != "loraxs-rank-plan"
        or type(document.get("version")) is not int
    ):
        return False
    if document["version"] != 1:
        return False
    texts = ("model", "strategy", "requested", "evidence")
    needed = {"format", "version", *texts, "ranks", "shapes", "targets", "alpha_over_r", "budget", "notes"}
    if not needed <= set(document) <= needed | {"modules", "trainable", "file_bytes"}:
        return False
    ranks, shapes, modules = document["ranks"], document["shapes"], document.get("modules", {})
    if not all(isinstance(document[name], str) for name in texts) or not all(map(text_map, (ranks, shapes, modules))):
        return False
    if not ranks or set(ranks) != set(shapes) or not set(modules) <= set(ranks):
        return False
    for name, rank in ranks.items():
        shape = shapes[name]
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(type(side) is int and 1 <= side <= 2**31 for side in shape)
        ):
            return False
        if type(rank) is not int or not 1 <= rank <= min(shape):
            return False
    if not all(isinstance(path, str) and path for path in modules.values()):
        return False
    paths = [*ranks, *modules.values()]
    targets, notes, budget = document["targets"], document["notes"], document["budget"]
    if not isinstance(targets, list) or not targets or not all(isinstance(one, str) and one for one in targets):
        return False
    if not all(any(path == one or path.endswith(f".{one}") for path in paths) for one in targets):
        return False
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        return False
    if not number(document["alpha_over_r"]) or document["alpha_over_r"] <= 0:
        return False
    if not number(budget) or budget < 1 or int(budget) != budget:
        return False
    told = document.get("trainable", sum(rank**2 for rank in ranks.values()))
    return type(told) is int and told == sum(rank**2 for rank in ranks.values())


def a_damaged_plan(which: int, plan: dict, model: str, folder: str) -> str:
    text = damaged(plan, which)
    try:
        said = strictly(text)
    except ValueError:
        said = None
    file = Path(folder) / "plan.json"
    file.write_bytes(text)
    try:
        found = RankPlan.load(file)
    except PlanError as refusal:
        error = refusal
    else:
        error = None
    if error is not None:
        one_sentence(error, PlanError)
        assert not plan_is_allowed(said), f"refused without need: {error}"
        outcome = "refused"
    else:
        assert plan_is_allowed(said), f"accepted: {text[:2000]!r}"
        beside = {"modules": {}, "trainable": found.trainable} | (
            {"file_bytes": said["file_bytes"]} if "file_bytes" in said else {}
        )
        assert {**found.to_dict(), **{key: beside[key] for key in beside if key == "file_bytes"}} == {**beside, **said}
        assert RankPlan.from_dict(found.to_dict()) == found
        used(found, Checkpoint.open(model))
        outcome = "right"
    return outcome


def used(plan: RankPlan, checkpoint: Checkpoint) -> None:
    """What pages and commands do with a plan that was read: an answer or the project's own sentence."""
    try:
        plan.frame(checkpoint)
    except WorkbenchError as error:
        one_sentence(error)
        return
    assert plan.spec().rank == plan.most_frequent_rank
    assert plan.lora_xs_config() is not None


@some()
def test_a_damaged_plan_is_refused_or_exactly_what_it_says(numbers, plan_document, tiny_bert, tmp_path):
    found = survived(a_damaged_plan, numbers, plan_document, str(tiny_bert), str(tmp_path))
    assert found["refused"] > len(numbers) // 2


# -- scenarios ----------------------------------------------------------------------------------------------------------------


def scenario_is_allowed(document: object, model_plan: dict) -> bool:
    """Whether the format allows the fields of one value; what its plan and its methods mean is asked of their own readers."""
    known = {
        "model", "methods", "ranks", "plan", "targets", "dtype", "task", "options", "adapters", "replicas", "versions",
        "price_per_gb_month", "loads_per_month", "price_per_1000_loads", "egress_price_per_gb", "gigabits_per_second", "memory_gib",
        "base_bytes_in_memory", "title", "note",
    }  # fmt: skip
    if not isinstance(document, dict) or not {"model"} <= set(document) <= known:
        return False
    if not isinstance(document["model"], str) or not document["model"].strip():
        return False
    for name in ("targets", "title", "note", "dtype"):
        if not isinstance(document.get(name, ""), str):
            return False
    if not isinstance(document.get("task"), str | None) or not isinstance(document.get("methods", []), list):
        return False
    if not all(isinstance(method, str) for method in document.get("methods", [])):
        return False
    for name in ("adapters", "replicas", "versions"):
        value = document.get(name, 1)
        if not number(value) or value < 1 or int(value) != value:
            return False
    for name in (
        "price_per_gb_month",
        "loads_per_month",
        "price_per_1000_loads",
        "egress_price_per_gb",
        "base_bytes_in_memory",
    ):
        if not number(document.get(name, 0)) or document.get(name, 0) < 0:
            return False
    if not all(number(document.get(name, 1)) and document.get(name, 1) > 0 for name in ("gigabits_per_second", "memory_gib")):
        return False
    for name in ("ranks", "options"):
        if document.get(name) is not None and not text_map(document[name]) and document[name] != {}:
            return False
    for rank in (document.get("ranks") or {}).values():
        if not number(rank) or rank < 1 or int(rank) != rank:
            return False
    return document.get("plan") is None or plan_is_allowed(document["plan"])


def a_damaged_scenario(which: int, scenario: dict, model: str, folder: str) -> str:
    text = damaged(scenario, which)
    try:
        said = strictly(text)
    except ValueError:
        said = None
    file = Path(folder) / "scenario.json"
    file.write_bytes(text)
    try:
        found = Scenario.load(file)
    except SettingsError as error:
        one_sentence(error, SettingsError)
        return "refused"
    assert scenario_is_allowed(said, scenario["plan"]), f"accepted: {text[:3000]!r}"
    again = json.loads(found.to_json())
    assert {name: again[name] for name in said} == said
    assert Scenario.from_json(found.to_json()) == found
    try:
        frame = found.frame(Checkpoint.open(model))
    except WorkbenchError as error:
        one_sentence(error)
        return "refused when asked"
    numbers = frame.select_dtypes("number").to_numpy(dtype=float)
    assert all(math.isfinite(value) for value in numbers.ravel()), frame.to_dict("records")
    assert (frame["cost_per_month"] >= 0).all()
    return "right"


@some()
def test_a_damaged_scenario_is_refused_or_exactly_what_it_says(numbers, scenario_document, tiny_bert, tmp_path):
    found = survived(a_damaged_scenario, numbers, scenario_document, str(tiny_bert), str(tmp_path))
    assert found["refused"] > len(numbers) // 3
