"""How near the memory estimates come to publicly measured fine-tunes, beside public calculators on the same cases.

    python -m benchmarks.memory_accuracy [folder of measured_memory*.json] [--json]

Every figure is `estimate_memory` of documented settings, as `loraxs memory` gives it; nothing is reached that a user cannot reach.
The measurements are not part of the repository: by default they are read from `../shared/data`. What each training script did was
read in its source (`SOURCES` below); what is not published is what its source states as a limit, or the default of its libraries,
and is fitted to no figure. The calculators are evaluated from their published formulas, cited below.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from analyzers.memory import CONTEXT, MemoryEstimate, MemorySettings, estimate_memory
from analyzers.memory.settings import own_dtype, position_limit
from analyzers.memory.trainers import TRAINERS
from analyzers.units import GIB
from benchmarks.memory_cases import Case, read_cases
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError
from sample_models import open_model
from sample_models.catalogue import CATALOGUE

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def _weights(case: Case) -> float:
    """Bytes of the weights as loaded."""
    each = {"fp32": 4, "bf16": 2, "fp16": 2}[_dtype(case)]
    return case.checkpoint.parameters * ({"4bit": 0.5, "8bit": 1}.get(case.settings.quantize, each))


def accelerate_estimate(case: Case) -> float:
    """``accelerate estimate-memory`` (accelerate's own function, called): training with Adam at batch 1, whatever the method."""
    from accelerate.commands.estimate import estimate_training_usage

    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[_dtype(case)]
    return max(estimate_training_usage(case.checkpoint.parameters * 4, dtype).values()) / GIB


def hf_mem(case: Case) -> float:
    """hf-mem 0.5.6 (PyPI): the weights in the precision they are loaded in; it is made for inference."""
    return _weights(case) / GIB


def hf_vram_calc(case: Case) -> float:
    """hf-vram-calc 1.0.9 (PyPI), calculator.py: full = 4 x weights x 1.3; LoRA = (weights + adapter overhead) x 1.2."""
    weights = _weights(case) / GIB
    if case.settings.method == "full":
        return weights * 4.0 * 1.3
    adapter = case.checkpoint.parameters * 0.25 * 2 * _rank(case) / 4096 / 1e9 * 2 * 4.0
    return (weights + adapter) * 1.2


def llama_factory(case: Case) -> float:
    """LLaMA-Factory's README, "Hardware Requirement", for x billion parameters: full 18x GB, LoRA 2x GB, QLoRA x and x/2 GB."""
    billions = case.checkpoint.parameters / 1e9
    if case.settings.method == "full":
        factor = 18.0
    else:
        factor = {"8bit": 1.0, "4bit": 0.5}.get(case.settings.quantize, 2.0)
    return billions * factor * 1e9 / GIB


def alloc_ghost(case: Case) -> float:
    """alloc 0.0.16 (PyPI), ghost.py: weights + fp32 gradients + 12 bytes of Adam + B·S·H·bytes a layer, and 10 %; 8 bytes of Adam
    in fp32. It knows no adapters."""
    parameters = case.checkpoint.parameters
    half = _dtype(case) != "fp32"
    width = case.checkpoint.config["hidden_size"]
    layers = max(1, round(parameters / (12 * width**2)))
    tokens = case.settings.batch * case.settings.sequence
    each = 2 if half else 4
    total = parameters * (each + 4 + (12 if half else 8)) + layers * tokens * width * each
    return 1.1 * total / GIB


def deepspeed_zero3(case: Case) -> float:
    """DeepSpeed's `estimate_zero3_model_states_mem_needs` (runtime/zero/stage3.py) without offload, its closed form: 18 bytes a number
    over the GPUs and the largest layer gathered; states of a full fine-tune, no activations."""
    parameters = case.checkpoint.parameters
    largest = max(weight.parameters for weight in case.checkpoint.weights)
    return (4 * largest + 18 * parameters / case.settings.gpus) / GIB


def qmemcalc_rule(case: Case) -> float:
    """The rule of thumb behind several web pages (EleutherAI, "Transformer Math 101"): mixed precision AdamW 16 bytes a number for a
    full fine-tune, weights alone for a frozen base, and 20 % of it for all else."""
    if case.settings.trains_adapter:
        return 1.2 * _weights(case) / GIB
    return 1.2 * 16 * case.checkpoint.parameters / GIB


CALCULATORS: dict[str, Callable[[Case], float]] = {
    "accelerate estimate-memory": accelerate_estimate,
    "hf-mem": hf_mem,
    "hf-vram-calc": hf_vram_calc,
    "LLaMA-Factory table": llama_factory,
    "alloc ghost": alloc_ghost,
    "DeepSpeed ZeRO-3 estimator": deepspeed_zero3,
    "Transformer Math rule": qmemcalc_rule,
}


def _dtype(case: Case) -> str:
    return case.settings.base_dtype or own_dtype(case.checkpoint)


def _rank(case: Case) -> int:
    config = case.settings.peft_config or {}
    return int(config.get("r") or case.settings.rank or 64)


@dataclass(frozen=True)
class Row:
    """A case and its estimate. error: of the figure that was measured, as a share. inside: whether the reserved memory, or that of the
    card, lies in the stated interval; None where neither was measured. seconds: of the estimate."""

    case: Case
    estimate: MemoryEstimate | None
    seconds: float
    refused: str = ""

    @property
    def group(self) -> str:
        if self.case.source in INDICATIVE:
            return "indicative"
        if self.case.sharded:
            return "several GPUs"
        return "one GPU, a setting guessed" if self.case.guessed == ("sequence",) else "one GPU"

    @property
    def figure(self) -> float:
        """GiB in the measure of the case."""
        size = self.estimate.peak_allocated if self.case.metric == "allocated" else self.estimate.peak_reserved
        return size / GIB + (self.context if self.case.metric == "card" else 0.0)

    @property
    def context(self) -> float:
        return sum(CONTEXT) / 2 / GIB if self.case.context is None else self.case.context

    @property
    def error(self) -> float:
        return self.figure / self.case.measured - 1

    @property
    def reserved(self) -> float | None:
        """GiB that PyTorch held, as measured; of a card less the middle of the usual CUDA context."""
        if self.case.metric == "reserved":
            return self.case.measured
        card = self.case.measured if self.case.metric == "card" else self.case.card
        return None if card is None else card - self.context

    def inside(self, scale: float = 1.0) -> bool | None:
        """Whether the interval holds the reserved memory. scale: of the interval's widths."""
        if self.reserved is None:
            return None
        low, high = (end / self.estimate.peak_reserved - 1 for end in self.estimate.interval)
        # The context of a card is an interval as well; where the source states it, it is known.
        slack = 0.0 if self.case.metric == "reserved" or self.case.context else (CONTEXT[1] - CONTEXT[0]) / 2 / GIB
        peak = self.estimate.peak_reserved / GIB
        return peak * (1 + scale * low) - slack <= self.reserved <= peak * (1 + scale * high) + slack

    @property
    def needed(self) -> float:
        """By what the interval's widths had to be multiplied to hold the reserved memory."""
        low, high = (end / self.estimate.peak_reserved - 1 for end in self.estimate.interval)
        off = self.reserved * GIB / self.estimate.peak_reserved - 1
        return off / (high if off > 0 else low)


# Model code that is not transformers', or figures of which most settings are guesses.
INDICATIVE = ("torchtune", "PEFT issue")


def measure(case: Case) -> Row:
    begun = time.perf_counter()
    try:
        estimate, refused = estimate_memory(case.checkpoint, case.settings, use_cache=False), ""
    except WorkbenchError as error:
        estimate, refused = None, str(error)
    return Row(case, estimate, time.perf_counter() - begun, refused)


def score(rows: list[Row]) -> dict[str, float | int]:
    """What the README quotes of a group of rows."""
    errors = [abs(row.error) for row in rows]
    inside = [held for row in rows if (held := row.inside()) is not None]
    return {
        "rows": len(rows),
        "median": statistics.median(errors),
        "largest": max(errors),
        "within 2 %": sum(error <= 0.02 for error in errors) / len(errors),
        "within 5 %": sum(error <= 0.05 for error in errors) / len(errors),
        "inside the interval": sum(inside) / len(inside) if inside else float("nan"),
        "of": len(inside),
    }


def left_out(rows: list[Row]) -> list[tuple[str, float, float]]:
    """Source -> the factor of the interval's widths that holds 90 % of the other sources' rows, and the share of its own it holds."""
    counted = [row for row in rows if row.inside() is not None]
    result = []
    for source in dict.fromkeys(row.case.source for row in counted):
        others = sorted(row.needed for row in counted if row.case.source != source)
        if len(others) < 3:
            continue
        factor = others[min(len(others) - 1, int(0.9 * len(others)))]
        own = [row for row in counted if row.case.source == source]
        result.append((source, factor, sum(bool(row.inside(factor)) for row in own) / len(own)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"There is no folder {options.data}; give the one that holds measured_memory.json.\n")
    measured = [measure(case) for case in read_cases(options.data)]
    rows = [row for row in measured if row.estimate]
    groups = {name: [row for row in rows if row.group == name] for name in GROUPS}
    if options.json:
        print(json.dumps([_as_json(row) for row in measured], indent=1))
        return
    print(
        "| source | case | measure | measured GiB | estimated | reserved | interval | inside | s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in measured:
        print(_line(row))
    print(
        "\n| group | rows | median error | largest | within 2 % | within 5 % | reserved inside the interval |\n|---|---|---|---|---|---|---|"
    )
    for name, group in groups.items():
        found = score(group)
        print(
            f"| {name} | {found['rows']} | {found['median']:.1%} | {found['largest']:.1%} | {found['within 2 %']:.0%} | "
            f"{found['within 5 %']:.0%} | {found['inside the interval']:.0%} of {found['of']} |"
        )
    print("\n| interval scaled by the other sources | factor | of its own rows inside |\n|---|---|---|")
    for source, factor, share in left_out([row for row in rows if row.group != "indicative"]):
        print(f"| {source} | {factor:.2f} | {share:.0%} |")
    print("\n| on all rows of transformers' own code | median absolute error | largest |\n|---|---|---|")
    counted = [row for row in rows if row.group != "indicative"]
    others = {
        name: [abs(calculator(row.case) / row.case.measured - 1) for row in counted] for name, calculator in CALCULATORS.items()
    }
    for name, errors in ({"this workbench": [abs(row.error) for row in counted]} | others).items():
        print(f"| {name} | {statistics.median(errors):.1%} | {max(errors):.1%} |")
    _speed()


GROUPS = ("one GPU", "one GPU, a setting guessed", "several GPUs", "indicative")


def _line(row: Row) -> str:
    case = row.case
    if not row.estimate:
        return f"| {case.source} | {case.name} | {case.metric} | {case.measured:.2f} | refused: {row.refused[:60]}… | | | | |"
    low, high = (end / GIB for end in row.estimate.interval)
    held = {True: "yes", False: "no", None: ""}[row.inside()]
    return (
        f"| {case.source} | {case.name} | {case.metric} | {case.measured:.2f} | {row.figure:.2f} ({row.error:+.1%}) | "
        f"{row.estimate.peak_reserved / GIB:.2f} | {low:.1f} to {high:.1f} | {held} | {row.seconds:.1f} |"
    )


def _as_json(row: Row) -> dict:
    case = row.case
    found = {
        "source": case.source,
        "case": case.name,
        "metric": case.metric,
        "measured": case.measured,
        "guessed": case.guessed,
    }
    if not row.estimate:
        return found | {"refused": row.refused}
    return found | {
        "group": row.group, "estimate": row.figure, "error": row.error, "interval": [end / GIB for end in row.estimate.interval],
        "reserved": row.reserved, "inside": row.inside(), "seconds": row.seconds,
    }  # fmt: skip


def _speed() -> None:
    """Processor time of every preset on every architecture of the catalogue, never asked before; and a repeated layer against a full
    trace."""
    print("\n| slowest architectures, processor seconds | " + " | ".join(TRAINERS) + " |\n|---|" + "---|" * len(TRAINERS))
    times = {}
    for name in CATALOGUE:
        with contextlib.suppress(WorkbenchError):
            checkpoint = open_model(name, weights=False)
            times[name] = [
                _timed(checkpoint, MemorySettings.preset(preset, sequence=min(512, position_limit(checkpoint) or 512)))
                for preset in TRAINERS
            ]
    for name, seconds in sorted(times.items(), key=lambda item: -max(item[1]))[:6]:
        print(f"| {name} | " + " | ".join(f"{one:.1f}" for one in seconds) + " |")
    checkpoint = open_model("llama-3-8b")
    print(
        "\n| LLaMA-3-8B, 2048 tokens | repeated layer | full trace | allocated differs | reserved differs |\n|---|---|---|---|---|"
    )
    for method, checkpointing in (("lora", False), ("lora-xs", False), ("lora-xs", True), ("full", True)):
        settings = MemorySettings(method=method, batch=1, sequence=2048, gradient_checkpointing=checkpointing)
        few, whole = (estimate_memory(checkpoint, settings.but(full_trace=full), use_cache=False) for full in (False, True))
        seconds = [_timed(checkpoint, settings.but(full_trace=full)) for full in (False, True)]
        print(
            f"| {method}{', checkpointed' if checkpointing else ''} | {seconds[0]:.2f} s | {seconds[1]:.2f} s "
            f"| {few.peak_allocated / whole.peak_allocated - 1:+.4%} | {few.peak_reserved / whole.peak_reserved - 1:+.4%} |"
        )


def _timed(checkpoint: Checkpoint, settings: MemorySettings) -> float:
    begun = time.process_time()
    estimate_memory(checkpoint, settings, use_cache=False)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
