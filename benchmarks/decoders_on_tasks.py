"""Every kind of task run once for real, through the command: commonsense and mathematics on a decoder, GLUE pairs on an encoder.

    python -m benchmarks.decoders_on_tasks [--only boolq,gsm8k] [--out docs/results/tasks.json]

A proof that the whole way works and what it costs, not a comparison of methods: a few steps, few test examples, one seed; the intervals
(over the test examples) say how little the scores tell. Each case's command, summary and remarks are kept in the file; cases that it
has already are run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loraxs_core.paths import atomic_file

OUT = Path(__file__).parents[1] / "docs" / "results" / "tasks.json"
FEW = "--evaluations 1 --validation-examples 16"
DECODER = "smollm2-135m --methods head-only,lora-xs --rank 16 --learning-rate lora-xs=0.004"
ENCODER = "minilm --methods head-only,lora,lora-xs --steps 60 --batch 16 --evaluations 1"
CASES = {
    "boolq": f"{DECODER} --task boolq --steps 8 --batch 2 --sequence 192 --test-examples 24 {FEW}",
    "arc-easy": f"{DECODER} --task arc-easy --steps 12 --batch 4 --sequence 64 --test-examples 32 {FEW}",
    "piqa": f"{DECODER} --task piqa --steps 8 --batch 4 --sequence 80 --test-examples 32 {FEW}",
    "hellaswag": f"{DECODER} --task hellaswag --steps 8 --batch 4 --sequence 96 --test-examples 24 {FEW}",
    "boolq-generation": f"{DECODER} --task boolq-generation --steps 12 --batch 4 --sequence 96 --test-examples 24 {FEW}",
    "gsm8k": f"{DECODER} --task gsm8k --steps 6 --batch 2 --sequence 256 --test-examples 4 {FEW}",
    "rte": f"{ENCODER} --task rte",
    "mrpc": f"{ENCODER} --task mrpc",
}
KEPT = (
    "label",
    "metric",
    "score",
    "low",
    "high",
    "interval",
    "seeds",
    "validation_score",
    "parameters",
    "head_parameters",
    "seconds",
)
KEPT_OF_TRIAL = ("test_examples", "overlap_same", "overlap_shared", "overlap_of", "data_remark", "remark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    for name in given.only.split(","):
        found = run(CASES[name])
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        with atomic_file(given.out) as temporary:
            temporary.write_text(json.dumps({**known, name: found}, indent=1) + "\n", encoding="utf-8")
        for row in found["summary"]:
            print(
                f"{name:17} {row['label']:10} {row['metric']:20} {row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
                flush=True,
            )


def run(arguments: str) -> dict:
    """The command, its summary and what it remarks on."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "app.cli", "compare", *arguments.split(), "--out", f"{folder}/run", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)
    return {
        "command": f"loraxs compare {arguments}",
        "seconds": round(time.perf_counter() - started),
        "summary": [{key: row.get(key) for key in KEPT} for row in found["summary"]],
        "trials": [{key: trial.get(key) for key in KEPT_OF_TRIAL} for trial in found["trials"]],
    }


if __name__ == "__main__":
    main()
