"""Building the frozen matrices: ours against scikit-learn's TruncatedSVD(n_iter=10), which the LoRA-XS authors use.

    python -m benchmarks.tuner_init [--side 4096] [--ranks 16,64] [--layer 4096] [--checkpoint FOLDER]

Both get one thread; CPU seconds. The error is that of the r-dimensional left subspace, the sine of the largest angle to the exact
one, and how far an update dW = U R S V^T with a random R is from what it is on the exact bases (signs made equal first). MiniLM's
36 attention and MLP matrices are real and the exact answer is LAPACK's in float64; the large matrix is made from known singular
vectors and values that decay as slowly as those of a real 4096 x 4096 weight do (sigma_256 / sigma_1 = 0.39). `--layer` adds the
seven matrices of one LLaMA-3-8B layer of the synthetic checkpoint (benchmarks/make_checkpoint.py) at the largest rank, of which the
model has 32; the exact answer is then block Lanczos in float64. `--checkpoint` does nothing but build the bases of every matrix of a
checkpoint, one after the other as `get_peft_model` does, and prints the time of both methods (theirs on the first layer, seven
matrices) and the memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable

import numpy as np
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits

from benchmarks.make_checkpoint import LAYERS, heavy_tailed, layer_shapes
from loraxs_core.bases import Bases, Identity, bases, delta_weight
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.svd import truncated_svd
from loraxs_core.targets import select_targets
from sample_models import open_model

MATRICES_A_LAYER = 7

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]


def ours(matrix: np.ndarray, r: int) -> Triples:
    found = bases(matrix, r, cache=False)
    return found.U, found.S, found.Vt


def authors(matrix: np.ndarray, r: int) -> Triples:
    """As in the authors' initialisation: randomised, 10 iterations, a fixed seed."""
    method = TruncatedSVD(n_components=r, n_iter=10, random_state=42)
    projected = method.fit_transform(matrix)
    return projected / method.singular_values_, method.singular_values_, method.components_


def errors(found: Triples, exact: Triples) -> tuple[float, float]:
    """(sine of the largest angle between the left subspaces, relative error of dW)."""
    (U, S, Vt), (U0, S0, Vt0) = found, exact
    cosines = np.linalg.svd(U0.T.astype(np.float64) @ U.astype(np.float64), compute_uv=False)
    sine = float(np.sqrt(max(0.0, 1.0 - min(1.0, cosines[-1]) ** 2)))
    signs = np.where(np.sum(U * U0, axis=0) + np.sum(Vt * Vt0, axis=1) < 0, -1.0, 1.0)
    R = np.random.default_rng(0).standard_normal((len(S), len(S)))
    nobody = Identity(0, 0, 0)
    expected = delta_weight(R, Bases(U0, S0, Vt0, nobody))
    got = delta_weight(R, Bases(U * signs, S, signs[:, None] * Vt, nobody))
    return sine, float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def measure(method: Callable[[np.ndarray, int], Triples], matrices: list[np.ndarray], exact: list[Triples], r: int) -> str:
    seconds, sines, distances = 0.0, [], []
    for matrix, (U, S, Vt) in zip(matrices, exact, strict=True):
        start = time.process_time()
        found = method(matrix, r)
        seconds += time.process_time() - start
        sine, distance = errors(found, (U[:, :r], S[:r], Vt[:r]))
        sines.append(sine)
        distances.append(distance)
    return f"{seconds:.2f} | {max(sines):.1e} | {np.median(distances):.1e} | {max(distances):.1e}"


def synthetic(side: int) -> tuple[np.ndarray, Triples]:
    """A float32 weight of slow decay and its exact triples (to float32 rounding of the entries)."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, side)))[0] for _ in range(2))
    values = (1 + np.arange(side) / 8.0) ** -0.27
    return ((left * values) @ right.T).astype(np.float32), (left, values, right.T)


def whole(folder: str, r: int) -> None:
    """Time and memory of the bases of all matrices of a checkpoint; none is kept, as an adapter would hold r columns of each."""
    checkpoint = Checkpoint.open(folder)
    weights = select_targets(checkpoint, "all-linear")
    begun, cpu, theirs = time.perf_counter(), 0.0, 0.0
    for number, weight in enumerate(weights):
        matrix = checkpoint.read(weight)
        start = time.process_time()
        bases(matrix, r, cache=False)
        cpu += time.process_time() - start
        if number < MATRICES_A_LAYER:
            start, ours_so_far = time.process_time(), cpu
            authors(matrix, r)
            theirs += time.process_time() - start
            print(f"{weight.name}: {ours_so_far:.1f} CPU s so far, TruncatedSVD(n_iter=10) {theirs:.1f}", flush=True)
    wall = time.perf_counter() - begun
    print(
        f"{len(weights)} matrices, rank {r}: {cpu:.0f} CPU s in {wall:.0f} s of wall time, reading and theirs included; "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096, help="of the large matrix; 0 leaves it out")
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--layer", type=int, default=0, help="hidden size of the LLaMA-like layer; 0 leaves it out")
    parser.add_argument("--checkpoint", help="folder of a checkpoint to do whole, and nothing else")
    given = parser.parse_args()
    ranks = [int(rank) for rank in given.ranks.split(",")]
    with threadpool_limits(1):
        if given.checkpoint:
            whole(given.checkpoint, max(ranks))
            return
        minilm = open_model("minilm")
        weights = [minilm.read(weight) for weight in select_targets(minilm, "all-linear")]
        exact = [np.linalg.svd(weight.astype(np.float64), full_matrices=False) for weight in weights]
        cases = [(f"MiniLM, {len(weights)} matrices", weights, exact)]
        if given.side:
            matrix, triples = synthetic(given.side)
            cases.append((f"one {given.side} x {given.side}", [matrix], [triples]))
        print("| weights | rank | method | CPU s | worst subspace sine | median dW error | worst dW error |")
        print("|---|---|---|---|---|---|---|")
        for label, matrices, truth in cases:
            for r in ranks:
                for name, method in (("ours", ours), ("TruncatedSVD(n_iter=10)", authors)):
                    print(f"| {label} | {r} | {name} | {measure(method, matrices, truth, r)} |", flush=True)
        if given.layer:
            matrices = [heavy_tailed(shape, seed) for seed, shape in enumerate(layer_shapes(given.layer).values())]
            truth = [truncated_svd(matrix, max(ranks), driver="krylov") for matrix in matrices]
            for name, method in (("ours", ours), ("TruncatedSVD(n_iter=10)", authors)):
                row = measure(method, matrices, truth, max(ranks))
                print(f"| one of {LAYERS} layers, {len(matrices)} matrices | {max(ranks)} | {name} | {row} |", flush=True)
            print(f"\nPeak memory of all this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
        print("\nFrom the disk cache:")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LORAXS_CACHE"] = folder
            for weight in weights:
                bases(weight, max(ranks))
            start = time.process_time()
            for weight in weights:
                bases(weight, max(ranks))
            print(f"MiniLM, {len(weights)} matrices, rank {max(ranks)}: {time.process_time() - start:.2f} CPU s")


if __name__ == "__main__":
    main()
