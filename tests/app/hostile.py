"""A model and a run whose names hold what a page, a figure, a file or a terminal would act on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from analyzers.compare import RunFolder, SweepSettings
from analyzers.ranks import Budget, make_plan
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.paths import data_dir

IMAGE = "![x](http://evil.example/a.png)"
MARKS = "![x](data:,) :red[y] $x$ \x1b[31m\u202e <b>b</b>"


def model_in(parent: Path) -> Path:
    """A small BERT with names of that kind: its folder, and a tensor of its own."""
    from transformers import BertConfig, BertModel

    folder = parent / "![x](data:,) :red[model] $x$"
    BertModel(
        BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    ).save_pretrained(folder)
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    tensors = {
        f"=cmd|{IMAGE}\x1b[31m\u202e <b>x</b> %{{y}} $x$ :red[y].weight": values,
        "[a](http://evil.example).weight": 2 * values,
    }
    save_file(tensors, folder / "extra.safetensors")
    names = dict.fromkeys(tensors, "extra.safetensors")
    with safe_open(folder / "model.safetensors", "np") as file:
        names |= dict.fromkeys(file.keys(), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def run_of(tiny: Path) -> RunFolder:
    """A run of the model in `tiny` whose folder, model, plan, failure, last word and log hold `MARKS`."""
    folder = data_dir("runs") / MARKS.replace("/", "!")
    model = tiny.parent / MARKS.replace("/", "!")
    if not model.exists():
        model.symlink_to(tiny)
    plan = make_plan(Checkpoint.open(tiny), "uniform", budget=Budget.like_rank(2))
    settings = SweepSettings(str(model), methods=("lora-xs", "lora"), plans={MARKS: plan, "x" * 250: plan}, steps=2)
    run = RunFolder(RunFolder.create(settings).path.rename(folder))  # a name that only somebody else gives
    config = json.loads(run.config_path.read_text())
    config["settings"]["model"] = str(model)  # as it was typed, not where the link leads
    run.config_path.write_text(json.dumps(config))
    with run.working() as writer:
        for trial in run.settings.trials():
            (run.path / "trials" / trial.id).mkdir(parents=True)
            writer.metric({**trial.about, "kind": "train", "step": 1, "epoch": 0.5, "value": 1.0})
            writer.failure(trial, f"It failed: {MARKS}.")
        writer.log(MARKS)
        writer.last_word(state="failed", error=f"None succeeded: {MARKS}.", message=MARKS)
    return run
