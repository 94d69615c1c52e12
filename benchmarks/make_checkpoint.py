"""A synthetic checkpoint with the shapes of LLaMA-3-8B and weights whose spectra are heavy-tailed like trained ones.

    python -m benchmarks.make_checkpoint FOLDER [--depth 2] [--hidden 4096]

Writes a sharded bfloat16 safetensors checkpoint of `depth` of its 32 layers, one layer a shard, one layer in memory at a time:
the whole of 32 is 14 GB. Every matrix is D1 N D2 + a few strong directions, with N Gaussian and D1, D2 diagonal with a
heavy-tailed spread of scales: at 4096 x 4096 the 256th singular value is about 0.39 of the largest, as measured on real
weights. Random numbers, so nothing to download and nothing under a licence.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from loraxs_core.paths import atomic_file

LAYERS = 32
SPREAD = 0.22  # of the logarithm of a row's or column's scale
SPIKES = 8


def layer_shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """Module -> (out, in) of one layer; `hidden` 4096 gives LLaMA-3-8B: 8 key-value heads of 32, MLP 3.5 times as wide."""
    wide, few = hidden * 7 // 2, hidden // 4
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (few, hidden),
        "self_attn.v_proj": (few, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }


def heavy_tailed(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A float32 matrix (out x in) of the kind described above; the same for the same seed."""
    generator = np.random.default_rng(seed)
    out, into = shape
    matrix = generator.standard_normal(shape, dtype=np.float32)
    matrix *= np.exp(SPREAD * generator.standard_normal(out, dtype=np.float32))[:, None]
    matrix *= np.exp(SPREAD * generator.standard_normal(into, dtype=np.float32))
    left = generator.standard_normal((out, SPIKES), dtype=np.float32) / np.sqrt(out)
    right = generator.standard_normal((SPIKES, into), dtype=np.float32) / np.sqrt(into)
    edge = np.sqrt(out) + np.sqrt(into)
    strength = edge * np.linspace(2.6, 1.3, SPIKES)
    matrix += (left * strength.astype(np.float32)) @ right
    return matrix * np.float32(0.02)


def bfloat16_bits(matrix: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers rounded to nearest even: bfloat16 as uint16."""
    bits = matrix.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def write_shard(path: Path, tensors: dict[str, tuple[int, int]], seed: int) -> int:
    """Writes one shard, a tensor at a time, and returns its bytes of data."""
    header, cursor = {}, 0
    for name, (out, into) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [out, into], "data_offsets": [cursor, cursor + 2 * out * into]}
        cursor += 2 * out * into
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with atomic_file(path) as partial, open(partial, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for offset, shape in enumerate(tensors.values()):
            bfloat16_bits(heavy_tailed(shape, seed + offset)).tofile(file)
    return cursor


def make(folder: Path, depth: int = LAYERS, hidden: int = 4096) -> Path:
    """Writes the checkpoint (layers already there are kept) and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = layer_shapes(hidden)
    weight_map, total = {}, 0
    for layer in range(depth):
        shard = f"model-{layer + 1:05d}-of-{depth:05d}.safetensors"
        tensors = {f"model.layers.{layer}.{module}.weight": shape for module, shape in shapes.items()}
        if not (folder / shard).is_file():
            write_shard(folder / shard, tensors, 1000 * layer)
        total += sum(2 * out * into for out, into in tensors.values())
        weight_map |= dict.fromkeys(tensors, shard)
        print(f"\rlayer {layer + 1} of {depth}, {total / 1e9:.1f} GB", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    with atomic_file(folder / "model.safetensors.index.json") as path:
        path.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": depth,
        "intermediate_size": hidden * 7 // 2, "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
        "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    with atomic_file(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=1))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, default=2, help="how many of the 32 layers (0.44 GB each)")
    parser.add_argument("--hidden", type=int, default=4096, help="width; smaller for a quick look")
    arguments = parser.parse_args()
    print(make(arguments.folder, arguments.depth, arguments.hidden))
