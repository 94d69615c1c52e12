"""What a trial records of a decoder is what lm-evaluation-harness itself makes of the saved adapter, merged, saved and loaded anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from analyzers.compare.opened import Opened
from analyzers.compare.tasks import TASKS, Splits, Task
from analyzers.compare.tasks.base import Definition
from analyzers.compare.tasks.definitions import examples
from analyzers.compare.tasks.metrics import CAUSAL
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.checkpoint import Checkpoint
from tests.analyzers.compare_helpers import tiny_decoder

NUMBERS = ["one", "two", "three", "four"]
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
BOOLQ = Definition("boolq", "super_glue/boolq")
NEXT = Definition("next", config=WRITTEN, tokens=4)


def weighed_rows():
    words = [(a, b) for a in NUMBERS for b in NUMBERS]
    return [{"passage": f"{a} two {b}", "question": f"after {b}", "label": n % 2} for n, (a, b) in enumerate(words)]


def written_rows():
    return [{"prompt": f"after {word} comes", "answer": NUMBERS[(n + 1) % 4]} for n, word in enumerate(NUMBERS)] * 4


def by_the_harness(folder: Path, model: Path, rows: list[dict], given: dict, metric: str) -> float:
    """`simple_evaluate` on the folder `model`, which reads `rows` from a file by a definition on disk."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "definition").mkdir()
    parts = dict.fromkeys(("dataset_name", "training_split", "validation_split", "fewshot_split", "tag"))
    files = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
        "test_split": "test",
    }
    (folder / "definition" / "own.yaml").write_text(
        yaml.safe_dump({**parts, **given, **files, "task": "own", "num_fewshot": 0})
    )
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=["own"],
        task_manager=TaskManager(include_path=str(folder / "definition"), include_defaults=False),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    return float(found["results"]["own"][metric])


@pytest.mark.parametrize("kind", ["weighed", "written"])
def test_the_record_is_the_harness_own_figure(kind, tmp_path, own_folders):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = Checkpoint.open(tiny_decoder(tmp_path / "llama"))
    if kind == "weighed":
        import lm_eval.tasks

        rows, definition, reported, metric = weighed_rows(), BOOLQ, TASKS["boolq"].metric, "acc,none"
        given = {"include": str(Path(lm_eval.tasks.__path__[0]) / "super_glue" / "boolq" / "default.yaml")}
    else:
        rows, definition, reported, metric, given = written_rows(), NEXT, "exact_match", "exact_match,none", WRITTEN
    made = examples(definition, rows)
    task = Task("own", "Own", "", CAUSAL, reported, read=lambda *_: Splits(made, made[:4], made), definition=definition)
    trial = TrialSettings(
        "lora", 0, 0.02, 1e-3, steps=100, batch=8, sequence=32, rank=16, targets="all-linear", evaluations=1, device="cpu"
    )
    record = run_trial(trial, Opened(checkpoint, task, task.read()), tmp_path / "trial")
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, tmp_path / "trial" / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(checkpoint.folder).save_pretrained(tmp_path / "merged")
    theirs = by_the_harness(tmp_path, tmp_path / "merged", rows, given, metric)
    assert record["score"] == pytest.approx(theirs), record
    assert theirs > 0, "a score of nothing would prove nothing"
