"""What works on tiny random models of every architecture that transformers can build: `python -m benchmarks.architectures`.

    python -m benchmarks.architectures [--out TABLE.csv] [--part I/N] [MODEL_TYPE …]

Each model goes the whole way: saved, read, planned (every linear layer, rank 2), adapted by PEFT, trained a step where it takes
text, saved, sized, loaded again, verified, exported to LoRA, merged. A step passes when its result is that of transformers and PEFT,
number for number. What cannot be made tiny, or has nothing to adapt, is counted and named with its reason.
"""

from __future__ import annotations

import argparse
import csv
import gc
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from transformers import CONFIG_MAPPING
from transformers.utils import logging

from analyzers.ranks import Budget, make_plan
from analyzers.storage import adapter_size
from benchmarks.tiny_models import tiny_model
from loraxs_core.architecture import as_loaded, module_names
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.export import export_lora
from loraxs_core.merging import merge
from loraxs_core.tuner.folder import verify_adapter
from loraxs_core.tuner.layer import LoraXSLayer

STEPS = ("inspect", "plan", "adapter", "train", "reload", "size", "verify", "export", "merge")
PREFIX = "base_model.model."


class Wrong(Exception):
    """A step gave something else than transformers or PEFT."""


def walk(model_type: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(step, what to remark, mostly nothing) of each step done, in the order of `STEPS`; raises where one fails."""
    model = tiny_model(model_type)
    model_class = type(model)
    model.save_pretrained(folder / "base")
    model = model_class.from_pretrained(folder / "base")
    checkpoint = Checkpoint.open(folder / "base")
    loaded, paths = as_loaded(checkpoint), module_names(checkpoint, "own")
    for weight in loaded.weights:
        if weight.is_adaptable and weight.name in paths:
            held = model.get_submodule(paths[weight.name]).weight.detach().float().numpy()
            if not np.array_equal(loaded.read(weight), held.T if weight.kind == "conv1d" else held):
                raise Wrong(f"{weight.name} is not what transformers holds")
    yield "inspect", ""
    plan = make_plan(checkpoint, "uniform", budget=Budget.like_rank(2), targets="all-linear")
    yield "plan", ""
    adapted = get_peft_model(model, plan.lora_xs_config())
    layers = {name.removeprefix(PREFIX): one for name, one in adapted.named_modules() if isinstance(one, LoraXSLayer)}
    if {paths[name]: rank for name, rank in plan.ranks.items()} != {name: one.r["default"] for name, one in layers.items()}:
        raise Wrong(f"{len(plan.ranks)} modules planned, {len(layers)} adapted, or not the same")
    yield "adapter", ""
    yield "train", train(adapted, layers)
    with torch.no_grad():
        for index, one in enumerate(layers.values()):
            generator = torch.Generator().manual_seed(index)
            one.loraxs_R["default"].copy_(torch.randn(one.r["default"], one.r["default"], generator=generator))
    deltas = {name: one.get_delta_weight("default").detach().clone() for name, one in layers.items()}
    adapted.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(model_class.from_pretrained(folder / "base"), folder / "adapter")
    for name, delta in deltas.items():
        if not torch.equal(again.get_submodule(PREFIX + name).get_delta_weight("default"), delta):
            raise Wrong(f"{name} was loaded with another update")
    yield "reload", ""
    written = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    if (predicted := adapter_size(checkpoint, "lora-xs", plan=plan).file_bytes) != written:
        raise Wrong(f"{predicted:,} bytes predicted, {written:,} written")
    yield "size", ""
    bad = [check for check in verify_adapter(folder / "adapter", checkpoint) if check.status != "same"]
    if bad:
        raise Wrong(f"{bad[0].name} is {bad[0].status} ({len(bad)} of {len(deltas)})")
    yield "verify", ""
    export_lora(folder / "adapter", checkpoint, folder / "lora")
    lora = PeftModel.from_pretrained(model_class.from_pretrained(folder / "base"), folder / "lora")
    compare({name: lora.get_submodule(PREFIX + name).get_delta_weight("default") for name in deltas}, deltas)
    yield "export", ""
    merge(folder / "adapter", checkpoint, folder / "merged")
    merged, base = model_class.from_pretrained(folder / "merged"), model_class.from_pretrained(folder / "base")
    compare({name: merged.get_submodule(name).weight - base.get_submodule(name).weight for name in deltas}, deltas)
    yield "merge", ""


def compare(found: dict[str, torch.Tensor], deltas: dict[str, torch.Tensor]) -> None:
    """Raises Wrong for a module whose update is not there."""
    with torch.no_grad():
        lost = [name for name, delta in deltas.items() if float((found[name] - delta).norm()) > 1e-3 * float(delta.norm())]
    if lost:
        raise Wrong(f"{lost[0]} lost its update ({len(lost)} of {len(deltas)})")


def train(adapted: PeftModel, layers: dict[str, LoraXSLayer]) -> str:
    """One backward pass from text, where the model takes text; what to remark: no text, or layers it never reached."""
    tokens = torch.arange(4, 20)[None] % 100
    inputs = {"input_ids": tokens}
    if adapted.get_base_model().config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    try:
        out = adapted.train()(**inputs)
        first = next(one for one in out.values() if isinstance(one, torch.Tensor) and one.requires_grad)
        first.float().sum().backward()
    except Exception as error:  # it wants images, sounds, boxes, ...: whatever its own code raises
        return f"takes no bare text ({type(error).__name__})"
    finally:
        adapted.eval()
    unreached = [name for name, one in layers.items() if one.loraxs_R["default"].grad is None]
    return f"{len(unreached)} of {len(layers)} layers not reached by text, such as {unreached[0]}" if unreached else ""


def outcome(model_type: str) -> dict[str, str]:
    """A row of the table: the model type, ``yes`` or nothing for each step, and the reason or remark."""
    row = {"model_type": model_type, **dict.fromkeys(STEPS, ""), "remark": ""}
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        for step, remark in walk(model_type, folder):
            row[step] = "text" if step == "train" and not remark else "no text" if "no bare text" in remark else "yes"
            row["remark"] = remark or row["remark"]
            row[step] = row[step] if step == "train" else "yes"
    except Exception as error:  # the reason is what the table is for
        done = next((step for step in STEPS if not row[step]), "")
        where = traceback.extract_tb(error.__traceback__)[-1]
        inside = "" if isinstance(error, Wrong) else f" ({Path(where.filename).name}:{where.lineno})"
        reason = (str(error).strip().splitlines() or [""])[0]
        row["remark"] = f"{done}: {type(error).__name__}: {reason}{inside}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", metavar="MODEL_TYPE", help="all that transformers knows when left out")
    parser.add_argument("--out", type=Path, help="CSV file to write the table to")
    parser.add_argument("--part", default="1/1", help="only part I of N, so that several processes share the work")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    part, parts = map(int, asked.part.split("/"))
    rows = []
    for model_type in (asked.types or sorted(CONFIG_MAPPING))[part - 1 :: parts]:
        rows.append(outcome(model_type))
        print(
            f"{model_type:<36}{' '.join(step if rows[-1][step] else '-' for step in STEPS)}  {rows[-1]['remark'][:150]}",
            flush=True,
        )
        if asked.out:
            with asked.out.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, ["model_type", *STEPS, "remark"])
                table.writeheader()
                table.writerows(rows)
    built = [row for row in rows if row["inspect"] or row["remark"].startswith("inspect: Wrong")]
    adapted = [row for row in built if row["adapter"] or not row["remark"].startswith("plan: CheckpointError")]
    print(f"\n{len(rows)} architectures, {len(built)} of them built, {len(adapted)} with layers to adapt. Of these pass:")
    counts = Counter(step for row in adapted for step in STEPS if row[step])
    for step in STEPS:
        print(f"{step:<10}{counts[step]:>5} of {len(adapted)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
