"""The safetensors reader against the reference library, and against files that lie."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraxs_core.errors import CheckpointError
from loraxs_core.safetensors_file import SafetensorsFile


def write(path, header, data: bytes = b"", *, length: int | None = None):
    """A file with any header whatever, lying ones included."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
)
def test_reads_what_the_reference_library_wrote(tmp_path, dtype):
    torch.manual_seed(0)
    tensor = (torch.randn(7, 5) * 100).to(dtype)
    save_file(
        {"first": torch.ones(3), "x": tensor, "scalar": torch.tensor(2.5)},
        tmp_path / "a.safetensors",
        metadata={"format": "pt"},
    )
    file = SafetensorsFile(tmp_path / "a.safetensors")
    expected = tensor.float() if dtype in (torch.bfloat16, torch.float16) else tensor
    assert np.array_equal(file.read("x"), expected.numpy())
    assert np.array_equal(file.read("x", 2, 4), expected[2:4].numpy())
    assert file.read("x", 6, 99).shape == (1, 5)
    assert file.read("x", 5, 2).shape == (0, 5)
    assert file.entries["x"].torch_dtype == str(dtype).removeprefix("torch.")
    assert file.read("scalar") == 2.5
    assert file.metadata == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_a_dtype_that_is_not_decoded_is_no_damage(tmp_path, dtype):
    with pytest.raises(
        CheckpointError, match=rf"stored as {dtype}, which is not decoded; give the checkpoint it was made from\.$"
    ):
        SafetensorsFile(write(tmp_path / "a.safetensors", {"x": entry(dtype)}, bytes(16)))


def test_every_bfloat16_is_read_exactly(tmp_path):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    save_file({"x": bits.view(torch.bfloat16)}, tmp_path / "a.safetensors")
    read = SafetensorsFile(tmp_path / "a.safetensors").read("x")
    expected = bits.view(torch.bfloat16).float().numpy()
    assert np.array_equal(read, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"x": entry(shape=(2, 3))}, b"\0" * 16, "needs 24 bytes, its offsets give 16"),
        ({"x": entry(offsets=(0, 160), shape=(4, 10))}, b"\0" * 16, "truncated"),
        ({"x": entry(shape=(10**9, 10**4), offsets=(0, 4 * 10**13))}, b"\0" * 16, "truncated"),
        ({"x": entry(shape=(10**9,), offsets=(0, 16))}, b"\0" * 16, "needs 4,000,000,000 bytes"),
        ({"x": entry(shape=[10**40])}, b"\0" * 16, "impossible shape"),
        ({"x": entry(shape=[2**47] * 8)}, b"\0" * 16, "needs"),
        ({"x": entry(shape=[1] * 1000)}, b"\0" * 16, "impossible shape"),
        ({"x": entry(shape=(-2, -2))}, b"\0" * 16, "impossible shape"),
        ({"x": entry(shape=(2.0, 2.0))}, b"\0" * 16, "impossible shape"),
        ({"x": entry(shape=(True, 4))}, b"\0" * 16, "impossible shape"),
        ({"x": entry(offsets=(16, 0))}, b"\0" * 16, "needs 16 bytes"),
        ({"x": entry(offsets=(0,))}, b"\0" * 16, "malformed data offsets"),
        ({"x": entry(dtype="F4096")}, b"\0" * 16, "unknown dtype"),
        ({"x": entry(dtype=["F32"])}, b"\0" * 16, "unknown dtype"),
        ({"x": [1, 2]}, b"\0" * 16, "malformed"),
        ({"x": entry(), "y": entry(offsets=(8, 24))}, b"\0" * 24, "does not begin where the one before it ends"),
        ({"x": entry(), "y": entry(offsets=(24, 40))}, b"\0" * 40, "does not begin where the one before it ends"),
        ({"x": entry()}, b"\0" * 20, "something was appended"),
        (b'{"x": 1, "x": 2}', b"", "names 'x' twice"),
        (b"[1, 2]", b"", "not a JSON object"),
        (b"{not json", b"", "not JSON"),
        (b"\xff\xfe" * 20, b"", "not JSON"),
        (b'{"a":' * 200_000, b"", "not JSON"),
        ({"y" * 100_000: entry(shape=(2, 3))}, b"\0" * 16, "needs 24 bytes"),
    ],
)
def test_a_lying_header_is_one_short_sentence(tmp_path, header, data, says):
    path = write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(CheckpointError, match=says) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert "a.safetensors" in message
    assert "\n" not in message
    assert len(message) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("length", [0, 4, 7, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_false_header_length_is_refused(tmp_path, length):
    path = write(tmp_path / "a.safetensors", {"x": entry()}, b"\0" * 16, length=length)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        SafetensorsFile(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"PK\x03\x04" + b"\0" * 100])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(100, 100)}, path)
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        file.read("x")


def test_what_is_not_there_is_named(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no tensor named 'y'"):
        SafetensorsFile(tmp_path / "a.safetensors").read("y")
    with pytest.raises(CheckpointError, match="Cannot read"):
        SafetensorsFile(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"__metadata__": {"step": 1}, "x": entry()}, "metadata is no table of texts"),
        ({"__metadata__": {"step": None}, "x": entry()}, "metadata is no table of texts"),
        ({"__metadata__": ["pt"], "x": entry()}, "metadata is no table of texts"),
        ({"__metadata__": "", "x": entry()}, "metadata is no table of texts"),
        (json.dumps({"x": entry()}).encode("utf-16"), "header is not JSON"),
        (json.dumps({"x": entry()}).encode("utf-8-sig"), "header is not JSON"),
        ({"\ud800": entry()}, "name is no text"),
    ],
    ids=["number", "null value", "list", "empty text", "UTF-16", "byte order mark", "half a character"],
)
def test_what_the_reference_library_refuses_is_refused(tmp_path, header, says):
    from safetensors import SafetensorError, safe_open

    path = write(tmp_path / "a.safetensors", header, bytes(16))
    with pytest.raises(SafetensorError):
        safe_open(path, framework="np")
    with pytest.raises(CheckpointError, match=says):
        SafetensorsFile(path)
