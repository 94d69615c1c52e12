"""Files with something wrong in them, through the commands that read them: an answer, or exit code 2 and one sentence.

The same mutators as the tests of the library's readers (`tests/analyzers/test_mutated_*.py`), which know what each file means; here it
is what the person types and gets.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from analyzers.plans import RankPlan
from analyzers.storage import Scenario
from loraxs_core.errors import WorkbenchError
from tests.analyzers import test_mutated_documents as documents
from tests.analyzers.compare_helpers import tiny_decoder, tiny_model
from tests.analyzers.test_mutated_documents import damaged
from tests.analyzers.test_mutated_tasks import damaged as damaged_csv
from tests.fuzz import commanded, mutated_bytes, mutated_json, some, survived

TRAINING = ("--methods", "head-only", "--steps", "1", "--batch", "4", "--evaluations", "1", "--json")
PATIENCE = 60.0  # seconds for one that is trained on


def refuses(read, *given) -> bool:
    try:
        read(*given)
    except WorkbenchError:
        return True
    return False


# -- plans and scenarios ------------------------------------------------------------------------------------------------------


def plan_commands(model: str, file: Path, sound: Path) -> list[list[str]]:
    """Every way to give a plan to a command that answers within a second."""
    return [
        ["size", model, "--plan", str(file), "--json"],
        ["fleet", model, "--plan", str(file), "--json"],
        ["plan", "diff", str(sound), str(file), "--json"],
        ["plan", "diff", str(file), str(sound)],
        ["compare", model, "--task", f"csv:{sound.with_suffix('.csv')}", "--plan", str(file), "--methods", "lora-xs", "--json"],
        ["memory", model, "--plan", str(file), "--batch", "1", "--sequence", "8", "--json"],
    ]


def a_damaged_plan_in_a_command(which: int, plan: dict, model: str, folder: str) -> str:
    file, sound = Path(folder) / f"{which}.json", Path(folder) / "sound.json"
    sound.write_text(json.dumps(plan))
    file.write_bytes(damaged(plan, which))
    words = plan_commands(model, file, sound)[which % 6]
    if words[0] == "compare":  # there is no such CSV: what is wrong with the plan is said first, and nothing is trained
        words += ["--out", str(Path(folder) / "run")]
    code, _, said = commanded(words)
    unreadable = refuses(RankPlan.load, file)
    if words[0] != "compare":
        assert code or not unreadable, said
    if unreadable:
        assert str(file) in said, said
    assert not (Path(folder) / "run").exists()
    return "refused" if code else "answered"


@some(quick=6)
def test_a_damaged_plan_given_to_a_command(numbers, plan_document, tiny_bert, tmp_path):
    found = survived(a_damaged_plan_in_a_command, numbers, plan_document, str(tiny_bert), str(tmp_path), seconds=PATIENCE)
    assert found["refused"] >= len(numbers) // 3


def a_damaged_scenario_in_a_command(which: int, scenario: dict, folder: str) -> str:
    file = Path(folder) / f"{which}.json"
    file.write_bytes(damaged(scenario, which))
    code, out, said = commanded(["fleet", "--scenario", str(file), *(["--json"] if which % 2 else [])])
    assert code or not refuses(Scenario.load, file), said
    if not code and which % 2:
        text = file.read_bytes()
        assert documents.scenario_is_allowed(documents.strictly(text), scenario["plan"]), text[:2000]
        assert all(row["cost_per_month"] >= 0 for row in json.loads(out)["methods"]), out
    return "refused" if code else "answered"


@some(quick=6)
def test_a_damaged_scenario_given_to_a_command(numbers, scenario_document, tmp_path):
    found = survived(a_damaged_scenario_in_a_command, numbers, scenario_document, str(tmp_path), seconds=PATIENCE)
    assert found["refused"] >= len(numbers) // 3


# -- data ---------------------------------------------------------------------------------------------------------------------


def compared(model: str, task: str, folder: str) -> str:
    """What `loraxs compare` says to the data; a run that it trained holds one finished trial and scores that its metric can have."""
    run = Path(folder) / "run"
    shutil.rmtree(run, ignore_errors=True)
    code, out, _ = commanded(["compare", model, "--task", task, "--out", str(run), *TRAINING])
    if code:
        return "refused"
    (record,) = json.loads(out)["trials"]
    assert record["state"] == "done", record
    return "trained"


def a_damaged_csv_in_a_command(which: int, model: str, folder: str) -> str:
    file = Path(folder) / f"{which}.csv"
    file.write_bytes(damaged_csv(which))
    said = compared(model, f"csv:{file}", folder)
    file.unlink()
    return said


@some(quick=3)
def test_a_damaged_csv_given_to_compare(numbers, words_model, tmp_path):
    found = survived(a_damaged_csv_in_a_command, numbers, str(words_model), str(tmp_path), seconds=PATIENCE)
    assert found["refused"] + found["trained"] == len(numbers)


def table(draw: random.Random) -> list[dict]:
    """Rows as people have them: texts with a class or a number, prompts with completions, conversations, plain texts."""
    kinds = (
        lambda n: {"text": f"the film was {'good' if n % 2 else 'bad'} {n}", "label": n % 2},
        lambda n: {"text": f"a story {n}", "text_b": f"it felt {n % 5}", "label": n * 0.37},
        lambda n: {"prompt": f"one two after {n}", "completion": "three"},
        lambda n: {"messages": [{"role": "user", "content": f"after {n}"}, {"role": "assistant", "content": "four"}]},
        lambda n: {"text": f"one two three four after comes {n}"},
    )
    return (
        [kinds[draw.randrange(5)](number) for number in range(40)]
        if draw.random() < 0.1
        else list(map(draw.choice(kinds), range(40)))
    )


def a_damaged_table(which: int, encoder: str, decoder: str, folder: str) -> str:
    draw = random.Random(which)
    rows = table(draw)
    model = decoder if {"prompt", "messages"} & rows[0].keys() or "label" not in rows[0] else encoder
    ending = draw.choice((".jsonl", ".json"))
    for _ in range(draw.choice((1, 1, 3, 40))):
        at = draw.randrange(len(rows))
        rows[at] = mutated_json(rows[at] if isinstance(rows[at], dict) else {}, draw)
    written = [json.dumps(row) for row in rows]
    text = ("\n".join(written) if ending == ".jsonl" else f"[{','.join(written)}]").encode("utf-8", errors="surrogatepass")
    file = Path(folder) / f"{which}{ending}"
    file.write_bytes(mutated_bytes(text, draw) if draw.random() < 0.4 else text)
    said = compared(model, f"data:{file}", folder)
    file.unlink()
    return said


@some(quick=3)
def test_a_damaged_table_given_to_compare(numbers, words_model, answers_model, tmp_path):
    found = survived(a_damaged_table, numbers, str(words_model), str(answers_model), str(tmp_path), seconds=PATIENCE)
    assert found["refused"] + found["trained"] == len(numbers)


@pytest.fixture(scope="module")
def words_model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def answers_model(tmp_path_factory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(autouse=True)
def _own_places(own_folders, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(own_folders / "datasets"))
