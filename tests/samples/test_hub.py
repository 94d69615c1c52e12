"""Fetching from a hub: the real client against a small server that speaks the hub's protocol on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraxs_core.errors import ModelNotFound
from sample_models import open_model, weights_are_here

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """GET /api/models/ID[/revision/main], /api/models/ID/tree/COMMIT, and HEAD or GET /ID/resolve/COMMIT/FILE."""

    repositories: ClassVar[dict[str, Path]] = {}
    gated: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        repo_id = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        folder = self.repositories.get(repo_id)
        if folder is None:
            return self.send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body)
        if repo_id in self.gated:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, body)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if parts[0] == "api" and "tree" in parts:
            tree = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": digest(file)}
                for file in files
            ]
            return self.send(200, json.dumps(tree).encode(), {}, body)
        if parts[0] == "api":
            info = {"id": repo_id, "sha": COMMIT, "siblings": [{"rfilename": str(file.relative_to(folder))} for file in files]}
            return self.send(200, json.dumps(info).encode(), {}, body)
        file = folder / "/".join(parts[4:])
        if not file.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        if body:
            self.asked.append(file.name)
        return self.send(200, file.read_bytes(), {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def at(endpoint: str, monkeypatch) -> None:
    """What the environment variable HF_ENDPOINT does when the client is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, and an empty cache; yields its handler class to put repositories on."""
    from huggingface_hub import constants

    handler = type("OneHub", (Hub,), {"repositories": {}, "gated": set(), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sharded(tiny_bert, tmp_path) -> Path:
    """A repository with two shards, and much that nobody needs."""
    folder = shutil.copytree(tiny_bert, tmp_path / "repository")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for part in (0, 1):
        file = f"model-{part + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[part::2]}, folder / file)
        weight_map |= dict.fromkeys(names[part::2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "original").mkdir()
    for waste in ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "model.onnx"):
        (folder / waste).write_bytes(b"waste")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_only_the_shards_of_the_index_are_fetched_and_only_once(hub, sharded):
    hub.repositories["someone/sharded"] = sharded
    seen = []
    checkpoint = open_model("someone/sharded", progress=seen.append)
    assert checkpoint.name == "someone/sharded"
    assert len(checkpoint.linear) == 13
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(hub.asked) == ["config.json", *weights, "model.safetensors.index.json", "tokenizer.json"]
    size = sum((sharded / name).stat().st_size for name in weights)
    steps = [step for step in seen if step.total == size]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == size
    hub.asked.clear()
    hub.repositories.clear()  # the hub forgets it, the cache does not
    assert open_model("someone/sharded").weights == checkpoint.weights
    assert open_model("someone/sharded", download=False).folder == checkpoint.folder
    assert hub.asked == []


def test_of_one_layer_only_its_shard_is_fetched(hub, sharded):
    hub.repositories["someone/sharded"] = sharded
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    layer = "encoder.layer.1.output.dense"
    one = open_model("someone/sharded", module="layer.1.output.dense")
    assert [weight.name for weight in one.linear] == [layer]
    assert [name for name in hub.asked if name.endswith(".safetensors")] == [index[f"{layer}.weight"]]
    hub.asked.clear()
    assert open_model("someone/sharded", module=f"bert.{layer}", download=False).weights == one.weights
    assert hub.asked == []
    assert not weights_are_here("someone/sharded")
    with pytest.raises(ModelNotFound, match=r"no numbers of a layer 'attention\.sideways'; `loraxs inspect"):
        open_model("someone/sharded", module="attention.sideways")
    hub.asked.clear()
    whole = open_model("someone/sharded")  # the rest is fetched when the whole is wanted
    assert [name for name in hub.asked if name.endswith(".safetensors")] == [
        name for name in sorted(set(index.values())) if name != index[f"{layer}.weight"]
    ]
    assert len(whole.linear) == 13
    assert len(open_model("someone/sharded", module=layer).linear) == 13
    assert (whole.read(whole.weight(layer)) == one.read(one.weight(layer))).all()


def test_a_single_file_is_preferred(hub, tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "repository")
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    hub.repositories["someone/whole"] = folder
    assert len(open_model("someone/whole").linear) == 13
    assert [name for name in hub.asked if name.endswith(".safetensors")] == ["model.safetensors"]


def test_an_architecture_is_fetched_without_its_weights_and_completed_when_they_are_wanted(hub, sharded):
    hub.repositories["someone/sharded"] = sharded
    bare = open_model("someone/sharded", weights=False)
    assert (bare.has_weights, bare.name) == (False, "someone/sharded")
    assert not [name for name in hub.asked if name.endswith(".safetensors")]
    assert "not its weights" in bare.note
    assert not weights_are_here("someone/sharded")
    hub.asked.clear()
    assert open_model("someone/sharded", weights=False, download=False).weights == bare.weights
    assert hub.asked == []
    with pytest.raises(ModelNotFound, match="not in the hub's cache"):
        open_model("someone/sharded", download=False)
    whole = open_model("someone/sharded")
    assert whole.has_weights
    assert weights_are_here("someone/sharded")
    assert [(one.name, one.shape) for one in whole.linear] == [(one.name, one.shape) for one in bare.linear]
    assert open_model("someone/sharded", weights=False).has_weights  # they are here now


def test_a_half_downloaded_model_serves_as_an_architecture(hub, sharded):
    hub.repositories["someone/sharded"] = sharded
    lost = open_model("someone/sharded").folder / "model-00002-of-00002.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    assert not open_model("someone/sharded", weights=False, download=False).has_weights


def test_an_interrupted_download_is_finished(hub, sharded):
    hub.repositories["someone/sharded"] = sharded
    checkpoint = open_model("someone/sharded")
    lost = checkpoint.folder / "model-00002-of-00002.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    hub.asked.clear()
    assert open_model("someone/sharded").weights == checkpoint.weights
    assert hub.asked == [lost.name]


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_fetched_and_opened_as_one(hub, tiny_bert, tmp_path, with_config):
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {"lora_A": torch.ones(2, 32), "lora_B": torch.ones(32, 2)}
    name = "base_model.model.encoder.layer.0.attention.self.query"
    save_file({f"{name}.{factor}.weight": matrix for factor, matrix in factors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    if with_config:
        shutil.copy(tiny_bert / "config.json", folder)
    hub.repositories["someone/adapter"] = folder
    for weights in (False, True):
        adapter = open_model("someone/adapter", weights=weights)
        assert [weight.name for weight in adapter.linear] == ["encoder.layer.0.attention.self.query"]
    hub.asked.clear()
    hub.repositories.clear()
    assert open_model("someone/adapter").read(adapter.linear[0])[0, 0] == 4.0
    assert weights_are_here("someone/adapter")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda hub, folder: None, "The hub has no model 'someone/sharded'"),
        (lambda hub, folder: hub.gated.add("someone/sharded"), "is gated on the hub"),
        (lambda hub, folder: [file.unlink() for file in folder.glob("*.safetensors*")], "has no safetensors weights"),
        (lambda hub, folder: (folder / "model-00002-of-00002.safetensors").unlink(), "lacks model-00002-of-00002"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(prepare, says, hub, sharded):
    prepare(hub, sharded)
    if "has no model" not in says:
        hub.repositories["someone/sharded"] = sharded
    with pytest.raises(ModelNotFound, match=says) as caught:
        open_model("someone/sharded")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_one_sentence(hub, monkeypatch):
    at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ModelNotFound, match="cannot be fetched from the hub") as caught:
        open_model("someone/sharded")
    assert "\n" not in str(caught.value)
