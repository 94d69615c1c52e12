"""Quantised checkpoints against the libraries that made them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError

DATA = Path(__file__).parent / "data"
BITSANDBYTES = ["bnb_nf4_double", "bnb_fp4", "bnb_int8"]


def made(folder: Path, tensors: dict[str, torch.Tensor], config: dict | None = None) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bitsandbytes_checkpoints_are_dequantised_as_it_does_itself(name):
    """The checkpoints were quantised and saved by transformers with bitsandbytes; see data/make_bitsandbytes.py."""
    checkpoint = Checkpoint.open(DATA / name)
    expected = load_file(DATA / name / "expected.safetensors")
    assert len(expected) == 5
    for module, matrix in expected.items():
        weight = checkpoint.weight(module)
        assert weight.shape == tuple(matrix.shape)
        assert weight.dtype == {"bnb_nf4_double": "nf4", "bnb_fp4": "fp4", "bnb_int8": "int8"}[name]
        assert np.abs(checkpoint.read(weight) - matrix.numpy()).max() <= 2e-7 * np.abs(matrix.numpy()).max()


@pytest.mark.parametrize("shape", [(1,), (1, 1), (6, 1), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_integers_with_scales_are_codes_times_scale(shape, dtype, tmp_path):
    """compressed-tensors' int-quantized: of the tensor, of each channel, of each group of columns."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (6, 8), dtype=torch.int8, generator=draw)
    scale = torch.rand(shape, generator=draw).to(dtype)
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}}
    tensors = {"layers.0.mlp.up_proj.weight": codes, "layers.0.mlp.up_proj.weight_scale": scale}
    checkpoint = made(tmp_path, tensors, config)
    wide = scale.float().reshape(-1, scale.shape[-1]).repeat_interleave(8 // scale.shape[-1], dim=1)
    assert np.array_equal(checkpoint.read(checkpoint.weight("layers.0.mlp.up_proj")), (codes.float() * wide).numpy())
    assert [weight.name for weight in checkpoint.weights] == ["layers.0.mlp.up_proj"]
    with pytest.raises(CheckpointError, match="has zero points"):
        made(tmp_path, tensors | {"layers.0.mlp.up_proj.weight_zero_point": torch.ones(shape, dtype=torch.int8)}, config)


# Tensors as the tools write them, beside an embedding that is not quantised: ending -> dtype and shape.
@pytest.mark.parametrize(
    ("method", "tensors", "says"),
    [
        ("vptq", {"centroids.weight": (torch.float16, (1, 24)), "indices": (torch.int32, (1, 5, 5))}, "(?:VPTQ|vptq)"),
        (None, {"trellis": (torch.int16, (2, 3, 32)), "suh": (torch.float16, (32,))}, "EXL3"),
        (None, {"q_weight": (torch.int32, (4, 8)), "q_scale": (torch.int32, (2, 8))}, "EXL2"),
        ("torchao", {"weight_qdata": (torch.int8, (8, 8)), "weight_scale": (torch.float32, (8, 1))}, "torchao"),
        (
            "modelopt",
            {
                "weight": (torch.uint8, (8, 16)), "weight_scale": (torch.float8_e4m3fn, (8, 2)),
                "weight_scale_2": (torch.float32, ()),
            },
            "NVFP4",
        ),
        ("bitnet", {"weight": (torch.uint8, (2, 8)), "weight_scale": (torch.bfloat16, (1,))}, "bitnet"),
        ("higgs", {"weight": (torch.int16, (8, 2)), "scales": (torch.float16, (8, 1))}, "higgs"),
        ("eetq", {"weight": (torch.int8, (8, 8)), "weight_scales": (torch.float16, (8,))}, "eetq"),
    ],
)  # fmt: skip
def test_what_is_not_decoded_is_named_and_never_read_as_numbers(method, tensors, says, tmp_path):
    whole = {f"layers.0.mlp.up_proj.{ending}": torch.ones(shape).to(dtype) for ending, (dtype, shape) in tensors.items()}
    with pytest.raises(CheckpointError, match=rf"is quantised \({says}: layers\.0\.mlp\.up_proj"):
        made(
            tmp_path,
            whole | {"embed_tokens.weight": torch.ones(8, 8), "lm_head.weight": torch.ones(8, 8)},
            {"quantization_config": {"quant_method": method}} if method else {},
        )


def test_plain_weights_that_are_to_be_quantised_later_are_read(tmp_path):
    tensors = {"layers.0.mlp.up_proj.weight": torch.ones(8, 8), "position_ids": torch.ones(1, 8, dtype=torch.int64)}
    assert len(made(tmp_path, tensors, {"quantization_config": {"quant_method": "bitnet"}}).linear) == 1


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_the_inventory_of_a_quantised_checkpoint_is_that_of_its_model(name):
    from loraxs_core.architecture import inventory_from_config

    checkpoint = Checkpoint.open(DATA / name)
    predicted = inventory_from_config(
        {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}, name
    )
    assert [(weight.name, weight.shape, weight.role) for weight in checkpoint.weights] == [
        (weight.name, weight.shape, weight.role) for weight in predicted.weights
    ]


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_strips_of_a_quantised_matrix_are_its_rows_and_columns(name):
    checkpoint = Checkpoint.open(DATA / name)
    weight = checkpoint.weight("layers.0.mlp.down_proj")
    whole = checkpoint.read(weight)
    for start, stop in ((0, 1), (5, 17), (35, 36), (7, 7)):
        assert np.array_equal(checkpoint.read_rows(weight, start, stop), whole[start:stop])
        assert np.array_equal(checkpoint.strips(weight).columns(start, stop), whole[:, start:stop])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bnb_int8", ".SCB"),
        *((name, part) for name in ("bnb_nf4_double", "bnb_fp4") for part in (".absmax", ".quant_map", "quant_state")),
        ("bnb_nf4_double", ".nested_absmax"),
        ("bnb_nf4_double", ".nested_quant_map"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "short", "text"])
