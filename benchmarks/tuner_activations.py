"""What LoRA, VeRA and LoRA-XS keep for the backward pass, and how long a training step takes.

    python -m benchmarks.tuner_activations [--rank 16] [--batch 8] [--sequence 128] [--repeats 5]

Kept bytes are counted with autograd's saved-tensor hooks: every storage once, weights, A, B and other fixed tensors left out. One
layer is MiniLM's first output dense with an input that needs a gradient, as in the middle of a model; the whole model is MiniLM
with all attention and MLP matrices adapted. Steps of the methods take turns, so that a busy machine slows all of them alike; the
ratios to LoRA are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from loraxs_core.tuner import LoraXSConfig
from sample_models import open_model

TARGETS = r".*layer\.\d+\..*(query|key|value|dense)"
METHODS = ("frozen base", "lora", "vera", "lora-xs", "lora-xs, dropout 0.1")


def config(method: str, rank: int, targets: str | list[str]):
    if method == "lora":
        return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    if method == "vera":
        return VeraConfig(r=rank, target_modules=targets)
    return LoraXSConfig(r=rank, target_modules=targets, dropout=0.1 if "dropout" in method else 0.0)


def kept_bytes(model: nn.Module, run) -> int:
    """Bytes of the distinct storages that `run()` keeps for backward, without those the model owns anyway."""
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    total = sum(size for size, _ in kept.values())
    result.sum().backward()
    return total


def adapted(method: str, model: nn.Module, rank: int, targets: str | list[str]) -> nn.Module:
    model.requires_grad_(False)
    return model if method == "frozen base" else get_peft_model(model, config(method, rank, targets)).train()


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    folder = open_model("minilm").folder
    ids = torch.randint(1000, 20000, (given.batch, given.sequence))
    print(f"MiniLM, rank {given.rank}, batch {given.batch}, sequence {given.sequence}, float32, CPU")
    models, layer_kept, model_kept = {}, {}, {}
    for method in METHODS:
        dense = AutoModel.from_pretrained(folder).encoder.layer[0].output.dense
        one = adapted(method, OneLayer(dense), given.rank, ["layer"])
        x = torch.randn(given.batch, given.sequence, dense.in_features, requires_grad=True)
        layer_kept[method] = kept_bytes(one, lambda one=one, x=x: one(x))
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the base's own dropout keeps masks that are no method's doing
        models[method] = adapted(method, model, given.rank, TARGETS)
        # As behind an embedding that training touches: gradients flow through every layer for every method.
        models[method].get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
        model_kept[method] = kept_bytes(models[method], lambda m=models[method]: m(input_ids=ids).last_hidden_state)
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(given.repeats):
        for method, model in models.items():
            start = time.perf_counter()
            model(input_ids=ids).last_hidden_state.sum().backward()
            times[method].append(time.perf_counter() - start)
    reference = statistics.median(times["lora"])
    print("| method | kept for one layer, KiB | kept for the model, MiB | above the frozen base, MiB | step against LoRA |")
    print("|---|---|---|---|---|")
    for method in METHODS:
        above = (model_kept[method] - model_kept["frozen base"]) / 2**20
        ratio = statistics.median(times[method]) / reference
        print(
            f"| {method} | {layer_kept[method] / 2**10:,.1f} | {model_kept[method] / 2**20:,.1f} | {above:,.1f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
