"""The scan against its peers, in one table: time, memory and error.

    python -m benchmarks.spectra [--quick] [--weightwatcher PYTHON] [--depth 1] [--repeat 1]

Every figure comes from a process of its own with one BLAS thread a worker, so that peaks of memory are its own; WeightWatcher
runs once more with as many threads as it likes. CPU seconds are what to compare on a machine that others use too; wall seconds
are printed beside them, and compared where all cores work. `--weightwatcher` names a Python that
has WeightWatcher 0.7.7 installed (it is no dependency of the workbench). `--quick` shrinks the layers to a quarter of their
width. Errors are the largest difference to LAPACK's float64 singular values, in units of the largest one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="layers of a quarter of the width")
    parser.add_argument("--weightwatcher", metavar="PYTHON", help="a Python with WeightWatcher 0.7.7")
    parser.add_argument("--depth", type=int, default=1, help="layers of the synthetic LLaMA-3-8B to scan (of 32)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the best is printed")
    parser.add_argument("--only", choices=("layers", "models", "checkpoint"), help="one part of the table")
    parser.add_argument("--folder", type=Path, help="where synthetic checkpoints are kept (a temporary folder by default)")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[(task := json.loads(arguments.child))["kind"]](task)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        print(f"{'task':38s} {'method':34s} {'CPU s':>8s} {'wall s':>8s} {'peak MiB':>9s} {'error':>8s}  against ours")
        for part in ("layers", "models", "checkpoint"):
            if arguments.only in (None, part):
                globals()[f"part_{part}"](arguments, folder)


def part_layers(arguments: argparse.Namespace, folder: Path) -> None:
    """One matrix of each shape of a LLaMA-3-8B layer: ours, torch as stored and tall, scikit-learn's truncated SVD."""
    hidden = 1024 if arguments.quick else 4096
    shapes = {"q, o": (hidden, hidden), "k, v": (hidden // 4, hidden), "gate, up": (hidden * 7 // 2, hidden)}
    shapes["down"] = (hidden, hidden * 7 // 2)
    totals: dict[str, float] = {}
    side_by_side = 0.0
    for modules, shape in shapes.items():
        reference, matrix = (folder / f"{what}-{shape[0]}x{shape[1]}.npy" for what in ("reference", "matrix"))
        if not (reference.exists() and matrix.exists()):
            child({"kind": "reference", "shape": shape, "reference": str(reference), "matrix": str(matrix)})
        ours = None
        for method in ("ours", "ours, fast", "torch.svdvals as stored", "torch.svdvals tall", "scikit-learn TruncatedSVD 256"):
            task = {"kind": "layer", "method": method, "reference": str(reference), "matrix": str(matrix)}
            result = best([child(task) for _ in range(arguments.repeat)])
            ours = ours or result
            totals[method] = totals.get(method, 0) + result["cpu"] * (1 if modules == "down" else 2)
            row(f"{modules} {shape[0]}x{shape[1]}", method, result, ours)
        task |= {"method": "torch.svdvals as stored", "threads": None}
        side_by_side += best([child(task) for _ in range(arguments.repeat)], "wall")["wall"] * (1 if modules == "down" else 2)
    print()
    for method, seconds in totals.items():
        ratio = seconds / totals["ours"]
        row("whole layer (7 matrices)", method, {"cpu": seconds}, None, f"{ratio:.2f}x the time of ours")
    print(f"torch as stored takes {totals['torch.svdvals as stored'] / totals['ours, fast']:.1f}x the time of ours, fast")
    from benchmarks.make_checkpoint import make

    model = make(folder / f"llama-1x{hidden}", 1, hidden)
    for method, options in {"ours": {}, "ours, fast": {"fast": True}}.items():
        task = {"kind": "model", "folder": str(model), **options}
        wall = best([child(task) for _ in range(arguments.repeat)], "scan")["scan"]
        note = f"torch as stored with its own threads: {side_by_side:.2f} s, {side_by_side / wall:.2f}x"
        row("whole layer, all cores, read from disk", method, {"wall": wall}, None, note)
    print()


def part_models(arguments: argparse.Namespace, folder: Path) -> None:
    """Whole processes over whole models, power-law fits in both: ours, WeightWatcher."""
    from sample_models import open_model

    models = {"MiniLM": open_model("minilm").folder}
    if not arguments.quick:
        models["bert-base (random)"] = folder / "bert-base"
        child({"kind": "bert", "folder": str(folder / "bert-base")})
    for name, model in models.items():
        ours = best([child({"kind": "model", "folder": str(model), "jobs": 1}) for _ in range(arguments.repeat)])
        row(f"{name}, whole process", "ours, 1 core", ours, ours)
        whole = best([child({"kind": "model", "folder": str(model)}) for _ in range(arguments.repeat)], "wall")
        row(f"{name}, whole process", "ours, all cores", whole, ours)
        if arguments.weightwatcher:
            task = {"kind": "weightwatcher", "folder": str(model)}
            theirs = best([child(task, arguments.weightwatcher) for _ in range(arguments.repeat)])
            row(f"{name}, whole process", "WeightWatcher 0.7.7, 1 core", theirs, ours)
            task["threads"] = None
            free = best([child(task, arguments.weightwatcher) for _ in range(arguments.repeat)], "wall")
            note = f"{free['wall'] / whole['wall']:.2f}x the wall time of ours, all cores"
            row(f"{name}, whole process", "WeightWatcher 0.7.7, all cores", free, None, note)
            alphas = [abs(ours["alpha"][layer] - alpha) for layer, alpha in theirs["alpha"].items() if layer in ours["alpha"]]
            print(f"{'':34s} exponents differ by at most {max(alphas):.1g} over {len(alphas)} layers")
    print()


def part_checkpoint(arguments: argparse.Namespace, folder: Path) -> None:
    """A synthetic LLaMA-3-8B, sharded bfloat16, scanned whole; and how far that is from the machine's own speed."""
    from benchmarks.make_checkpoint import LAYERS, make

    hidden = 1024 if arguments.quick else 4096
    model = make(folder / f"llama-{arguments.depth}x{hidden}", arguments.depth, hidden)
    rates = child({"kind": "rate"})
    print(f"this machine, one core: {rates['d']:.0f} GF/s in float64, {rates['s']:.0f} GF/s in float32 matrix products")
    ways = {"ours": {}, "ours, fast": {"fast": True}, "ours, top 256": {"top": 256}, "ours, top 64": {"top": 64}}
    for method, options in ways.items():
        result = best([child({"kind": "model", "folder": str(model), **options}) for _ in range(arguments.repeat)])
        single = "s" if options else "d"
        # n^2 m for the Gram matrix and 4/3 n^3 for its reduction (not needed for the largest values alone).
        gram, reduction = result["gram_flops"], 0 if "top" in options else result["reduction_flops"]
        floor = gram / rates[single] / 1e9 + reduction / rates["d"] / 1e9
        whole = result["cpu"] * LAYERS / arguments.depth / result["jobs"] / 60
        projected = f"; all {LAYERS} layers on {result['jobs']} cores: {whole:.1f} min" if arguments.depth < LAYERS else ""
        note = f"{result['cpu'] / floor:.2f}x the floor{projected}"
        row(f"LLaMA-3-8B, {arguments.depth} of {LAYERS} layers", method, result, None, note)


def row(task: str, method: str, result: dict, ours: dict | None, note: str = "") -> None:
    ratio = f"{result['cpu'] / ours['cpu']:.2f}x its CPU time" if ours and result is not ours else note
    cpu, wall, peak, error = (result.get(key) for key in ("cpu", "wall", "peak", "error"))
    cells = (
        f"{cpu:8.2f}" if cpu is not None else " " * 8,
        f"{wall:8.2f}" if wall is not None else " " * 8,
        f"{peak:9.0f}" if peak is not None else " " * 9,
        f"{error:8.0e}" if error is not None else " " * 8,
    )
    print(f"{task:38s} {method:34s} {' '.join(cells)}  {ratio}", flush=True)


def child(task: dict, python: str = sys.executable) -> dict:
    """Runs one measurement in a process of its own, and adds the CPU and wall seconds of the process where it gave none."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    if task.get("threads", 1):
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    before, started = os.times(), time.perf_counter()
    command = [python, "-m", "benchmarks.spectra", "--child", json.dumps(task)]
    outcome = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    after = os.times()
    if outcome.returncode:
        raise SystemExit(f"{task} failed:\n{outcome.stderr[-2000:]}")
    result = json.loads(outcome.stdout.splitlines()[-1])
    whole = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu": whole, "wall": time.perf_counter() - started} | result


def best(results: list[dict], by: str = "cpu") -> dict:
    return min(results, key=lambda result: result[by])


def peak_mib() -> float:
    """The most memory this program held at once. Linux's own count, since getrusage's begins with the parent's."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_reference(task: dict) -> dict:
    """A synthetic layer, float32 numbers that are exact in bfloat16, and its singular values by LAPACK in float64."""
    import numpy as np
    import scipy.linalg

    from benchmarks.make_checkpoint import bfloat16_bits, heavy_tailed

    matrix = (bfloat16_bits(heavy_tailed(tuple(task["shape"]), 0)).astype(np.uint32) << 16).view(np.float32)
    np.save(task["matrix"], matrix)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    np.save(task["reference"], scipy.linalg.svdvals(tall.astype(np.float64), check_finite=False))
    return {}


def child_layer(task: dict) -> dict:
    """One matrix by one method; CPU and wall seconds of the computation alone, peak above the matrix and the imports."""
    import numpy as np

    matrix = np.load(task["matrix"])
    method = task["method"]
    if method.startswith("torch"):
        import torch

        torch.set_num_threads(task.get("threads", 1) or os.cpu_count() or 1)
        tensor = torch.from_numpy(matrix if "stored" in method or matrix.shape[0] >= matrix.shape[1] else matrix.T)
        compute = lambda: torch.linalg.svdvals(tensor).numpy()  # noqa: E731
    elif method.startswith("scikit"):
        from sklearn.decomposition import TruncatedSVD

        model = TruncatedSVD(n_components=256, n_iter=10, random_state=0)
        compute = lambda: model.fit(matrix).singular_values_  # noqa: E731
    else:
        from loraxs_core.spectrum_kernels import spectrum

        compute = lambda: spectrum(matrix, fast="fast" in method).values  # noqa: E731
    before = peak_mib()
    cpu, wall = time.process_time(), time.perf_counter()
    values = compute()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    truth = np.load(task["reference"])[: len(values)]
    error = float(np.abs(values - truth).max() / truth[0])
    return {"cpu": cpu, "wall": wall, "peak": peak_mib() - before, "error": error}


def child_model(task: dict) -> dict:
    """A whole scan without the cache, in a process that then ends; peak above what the imports take."""
    from analyzers.spectra import scan
    from analyzers.spectra.scan import available_cores
    from loraxs_core.checkpoint import Checkpoint

    before = peak_mib()
    checkpoint = Checkpoint.open(task["folder"])
    # WeightWatcher reads the embedding tables too, so both do.
    weights = [weight for weight in checkpoint.weights if not weight.tied_to]
    options = {key: task[key] for key in ("fast", "top", "jobs") if key in task}
    spectra = scan(checkpoint, weights=weights, cache=False, **options)
    sides = [layer.sides for layer in spectra.layers.values()]
    return {
        "peak": peak_mib() - before,
        "scan": spectra.seconds,
        "error": None if options.get("top") else spectra.error,
        "alpha": {name: layer.metrics["alpha"] for name, layer in spectra.layers.items()},
        "jobs": task.get("jobs") or available_cores(),
        "gram_flops": sum(short**2 * long for short, long in sides),
        "reduction_flops": sum(4 / 3 * short**3 for short, long in sides),
    }


def child_weightwatcher(task: dict) -> dict:
    """WeightWatcher's `analyze()` with its defaults on the model that transformers loads."""
    import logging

    import weightwatcher
    from transformers import AutoModel

    logging.disable(logging.WARNING)
    before = peak_mib()
    details = weightwatcher.WeightWatcher(model=AutoModel.from_pretrained(task["folder"])).analyze()
    return {"peak": peak_mib() - before, "alpha": dict(zip(details["longname"], details["alpha"], strict=True))}


def child_rate(task: dict) -> dict:
    """Matrix products a core does, in GF/s, by SciPy's BLAS."""
    import numpy as np
    from scipy.linalg import blas

    rates = {}
    for letter, dtype, product in (("d", np.float64, blas.dgemm), ("s", np.float32, blas.sgemm)):
        side = np.asfortranarray(np.random.default_rng(0).standard_normal((3000, 3000)), dtype=dtype)
        product(1.0, side[:500, :500], side[:500, :500])
        times = []
        for _ in range(3):
            started = time.process_time()
            product(1.0, side, side)
            times.append(time.process_time() - started)
        rates[letter] = 2 * 3000**3 / min(times) / 1e9
    return rates


def child_bert(task: dict) -> dict:
    """A randomly initialised bert-base, saved once."""
    if not Path(task["folder"], "model.safetensors").is_file():
        from transformers import BertConfig, BertModel

        BertModel(BertConfig()).save_pretrained(task["folder"])
    return {}


CHILDREN = {
    "reference": child_reference,
    "layer": child_layer,
    "model": child_model,
    "weightwatcher": child_weightwatcher,
    "rate": child_rate,
    "bert": child_bert,
}

if __name__ == "__main__":
    main()
