"""The optimizers known here, and what bitsandbytes' 8-bit states are made of: for memory and for what a run leaves on disk alike."""

from __future__ import annotations

OPTIMIZERS = {
    "adamw": "AdamW, PyTorch's default on CUDA (foreach)",
    "adamw-fused": "AdamW in one fused kernel; transformers' default",
    "adamw-loop": "AdamW one tensor at a time (foreach=False)",
    "adamw-8bit": "AdamW with 8-bit states (bitsandbytes)",
    "adafactor": "Adafactor as transformers' Trainer sets it",
    "sgd": "SGD without momentum",
}

BLOCK_8BIT = 256  # values to one constant in bitsandbytes' blockwise 8-bit states
MIN_8BIT = 4096  # smaller tensors keep fp32 states
