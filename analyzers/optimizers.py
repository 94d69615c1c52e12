"""The optimizers by name: one list for memory, checkpoints and their words. What they do stands in `analyzers.memory.optimizers`,
what they write to disk in `analyzers.storage.optimizer_state`."""

OPTIMIZERS = {
    "adamw": "AdamW, PyTorch's default on CUDA (foreach)",
    "adamw-fused": "AdamW in one fused kernel; transformers' default",
    "adamw-loop": "AdamW one tensor at a time (foreach=False)",
    "adamw-8bit": "AdamW with 8-bit states (bitsandbytes)",
    "adafactor": "Adafactor as transformers' Trainer sets it",
    "sgd": "SGD without momentum",
}

# bitsandbytes' blockwise 8-bit states: values to one constant, and the size below which a tensor keeps fp32 states.
BLOCK_8BIT = 256
MIN_8BIT = 4096
