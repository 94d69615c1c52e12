"""How near the memory estimates come to publicly measured fine-tunes, beside public calculators on the same cases.

    python -m benchmarks.memory_accuracy [folder of measured_memory*.json] [--json] [--unsloth vram_estimation.py]

Every figure is `estimate_memory` of documented settings, as `loraxs memory` gives it; nothing is reached that a user cannot reach.
The measurements are not part of the repository: by default they are read from `../shared/data`. What each training script did was
read in its source (`SOURCES` below); what is not published is what its source states as a limit, or the default of its libraries,
and is fitted to no figure. The calculators beside it are those of `benchmarks.memory_calculators`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from analyzers.memory import CONTEXT, MemoryEstimate, MemorySettings, estimate_memory
from analyzers.memory.settings import position_limit
from analyzers.memory.trainers import TRAINERS
from analyzers.units import GIB
from benchmarks.memory_calculators import CALCULATORS, load_unsloth
from benchmarks.memory_cases import Case, read_cases
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError
from sample_models import open_model
from sample_models.catalogue import CATALOGUE

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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


@dataclass(frozen=True)
class Coverage:
    """How many of a source's rows lie in their intervals. inside: as stated. factor: of the widths, which holds 90 % of the other
    sources' rows, each source counting the same. scaled: the share of its own rows inside with it."""

    source: str
    rows: int
    inside: float
    factor: float
    scaled: float


def left_out(rows: list[Row]) -> list[Coverage]:
    """The coverage of each source, leaving it out where the widths are scaled."""
    counted = [row for row in rows if row.inside() is not None]
    by_source: dict[str, list[Row]] = {}
    for row in counted:
        by_source.setdefault(row.case.source, []).append(row)
    result = []
    for source, own in by_source.items():
        needed = sorted((row.needed, 1 / len(group)) for other, group in by_source.items() if other != source for row in group)
        factor, held, wanted = 0.0, 0.0, 0.9 * (len(by_source) - 1)
        for factor, weight in needed:  # noqa: B007
            held += weight
            if held >= wanted - 1e-9:
                break
        shares = [sum(bool(row.inside(scale)) for row in own) / len(own) for scale in (1.0, factor)]
        result.append(Coverage(source, len(own), shares[0], factor, shares[1]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--unsloth", type=Path, help="vram_estimation.py of Unsloth's wheel, whose estimator is then called too"
    )
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
    print(
        "\n| source | rows | reserved inside the interval | factor by the other sources | inside when scaled by it |\n|---|---|---|---|---|"
    )
    for one in left_out([row for row in rows if row.group != "indicative"]):
        print(f"| {one.source} | {one.rows} | {one.inside:.0%} | {one.factor:.2f} | {one.scaled:.0%} |")
    print("\n| on all rows of transformers' own code | median absolute error | largest |\n|---|---|---|")
    counted = [row for row in rows if row.group != "indicative"]
    calculators = CALCULATORS | ({"Unsloth's estimator": load_unsloth(options.unsloth)} if options.unsloth else {})
    others = {
        name: [abs(calculator(row.case) / row.case.measured - 1) for row in counted] for name, calculator in calculators.items()
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
