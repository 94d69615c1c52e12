"""Damaged checkpoints: each is refused in one sentence, soon, without taking memory; or it is still whole.

Every mutation starts from a real sharded checkpoint saved by transformers and is drawn from a fixed seed, so a failure can be
repeated by its number.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import WorkbenchError
from tests.fuzz import one_sentence, some, survived

BYTES = 64 << 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    """Small real checkpoints: sharded, with experts, and quantised."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

    settings = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64,
    }  # fmt: skip
    folders = []
    for config in (LlamaConfig(**settings), MixtralConfig(**settings, num_local_experts=2)):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(config.model_type)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        folders.append(folder)
    quantised = tmp_path_factory.mktemp("quantised") / "nf4"
    shutil.copytree(Path(__file__).parent / "data" / "bnb_nf4_double", quantised)
    (quantised / "expected.safetensors").unlink()
    return [*folders, quantised]


def parsed(path: Path) -> tuple[dict, bytes]:
    """The header and the data of a safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def written(path: Path, header: dict | bytes, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def tensor_of(header: dict, draw: random.Random) -> str:
    return draw.choice([name for name in header if name != "__metadata__"])


# Each mutation damages one thing in `folder`. `shard` is one of its files.


def truncate(folder: Path, shard: Path, draw: random.Random) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: draw.choice([0, 1, 7, 8, 9, draw.randrange(len(content)), len(content) - 1])])


def append(folder: Path, shard: Path, draw: random.Random) -> None:
    shard.write_bytes(shard.read_bytes() + b"x" * draw.choice([1, 100, 100_000]))


def lie_about_header_length(folder: Path, shard: Path, draw: random.Random) -> None:
    content = shard.read_bytes()
    length = draw.choice([0, 1, 2**63, 2**64 - 1, 10**8, 10**8 + 1, draw.randrange(len(content)), len(content)])
    shard.write_bytes(struct.pack("<Q", length) + content[8:])


def lie_about_offsets(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    begin, end = header[tensor_of(header, draw)]["data_offsets"]
    header[tensor_of(header, draw)]["data_offsets"] = draw.choice(
        [
            [begin + 2, end + 2],
            [end, begin],
            [begin, end + 2],
            [0, 10**18],
            [-4, end],
            [begin],
            "all",
            [begin, end, end],
            [1.5, end],
            [0, 10**30],
        ]
    )
    written(shard, header, data)


def lie_about_shape(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    entry = header[tensor_of(header, draw)]
    entry["shape"] = draw.choice(
        [
            [10**9],
            [10**9, 10**9],
            [10**9] * 100,
            [0],
            [],
            [-1, 5],
            entry["shape"] + [2],
            "3x3",
            [1e3, 2],
            [True],
            [2**62, 4],
            [10**50],
            None,
        ]
    )
    written(shard, header, data)


def claim_the_size_of_a_country(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    count = 10**9 * draw.choice([1, 7, 1000])
    header[tensor_of(header, draw)] |= {"shape": [10**3, count // 10**3], "dtype": "F32", "data_offsets": [0, 4 * count]}
    written(shard, header, data)


def lie_about_dtype(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    header[tensor_of(header, draw)]["dtype"] = draw.choice(
        ["F64", "F32", "I8", "F3", "", "BOOL", 7, None, ["BF16"], "C64", "F4", "x" * 10**5]
    )
    written(shard, header, data)


def swap_a_dtype_of_the_same_size(folder: Path, shard: Path, draw: random.Random) -> None:
    """The one lie a header can tell without being caught by sizes: 16-bit numbers of another kind."""
    header, data = parsed(shard)
    entry = header[tensor_of(header, draw)]
    same = {"BF16": ["I16", "U16", "F16"], "F32": ["I32", "U32"], "U8": ["I8", "F8_E4M3", "F8_E5M2", "BOOL", "F8_E8M0"]}
    entry["dtype"] = draw.choice(same[entry["dtype"]])
    written(shard, header, data)


def overlap(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    first, second = tensor_of(header, draw), tensor_of(header, draw)
    header[first] = dict(header[second])
    header["another.q_proj.weight"] = dict(header[second])
    written(shard, header, data)


def name_twice(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    name = tensor_of(header, draw)
    raw = json.dumps(header)
    written(shard, (raw[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}").encode(), data)


def drop_a_tensor(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    del header[tensor_of(header, draw)]
    written(shard, header, data)


def break_the_json(folder: Path, shard: Path, draw: random.Random) -> None:
    header, data = parsed(shard)
    raw = bytearray(json.dumps(header).encode())
    match draw.randrange(5):
        case 0:
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        case 1:
            raw = raw[: draw.randrange(len(raw))]
        case 2:
            raw = bytearray(b"[" * draw.choice([10, 10**5, 10**6]))
        case 3:
            raw = bytearray(b'{"a":' * 10**5)
        case 4:
            raw = bytearray(b'{"a": ' + b"9" * 10**5 + b"}")
    written(shard, bytes(raw), data)


def flip_bytes(folder: Path, shard: Path, draw: random.Random) -> None:
    content = bytearray(shard.read_bytes())
    for _ in range(draw.choice([1, 10, 1000])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    shard.write_bytes(content)


def lose_a_shard(folder: Path, shard: Path, draw: random.Random) -> None:
    shard.unlink()
    if draw.random() < 0.5:
        draw.choice([shard.mkdir, lambda: shard.symlink_to(folder / "nowhere"), lambda: None])()


def swap_two_shards(folder: Path, shard: Path, draw: random.Random) -> None:
    others = sorted(set(folder.glob("*.safetensors")) - {shard})
    if not others:
        return truncate(folder, shard, draw)
    other = draw.choice(others)
    first, second = shard.read_bytes(), other.read_bytes()
    shard.write_bytes(second)
    other.write_bytes(first)
    return None


def break_the_index(folder: Path, shard: Path, draw: random.Random) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return truncate(folder, shard, draw)
    table = json.loads(index.read_text())
    names = sorted(table["weight_map"])
    match draw.randrange(6):
        case 0:
            table["weight_map"][draw.choice(names)] = draw.choice(
                ["../../etc/passwd", "/etc/passwd", "none.safetensors", "", "\0", "a" * 5000, 5, None]
            )
        case 1:
            table["weight_map"]["ghost.weight"] = shard.name
        case 2:
            table = draw.choice([[], None, {}, {"weight_map": 5}, {"weight_map": {}}])
        case 3:
            index.write_bytes(index.read_bytes()[: draw.randrange(200)])
            return None
        case 4:
            index.write_text("[" * 10**5)
            return None
        case 5:
            index.write_bytes(b"\xff\xfe" + index.read_bytes())
            return None
    index.write_text(json.dumps(table))
    return None


def break_the_config(folder: Path, shard: Path, draw: random.Random) -> None:
    values = draw.choice(
        [
            {"model_type": 5},
            {"model_type": ["a"]},
            {"architectures": 3},
            {"tie_word_embeddings": "x"},
            {"text_config": []},
            {"quantization_config": 7},
            {"quantization_config": {"weight_block_size": [0, -1]}},
            {"num_attention_heads": "x"},
        ]
    )
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(draw.choice([json.dumps(config), "{" * 10**5, "", "null", json.dumps(config)[:50]]))


def lie_in_a_companion(folder: Path, shard: Path, draw: random.Random) -> None:
    """Scales, maps and states of a quantised checkpoint; elsewhere any tensor."""
    header, data = parsed(shard)
    helpers = [name for name in header if "quant" in name or "absmax" in name] or [tensor_of(header, draw)]
    name = draw.choice(helpers)
    begin, end = header[name]["data_offsets"]
    noise = bytes(draw.randrange(256) for _ in range(end - begin))
    written(shard, header, data[:begin] + noise + data[end:])


MUTATIONS = [
    truncate, append, lie_about_header_length, lie_about_offsets, lie_about_shape, claim_the_size_of_a_country, lie_about_dtype,
    swap_a_dtype_of_the_same_size, overlap, name_twice, drop_a_tensor, break_the_json, flip_bytes, lose_a_shard, swap_two_shards,
    break_the_index, break_the_config, lie_in_a_companion,
]  # fmt: skip

# These change numbers or plain settings, not the structure, so what they leave may be a whole checkpoint of other numbers.
HARMLESS = {flip_bytes, swap_a_dtype_of_the_same_size, break_the_config, lie_in_a_companion}


def scanned(folder: Path) -> None:
    """What a scan does to a checkpoint, without the arithmetic."""
    checkpoint = Checkpoint.open(folder)
    for weight in checkpoint.linear:
        matrix = checkpoint.read(weight)
        assert matrix.shape == weight.shape
        assert np.isfinite(matrix).all()


def a_damaged_checkpoint(number: int, sources: list[Path], folder: Path) -> str:
    draw = random.Random(number)
    mutation = MUTATIONS[number % len(MUTATIONS)]
    copy = shutil.copytree(draw.choice(sources), folder / str(number))
    mutation(copy, draw.choice(sorted(copy.glob("*.safetensors"))), draw)
    tracemalloc.start()
    try:
        scanned(copy)
    except WorkbenchError as error:
        one_sentence(error)
        outcome = "refused"
    else:
        assert mutation in HARMLESS, (mutation.__name__, "was not noticed")
        outcome = "whole"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES, (mutation.__name__, peak)
    shutil.rmtree(copy)
    return outcome


@some(quick=len(MUTATIONS))
def test_a_damaged_checkpoint_is_refused_or_whole(numbers, sources, tmp_path):
    found = survived(a_damaged_checkpoint, numbers, sources, tmp_path)
    assert found["refused"] > len(numbers) // 2, found
