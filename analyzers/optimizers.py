"""The optimizers known here, and what bitsandbytes' 8-bit states are made of: for memory and for what a run leaves on disk alike."""

from __future__ import annotations

OPTIMIZERS = {
    "adamw": "AdamW, PyTorch's default on CUDA (foreach)",
    "adamw-fused": "AdamW in one fused kernel; transformers' default",
    "adamw-loop": "AdamW one tensor at a time (foreach=False)",
    "adamw-8bit": "AdamW with 8-bit states (bitsandbytes)",
    "adafactor": "Adafactor as transformers' Trainer sets it",
    "sgd": "SGD, without momentum unless told",
    "paged-adamw": "AdamW with states in unified memory (bitsandbytes), which leave the GPU when it is full",
    "paged-adamw-8bit": "AdamW with 8-bit states in unified memory (bitsandbytes)",
    "lion": "Lion: one state (bitsandbytes)",
    "lion-8bit": "Lion with an 8-bit state (bitsandbytes)",
    "paged-lion": "Lion with its state in unified memory (bitsandbytes)",
    "paged-lion-8bit": "Lion with an 8-bit state in unified memory (bitsandbytes)",
    "adagrad": "Adagrad, PyTorch's default on CUDA (foreach)",
    "rmsprop": "RMSprop, PyTorch's default on CUDA (foreach)",
    "rmsprop-bnb": "RMSprop: one state (bitsandbytes)",
    "rmsprop-8bit": "RMSprop with an 8-bit state (bitsandbytes)",
    "ademamix": "AdEMAMix: three states (bitsandbytes)",
    "ademamix-8bit": "AdEMAMix with 8-bit states (bitsandbytes)",
    "paged-ademamix": "AdEMAMix with states in unified memory (bitsandbytes)",
    "paged-ademamix-8bit": "AdEMAMix with 8-bit states in unified memory (bitsandbytes)",
    "adamw-torchao-8bit": "AdamW with 8-bit states (torchao)",
    "adamw-torchao-4bit": "AdamW with 4-bit states (torchao)",
    "adamw-anyprecision": "AdamW with states in fp32 whatever the weights are in (torchdistx)",
    "stable-adamw": "StableAdamW, with a compensation for weights in 16 bit (optimi)",
    "schedule-free-adamw": "schedule-free AdamW: a second copy of the weights and one state",
    "schedule-free-radam": "schedule-free RAdam: a second copy of the weights and one state",
    "schedule-free-sgd": "schedule-free SGD: a second copy of the weights",
    "grokadamw": "GrokAdamW: its states wait on the CPU",
    "galore-adamw": "GaLore: AdamW's states of projected gradients",
    "galore-adamw-8bit": "GaLore with 8-bit states",
    "galore-adafactor": "GaLore with Adafactor's states",
    "galore-adamw-layerwise": "GaLore, each weight updated in the backward pass",
    "galore-adamw-8bit-layerwise": "GaLore with 8-bit states, each weight updated in the backward pass",
    "apollo-adamw": "APOLLO: AdamW's states of randomly projected gradients",
    "apollo-adamw-layerwise": "APOLLO, each weight updated in the backward pass",
    "lomo": "LOMO: no state, each weight updated in the backward pass",
    "adalomo": "AdaLomo: Adafactor's states, each weight updated in the backward pass",
}

# What transformers' `TrainingArguments.optim` calls them, where it is not the name above with underscores.
OPTIM_NAMES = {name.replace("-", "_"): name for name in OPTIMIZERS} | {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw-fused",
    "adamw_torch_8bit": "adamw-torchao-8bit",
    "adamw_torch_4bit": "adamw-torchao-4bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "paged_adamw_32bit": "paged-adamw",
    "lion_32bit": "lion",
    "paged_lion_32bit": "paged-lion",
    "paged_ademamix_32bit": "paged-ademamix",
    "rmsprop_bnb_32bit": "rmsprop-bnb",
    "rmsprop_bnb_8bit": "rmsprop-8bit",
}

# Names of `TrainingArguments.optim` that no run on a CUDA GPU has, and why.
NOT_ON_CUDA = {
    "adamw_torch_xla": "is torch_xla's AdamW and runs on TPUs; on a CUDA GPU choose adamw_torch_fused",
    "adamw_torch_npu_fused": "is torch_npu's AdamW and runs on Ascend NPUs; on a CUDA GPU choose adamw_torch_fused",
    "galore_adafactor_layerwise": "does not start in transformers: its learning rate is given while GaLore's Adafactor keeps "
    "relative_step on; choose galore_adafactor or galore_adamw_layerwise",
}

# Those that project gradients of the linear layers that `optim_target_modules` names, and those that update weights in the
# backward pass, so that no gradient waits for the others.
LOW_RANK = tuple(name for name in OPTIMIZERS if name.startswith(("galore", "apollo")))
IN_BACKWARD = tuple(name for name in OPTIMIZERS if name.endswith(("layerwise", "lomo")))

BLOCK_8BIT = 256  # values to one constant in bitsandbytes' blockwise 8-bit states
MIN_8BIT = 4096  # smaller tensors keep fp32 states
