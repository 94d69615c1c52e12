"""Llama-like models with random weights, made on the device: memory and time depend on shapes alone."""

from __future__ import annotations

import gc
from functools import lru_cache

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto import CONFIG_MAPPING

from analyzers.methods import METHODS, AdapterSpec, peft_config
from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 256, "tie_word_embeddings": False},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
BASE_DTYPES = {"bf16": torch.bfloat16, "4bit": torch.bfloat16, "8bit": torch.bfloat16, "autocast": torch.float32}


def config(shape: str) -> PretrainedConfig:
    return CONFIG_MAPPING["llama"](**SHAPES[shape], max_position_embeddings=8192, use_cache=False)


def checkpoint(shape: str) -> Checkpoint:
    """The same model as the estimator sees it: its config, no weights."""
    return inventory_from_config({**config(shape).to_dict(), "architectures": ["LlamaForCausalLM"]}, f"Llama {shape}")


def base_model(shape: str, base: str, device: str) -> nn.Module:
    """A causal model in training mode. base: ``bf16``, ``4bit``, ``8bit`` (of bf16 weights) or ``autocast`` (float32 weights)."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config(shape), dtype=BASE_DTYPES[base])
    if base in ("4bit", "8bit"):
        _quantise(model, base, device)
    return model.train()


def adapted(model: nn.Module, method: str, rank: int, *, exact: bool = False) -> nn.Module:
    """`model` with what `method` trains.

    exact: LoRA-XS with the SVD's bases; otherwise with random ones of the same shapes, which take no time.
    """
    if method == "full":
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if method == "head-only":
        model.get_output_embeddings().requires_grad_(True)
        return model
    options = {"vectors": "random"} if method == "lora-xs" and not exact else {}
    rank = METHODS[method].default_rank if method == "vera" else rank
    spec = AdapterSpec(method, TARGETS, rank=min(rank, model.config.hidden_size // 4), task_type="CAUSAL_LM", options=options)
    return get_peft_model(model, peft_config(spec))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def token_ids(model: nn.Module, batch: int, sequence: int) -> torch.Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator(device="cpu").manual_seed(batch * sequence)
    return torch.randint(0, model.config.vocab_size, (batch, sequence), generator=generator).to(device)


class Workshop:
    """Keeps the last model that was built, since the next item often wants it again."""

    def __init__(self, device: str):
        self.device = device
        self._what: tuple | None = None
        self._model: nn.Module | None = None

    def model(self, shape: str, base: str, method: str | None = None, rank: int = 16, **options) -> nn.Module:
        what = (shape, base, method, rank, tuple(sorted(options.items())))
        if what != self._what:
            self.clear()
            model = base_model(shape, base, self.device)
            self._model = model if method is None else adapted(model, method, rank, **options)
            self._what = what
        return self._model

    def clear(self) -> None:
        """Lets go of the model and of what the allocator still holds of it."""
        self._what = self._model = None
        empty(self.device)


def empty(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


@lru_cache(1)
def has_bitsandbytes() -> bool:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return False
    return True


def _quantise(model: nn.Module, base: str, device: str) -> None:
    """Every linear but the head as transformers' bitsandbytes quantizers leave it: NF4 with double quantisation, or LLM.int8."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module is head:
            continue
        weight, bias = module.weight.data, module.bias is not None
        if base == "4bit":
            new = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=bias, compute_dtype=torch.bfloat16, compress_statistics=True,
                quant_type="nf4", device="meta",
            )  # fmt: skip
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new)
        else:
            new = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=bias, has_fp16_weights=False, device="meta")
            new.weight = bnb.nn.Int8Params(weight.cpu().to(torch.float16), requires_grad=False, has_fp16_weights=False)
        if bias:
            new.bias = module.bias
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new.to(device))
        del module, weight
    setattr(model, f"is_loaded_in_{base}", True)
