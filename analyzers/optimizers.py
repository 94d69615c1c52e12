"""The optimizers known here, and what bitsandbytes' 8-bit states are made of: for memory and for what a run leaves on disk alike."""

from __future__ import annotations

OPTIMIZERS = {
    "adamw": "AdamW, PyTorch's default on CUDA (foreach)",
    "adamw-fused": "AdamW in one fused kernel; transformers' default",
    "adamw-loop": "AdamW one tensor at a time (foreach=False)",
    "adamw-8bit": "AdamW with 8-bit states (bitsandbytes)",
    "adafactor": "Adafactor as transformers' Trainer sets it",
    "sgd": "SGD without momentum",
    "paged-adamw": "AdamW with states in unified memory (bitsandbytes), which leave the GPU when it is full",
    "paged-adamw-8bit": "AdamW with 8-bit states in unified memory (bitsandbytes)",
    "lion": "Lion: one state (bitsandbytes)",
    "lion-8bit": "Lion with an 8-bit state (bitsandbytes)",
    "adagrad": "Adagrad, PyTorch's default on CUDA (foreach)",
    "rmsprop": "RMSprop, PyTorch's default on CUDA (foreach)",
    "ademamix": "AdEMAMix: three states (bitsandbytes)",
    "ademamix-8bit": "AdEMAMix with 8-bit states (bitsandbytes)",
}

# What transformers' `TrainingArguments.optim` calls them.
OPTIM_NAMES = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw-fused",
    "adamw_bnb_8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit",
    "paged_adamw_32bit": "paged-adamw",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "lion_32bit": "lion",
    "lion_8bit": "lion-8bit",
    "ademamix_8bit": "ademamix-8bit",
}

BLOCK_8BIT = 256  # values to one constant in bitsandbytes' blockwise 8-bit states
MIN_8BIT = 4096  # smaller tensors keep fp32 states
