"""GFLOP/s of a linear layer, forward and backward, by PyTorch's own way and by `loraxs_core.linear_products`: shapes of MiniLM, one thread.

python -m benchmarks.linear_products
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from loraxs_core.linear_products import mkl_is_slow
from loraxs_core.quick_operators import quick_operators

SHAPES = (
    (640, 384, 384, 384),
    (640, 384, 1536, 384),
    (640, 1536, 384, 1536),
    (640, 384, 256, 1536),
)  # rows, in, out, width that in is cut from
ROUNDS, CALLS = 5, 20


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'' if mkl_is_slow() else 'no '}other way than PyTorch's own is taken on this processor")
    print("| rows x in x out | PyTorch's own | with quick_operators | ratio |\n|---|---|---|---|")
    for rows, inner, outer, width in SHAPES:
        x, weight = torch.randn(rows, inner, requires_grad=True), torch.randn(outer, width)[:, :inner]
        gradient, work = torch.randn(rows, outer), 4 * rows * inner * outer

        def both(x: torch.Tensor = x, weight: torch.Tensor = weight, gradient: torch.Tensor = gradient) -> None:
            F.linear(x, weight).backward(gradient)
            x.grad = None

        plain = quick = float("inf")
        for _ in range(ROUNDS):  # by turns, so that a busy machine slows both
            plain = min(plain, _seconds(both))
            with quick_operators():
                quick = min(quick, _seconds(both))
        print(f"| {rows} x {inner} x {outer} | {work / plain / 1e9:.0f} | {work / quick / 1e9:.0f} | {plain / quick:.2f} |")


def _seconds(call: Callable[[], None]) -> float:
    begun = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - begun) / CALLS


if __name__ == "__main__":
    main()
