"""`loraxs store`, as a person types it."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.app.test_cli import call, call_json
from tests.core.store.stores import fleet


@pytest.fixture(scope="module")
def folders(tiny_llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("fleet")
    fleet(tiny_llama, root, 3)
    return root


@pytest.fixture
def store(folders, tmp_path, capsys):
    assert call(capsys, "store", "create", str(tmp_path / "store"))[0] == 0
    assert call(capsys, "store", "import", str(tmp_path / "store"), str(folders))[0] == 0
    return str(tmp_path / "store")


def test_a_walk_from_import_to_export(store, folders, tmp_path, capsys):
    listed = call_json(capsys, "store", "list", store)
    assert [(one["name"], one["versions"]) for one in listed["adapters"]] == [("user-0", 1), ("user-1", 1), ("user-2", 1)]
    put = call_json(capsys, "store", "put", store, "user-0", str(folders / "user-1"))
    assert put["new"]
    assert not call_json(capsys, "store", "put", store, "user-0", str(folders / "user-1"))["new"]
    assert [one["version"] for one in call_json(capsys, "store", "versions", store, "user-0")] == [put["version"], 1]
    code, _, err = call(capsys, "store", "get", store, "user-0", "--version", "1", "--out", str(tmp_path / "cores.safetensors"))
    assert (code, "its checksum is right" in err) == (0, True)
    written = load_file(folders / "user-0" / "adapter_model.safetensors")
    for module, core in load_file(tmp_path / "cores.safetensors").items():
        assert core.equal(written[f"base_model.model.{module}.loraxs_R"])
    assert call(capsys, "store", "export", store, "user-2", "--out", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        folders / "user-2" / "adapter_model.safetensors"
    ).read_bytes()
    assert call_json(capsys, "store", "gc", store, "--keep", "1")["versions"] == 1
    assert call_json(capsys, "store", "verify", store)["sound"]
    assert call_json(capsys, "store", "backup", store, str(tmp_path / "backup"))["versions"] == 3
    assert call_json(capsys, "store", "restore", str(tmp_path / "backup"), str(tmp_path / "again"))["versions"] == 3
    assert len(call_json(capsys, "store", "delete", store, "user-0")) == 1
    assert call_json(capsys, "store", "list", store, "user-0")["adapters"] == []


def test_nothing_is_overwritten_silently(store, folders, tmp_path, capsys):
    (tmp_path / "cores.safetensors").write_bytes(b"mine")
    code, _, err = call(capsys, "store", "get", store, "user-0", "--out", str(tmp_path / "cores.safetensors"))
    assert (code, "exists already" in err) == (2, True)
    code, _, err = call(capsys, "store", "export", store, "user-0", "--out", str(folders / "user-1"))
    assert (code, "holds an adapter already" in err) == (2, True)
    code, _, err = call(capsys, "store", "create", store)
    assert (code, "holds a store already" in err) == (2, True)
    assert (tmp_path / "cores.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "{tmp}/nothing"), "There is no store in"),
        (("get", "{store}", "nobody"), "There is no adapter 'nobody'"),
        (("get", "{store}", "user-0", "--version", "77"), "has no version 77"),
        (("put", "{store}", "x", "{tmp}/nothing"), "There is no adapter folder"),
        (("put", "{store}", "a\tb", "{folders}/user-0"), "control character"),
        (("import", "{store}", "{tmp}/nothing"), "There is no folder"),
        (("gc", "{store}", "--keep", "0"), "At least 1 version"),
        (("backup", "{store}", "nosuch://x/y"), "Cannot use nosuch://x/y"),
        (("restore", "{tmp}/nothing", "{tmp}/new"), "There is no backup of a store"),
        (("restore", "{tmp}/nothing", "{store}"), "There is no backup of a store"),
    ],
)
def test_bad_inputs_get_one_sentence(store, folders, tmp_path, capsys, arguments, said):
    given = [one.format(store=store, tmp=tmp_path, folders=folders) for one in arguments]
    code, out, err = call(capsys, "store", *given)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_what_cannot_be_imported_is_named_and_the_rest_is_in(store, folders, tmp_path, capsys):
    import shutil

    shutil.copytree(folders / "user-0", tmp_path / "in" / "good")
    shutil.copytree(folders / "user-0", tmp_path / "in" / "cut")
    file = tmp_path / "in" / "cut" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    code, out, _ = call(capsys, "store", "import", store, str(tmp_path / "in"), "--prefix", "new/", "--json")
    told = json.loads(out)
    assert (code, told["put"], told["refused"]) == (1, 1, 1)
    assert [(one["name"], one["why"] is None) for one in told["adapters"]] == [("new/cut", False), ("new/good", True)]


def test_damage_is_named_and_can_be_cleared(store, capsys):
    from pathlib import Path

    from loraxs_core.store import AdapterStore

    file = next(Path(store).glob("*.mdb"))
    content = bytearray(file.read_bytes())
    row = bytes(AdapterStore(store).get("user-1").row)
    content[content.find(row[:64]) + 8] ^= 4
    file.write_bytes(content)
    code, _, err = call(capsys, "store", "get", store, "user-1")
    assert (code, "user-1@2 is damaged" in err) == (2, True)
    code, _, err = call(capsys, "store", "verify", store, "--delete-damaged")
    assert (code, "user-1@2" in err) == (1, True)
    assert call(capsys, "store", "verify", store)[0] == 0
