"""Commands over a cache that was damaged, swapped or made read-only: the right answer, or one sentence, and never exit code 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertModel

from analyzers.memory import MemorySettings, estimate_memory
from analyzers.spectra import cached, scan
from app import cli
from loraxs_core import bases as bases_module
from loraxs_core import cache as cache_module
from loraxs_core.bases import Bases, are_triples, bases
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.tuner import LoraXSConfig
from tests.app.test_cli import call, call_json

RANK = 8


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch):
    monkeypatch.setattr(cache_module, "_said", {})


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A BERT whose matrices are large enough for their bases to be cached."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    BertModel(
        BertConfig(vocab_size=64, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(wide, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(BertModel.from_pretrained(wide), LoraXSConfig(r=RANK, target_modules=["query", "value"]))
    model.save_pretrained(folder)
    return folder


def merged(adapter: Path, wide: Path, out: Path, capsys) -> dict[str, np.ndarray]:
    code, _, err = call(capsys, "merge", str(adapter), "--model", str(wide), "--out", str(out))
    assert code == 0, err
    return load_file(out / "model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def kept(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "cache" / kind).rglob("*.kept"))


def flips(path: Path, count: int, seed: int):
    """The file with one random bit flipped, `count` times; whole again at the end."""
    sound, random = path.read_bytes(), np.random.default_rng(seed)
    for position, bit in zip(random.integers(len(sound), size=count), random.integers(8, size=count), strict=True):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        yield position, bit
    path.write_bytes(sound)


def test_a_flipped_singular_value_is_believed_by_neither_verify_nor_merge(wide, adapter, own_folders, capsys):
    right = merged(adapter, wide, own_folders / "right", capsys)
    for number, path in enumerate(kept(own_folders, "bases")):
        raw = bytearray(path.read_bytes())
        raw[-20 - number] ^= 64
        path.write_bytes(raw)
    checked = call_json(capsys, "verify", str(adapter), "--model", str(wide))
    assert checked["ok"]
    assert same(merged(adapter, wide, own_folders / "again", capsys), right)


def test_a_wrong_singular_value_under_a_right_checksum_is_not_believed_either(wide, adapter, own_folders, capsys):
    """What was written wrong, or is of another weight: the checksum fits, and the weight does not."""
    right = merged(adapter, wide, own_folders / "right", capsys)
    name = "encoder.layer.0.attention.self.query"
    base = Checkpoint.open(wide)
    matrix = base.read(base.weight(name))
    digest, _ = bases_module.identify(matrix)
    found = bases(matrix, RANK)
    for index in range(RANK):
        values = np.array(found.S)
        values[index] *= 0.997
        values[index + 1 :] *= 0.99  # still descending
        bases_module._keep(digest, Bases(found.U, values, found.Vt, found.identity), "", name)
        np.testing.assert_array_equal(bases(matrix, RANK).S, found.S)
    bases_module._keep(digest, Bases(found.U, found.S * 3, found.Vt, found.identity), "", name)
    assert same(merged(adapter, wide, own_folders / "again", capsys), right)


def test_the_check_of_triples_takes_every_sound_kind_of_weight():
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((side, 256)))[0] for side in (300, 256))
    for values in (
        np.linspace(1, 0.1, 256), np.geomspace(1, 1e-9, 256), np.ones(256), np.r_[np.ones(8), np.full(248, 1 - 1e-9)],
        np.r_[np.ones(4), np.zeros(252)], np.geomspace(1e-30, 1e-33, 256), np.zeros(256), np.geomspace(1, 1e-3, 256) * 1e20,
    ):  # fmt: skip
        matrix = ((left * values) @ right.T).astype(np.float32)
        found = bases(matrix, 32, cache=False)
        single = Bases(found.U.astype(np.float32), found.S.astype(np.float32), found.Vt.astype(np.float32), found.identity)
        assert are_triples(matrix, single), values[:3]


def test_of_200_flipped_bits_in_a_basis_none_changes_it(wide, own_folders):
    base = Checkpoint.open(wide)
    matrix = base.read(base.weight("encoder.layer.0.attention.self.query"))
    first = bases(matrix, RANK)
    (path,) = kept(own_folders, "bases")
    for where in flips(path, 200, seed=1):
        again = bases(matrix, RANK)
        for one, other in zip((first.U, first.S, first.Vt), (again.U, again.S, again.Vt), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=str(where))


def test_of_200_flipped_bits_in_a_spectrum_none_changes_it(tiny_bert, own_folders):
    checkpoint = Checkpoint.open(tiny_bert)
    first = scan(checkpoint)
    for number, path in enumerate(kept(own_folders, "spectra")[:4]):
        for where in flips(path, 50, seed=number):
            assert cached(checkpoint) is None, where
    assert scan(checkpoint).frame().equals(first.frame())


def test_of_200_flipped_bits_in_an_estimate_none_changes_it(tiny_llama, own_folders, monkeypatch):
    from analyzers.memory import estimate as module

    checkpoint, settings = Checkpoint.open(tiny_llama), MemorySettings(rank=4, sequence=16)
    first = estimate_memory(checkpoint, settings)
    traced = []
    monkeypatch.setattr(module, "_traced", lambda *_: traced.append(1) or first)
    (path,) = kept(own_folders, "memory")
    for number, _ in enumerate(flips(path, 200, seed=3), 1):
        assert estimate_memory(checkpoint, settings) == first
        assert len(traced) == number  # worked out again, not read


def test_a_model_swapped_for_one_of_the_same_length_and_time_is_scanned_anew(tmp_path, own_folders):
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "model.safetensors"

    def write(scale: float, target: Path) -> None:
        weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32) * np.float32(scale)
        save_file({"layer.0.query.weight": weight}, target)

    write(1, file)
    before = file.stat()
    old = scan(Checkpoint.open(folder)).frame()["sigma_max"][0]
    for replaced in (True, False):  # another file in its place, or other bytes in the same one
        scale = 10 if replaced else 20
        target = folder / "new" if replaced else tmp_path / "written.safetensors"
        write(scale, target)
        if replaced:
            os.replace(target, file)
        else:
            file.write_bytes(target.read_bytes())
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        spectra = scan(Checkpoint.open(folder))
        assert not spectra.from_cache
        assert spectra.frame()["sigma_max"][0] == pytest.approx(scale * old, rel=1e-6)


def test_a_model_that_only_got_another_mode_while_it_is_open_is_still_itself(tiny_bert, tmp_path, own_folders):
    shutil.copytree(tiny_bert, tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    scan(checkpoint)
    os.chmod(tmp_path / "model" / "model.safetensors", 0o600)
    assert cached(checkpoint) is not None


def test_a_fault_of_the_program_has_an_exit_code_of_its_own(capsys, monkeypatch):
    for error in (PermissionError(13, "Permission denied", "x"), RecursionError("deep"), AttributeError("None"), MemoryError()):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(cli, "app", fail)
        code, _, err = call(capsys, "verify", "x")
        assert code == cli.FAULT == 70
        assert "Traceback" in err
        assert "fault of the program" in err


@pytest.fixture
def as_a_user() -> list[str]:
    """What to put before a command so that the modes of files hold for it: nothing, or for root the loss of what overrides them."""
    if os.geteuid() != 0:
        return []
    dropped = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if not shutil.which("setpriv") or subprocess.run([*dropped, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root writes everywhere here")
    return dropped


@pytest.mark.parametrize("filled", [True, False])
def test_a_cache_that_others_may_only_read_serves_them(wide, adapter, own_folders, as_a_user, filled):
    """verify and scan: the same answer from a cache that this user cannot write, with a remark at most."""

    def run(*arguments: str, before: list[str]) -> subprocess.CompletedProcess:
        command = [*before, sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)

    cache = own_folders / "cache"
    cache.mkdir()
    commands = (("verify", str(adapter), "--model", str(wide)), ("scan", str(wide)))
    if filled:
        assert [run(*command, before=[]).returncode for command in commands] == [0, 0]
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert run("cache", "--limit", "1GB", before=as_a_user).returncode == 2  # it is read-only indeed
        for command in commands:
            done = run(*command, before=as_a_user)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
            assert done.stderr.count("nothing is kept in the cache") == (not filled)
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_bases_are_listed_by_the_model_they_are_of(wide, adapter, own_folders, capsys):
    def models() -> set[str]:
        return {group["model"] for group in call_json(capsys, "cache", "--kind", "bases")["kept"]}

    get_peft_model(BertModel.from_pretrained(wide), LoraXSConfig(r=RANK, target_modules=["query", "value"]))
    assert models() == {str(wide)}
    shutil.rmtree(own_folders / "cache")
    assert call(capsys, "verify", str(adapter), "--model", str(wide))[0] == 0
    assert models() == {str(wide)}
    elsewhere = shutil.copytree(adapter, own_folders / "elsewhere")
    config = json.loads((elsewhere / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "of/another-machine"}))
    for verb, out in (("merge", "merged"), ("export", "exported")):
        shutil.rmtree(own_folders / "cache")
        assert call(capsys, verb, str(elsewhere), "--model", str(wide), "--out", str(own_folders / out))[0] == 0
        assert models() == {str(wide)}, verb