def test_a_damaged_companion_is_one_sentence(name, part, damage, tmp_path):
    folder = shutil.copytree(DATA / name, tmp_path / name)
    (folder / "expected.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    victims = [key for key in tensors if part in key and "down_proj" in key]
    if damage == "missing":
        del tensors[victims[0]]
    elif damage == "short":
        tensors[victims[0]] = tensors[victims[0]][:-1].clone()
    else:
        tensors[victims[0]] = torch.frombuffer(bytearray(b'{"shape": [9, "x"], "blocksize": -4}'), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")

    def scan() -> None:
        checkpoint = Checkpoint.open(folder)
        checkpoint.read(checkpoint.weight("layers.0.mlp.down_proj"))

    with pytest.raises(CheckpointError, match=r"down_proj.* (cannot be dequantised|unknown quantisation)") as caught:
        scan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_code_is_read_as_torch_reads_it(tmp_path, dtype):
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).reshape(16, 16)
    checkpoint = made(tmp_path, {"a.q_proj.weight": codes})
    read = checkpoint.read(checkpoint.weights[0], check=False)
    assert np.array_equal(read, codes.float().numpy(), equal_nan=True)
    assert checkpoint.weights[0].dtype == str(dtype).removeprefix("torch.")


def _float8(shape):
    torch.manual_seed(0)
    return (torch.randn(*shape) * 50).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("weight_scale", lambda: torch.tensor(0.25), lambda w, s: w * s),
        ("weight_scale", lambda: torch.tensor([0.25]), lambda w, s: w * s),
        ("weight_scale", lambda: torch.rand(100), lambda w, s: w * s[:, None]),
        ("weight_scale", lambda: torch.rand(100, 1).bfloat16(), lambda w, s: w * s.float()),
        ("weight_scale", lambda: torch.rand(1, 70), lambda w, s: w * s),
        ("scale_weight", lambda: torch.tensor(0.5), lambda w, s: w * s),
        (
            "weight_scale_inv",
            lambda: torch.rand(4, 3),
            lambda w, s: w * s.repeat_interleave(32, 0)[:100].repeat_interleave(32, 1)[:, :70],
        ),
    ],
)
def test_float8_with_its_scales(tmp_path, name, scale, expected):
    weight, scale = _float8((100, 70)), scale()
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    checkpoint = made(tmp_path, {"a.q_proj.weight": weight, f"a.q_proj.{name}": scale}, config)
    (found,) = checkpoint.linear
    wanted = expected(weight.float(), scale).numpy()
    assert np.array_equal(checkpoint.read(found), wanted)
    assert np.array_equal(checkpoint.read_rows(found, 31, 67), wanted[31:67])
    assert np.array_equal(checkpoint.strips(found).columns(31, 67), wanted[:, 31:67])


@pytest.mark.parametrize("exponents", [False, True])
@pytest.mark.parametrize("shape", [(256, 384), (2, 256, 384)])
def test_float8_blocks_as_transformers_dequantises_them(tmp_path, shape, exponents):
    """DeepSeek's layout, with scales as numbers and as bare exponents, through transformers' own dequantisation."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight, grid = _float8(shape), (*shape[:-2], 2, 3)
    scale = torch.randint(110, 140, grid, dtype=torch.uint8) if exponents else torch.rand(grid)
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32).reshape(-1, *shape[-2:]).numpy()
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    name = "mlp.experts.down_proj" if len(shape) == 3 else "a.q_proj.weight"
    checkpoint = made(tmp_path, {name: weight, f"{name}_scale_inv": scale}, config)
    assert len(checkpoint.linear) == len(theirs)
    for weight in checkpoint.linear:
        assert np.array_equal(checkpoint.read(weight), theirs[weight.expert or 0])


def test_a_float8_stack_of_experts(tmp_path):
    stack, scale = _float8((3, 64, 32)), torch.rand(3, 64, 1)
    checkpoint = made(tmp_path, {"mlp.experts.down_proj": stack, "mlp.experts.down_proj_scale": scale})
    assert [weight.name for weight in checkpoint.linear] == [f"mlp.experts.down_proj[{expert}]" for expert in range(3)]
    for weight in checkpoint.linear:
        assert np.array_equal(checkpoint.read(weight), (stack.float() * scale)[weight.expert].numpy())


def test_float8_without_its_scale_is_refused(tmp_path):
    config = {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(CheckpointError, match="its scale tensor is missing"):
        made(tmp_path / "a", {"a.q_proj.weight": _float8((8, 8))}, config)
    with pytest.raises(CheckpointError, match=r"b\.q_proj\.weight .* its scale tensor is missing"):
        made(
            tmp_path / "b",
            {
                "a.q_proj.weight": _float8((8, 8)),
                "a.q_proj.weight_scale": torch.tensor(1.0),
                "b.q_proj.weight": _float8((8, 8)),
            },
        )
    with pytest.raises(CheckpointError, match=r"its scales .* fit neither"):
        made(tmp_path / "c", {"a.q_proj.weight": _float8((8, 8)), "a.q_proj.weight_scale": torch.rand(5, 3)}, config)


def test_mxfp4_as_transformers_dequantises_it(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.randint(110, 135, (2, 6, 3), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    checkpoint = made(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales}, {"model_type": "gpt_oss"})
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # (experts, in, out), as the model keeps it
    assert [weight.shape for weight in checkpoint.linear] == [(6, 96)] * 2
    for weight in checkpoint.linear:
        assert np.array_equal(checkpoint.read(weight), theirs[weight.expert].T.numpy())
        assert np.array_equal(checkpoint.read_rows(weight, 2, 5), theirs[weight.expert].T[2:5].numpy())


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.q_proj.qweight": torch.zeros(4, 8, dtype=torch.int32), "a.q_proj.scales": torch.ones(1, 8)},
        {"a.q_proj.weight_packed": torch.zeros(8, 1, dtype=torch.int32)},
    ],
)
def test_formats_that_are_not_decoded_are_refused_by_name(tmp_path, tensors):
    with pytest.raises(CheckpointError, match="which is not decoded; give the checkpoint it was made from"):
        made(tmp_path, tensors | {"lm_head.weight": torch.ones(8, 8)})


def test_bare_integers_are_never_read_as_weights(tmp_path):
    checkpoint = made(tmp_path, {"a.q_proj.weight": torch.ones(8, 8, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="unknown quantisation"):
        checkpoint.read(checkpoint.linear[0])


def test_every_file_behind_a_matrix_is_known(tmp_path):
    """A scan notices a change of the scales as it does one of the codes."""
    save_file({"a.q_proj.weight": _float8((8, 8))}, tmp_path / "codes.safetensors")
    save_file({"a.q_proj.weight_scale": torch.tensor(2.0)}, tmp_path / "scales.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    (weight,) = checkpoint.linear
    assert {file.path.name for file in checkpoint.stored(weight).sources} == {"codes.safetensors", "scales.safetensors"}
    assert np.isfinite(checkpoint.read(weight)).all()
