"""Adapters on their way to other people: the card, the base's name, the hub, and a machine that has PEFT and not this package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from loraxs_core.base_name import base_name
from loraxs_core.tuner import LoraXSConfig, read_adapter, verify_adapter
from tests.samples.test_hub import COMMIT, Hub

TOKENS = torch.arange(2, 14).reshape(2, 6)
REPOSITORY = Path(__file__).parents[2]


def adapted(folder, **config):
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_weights": False} | config
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraXSConfig(**settings)).eval()


def snapshot(tiny_llama, tmp_path, card="---\nlicense: apache-2.0\n---\n# A model\n"):
    folder = tmp_path / "hub" / "models--some--model" / "snapshots" / COMMIT
    shutil.copytree(tiny_llama, folder)
    (folder / "README.md").write_text(card)
    return folder


def settings_of(folder) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def test_the_card_says_what_it_is_and_is_valid_for_the_hub(tiny_llama, tmp_path):
    adapted(snapshot(tiny_llama, tmp_path), rank_pattern={"v_proj": 4}).save_pretrained(tmp_path / "xs")
    card = ModelCard.load(tmp_path / "xs" / "README.md")
    data = card.data.to_dict()
    assert data == {
        "base_model": "some/model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:some/model", "lora-xs", "transformers"],
    }
    validate_repo_id(data["base_model"])
    assert set(data) - {"base_model_relation"} <= set(ModelCardData().__dict__)
    for said in ("2 in 2, 4 in 2", "40", "pip install loraxs-workbench", "import loraxs_core.tuner", "`apache-2.0`", COMMIT):
        assert said in card.text
    assert f"{(tmp_path / 'xs' / 'adapter_model.safetensors').stat().st_size:,} bytes" in card.text
    assert "More Information Needed" not in card.text


def test_no_file_names_a_path_of_this_machine(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    model.add_adapter("second", LoraXSConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "xs")
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    texts = [file.read_text() for file in tmp_path.rglob("*") if file.suffix in (".json", ".md")]
    assert len(texts) == 10
    assert not [text for text in texts if str(tiny_llama) in text or "/tmp" in text]
    assert settings_of(tmp_path / "xs")["base_model_name_or_path"] is None


@pytest.mark.parametrize(
    ("given", "revision", "id", "commit"),
    [
        ("some/model", None, "some/model", None),
        ("gpt2", "main", "gpt2", "main"),
        (f"/home/who/.cache/huggingface/hub/models--a--b/snapshots/{COMMIT}", None, "a/b", COMMIT),
        (rf"C:\Users\who\hub\models--a--b\snapshots\{COMMIT}", None, "a/b", COMMIT),
        ("/home/who/models/llama", None, None, None),
        ("./llama", None, None, None),
        (r"C:\models\llama", None, None, None),
        ("tests", None, None, None),
        (None, None, None, None),
    ],
)
def test_a_base_is_named_by_what_others_can_find(given, revision, id, commit, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = base_name(given, revision)
    assert (found.id, found.revision) == (id, commit)


def test_the_revision_is_the_commit_that_transformers_loaded(tiny_llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.name_or_path, model.config._commit_hash = "some/model", COMMIT
    config = LoraXSConfig(r=2, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "xs")
    assert settings_of(tmp_path / "xs")["revision"] == COMMIT
    assert read_adapter(tmp_path / "xs").config.revision == COMMIT


def test_what_a_person_wrote_into_the_card_is_kept(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.license = "mit"
    card.text = f"Trained by me.\n\n{card.text}\n\nIt was fun."
    card.save(tmp_path / "README.md")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.text.strip().startswith("Trained by me.")
    assert "It was fun." in card.text
    assert card.text.count("# LoRA-XS adapter of") == 1


ALONE = """
import sys
sys.modules["loraxs_core"] = None  # as where it is not installed
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for load in (lambda: PeftModel.from_pretrained(base, sys.argv[2]), lambda: base.load_adapter(sys.argv[2]), lambda: PeftConfig.from_pretrained(sys.argv[2])):
    try:
        load()
    except KeyError as error:
        print(error)
"""


def test_peft_alone_tells_what_to_install(tiny_llama, tmp_path):
    adapted(tiny_llama).save_pretrained(tmp_path)
    command = [sys.executable, "-c", ALONE, tiny_llama, tmp_path]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["'LORAXS: pip install loraxs-workbench, then import loraxs_core.tuner'"] * 3


def test_adapters_that_call_their_method_by_the_short_word_keep_loading(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings_of(tmp_path) | {"peft_type": "LORAXS"}))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path)
    torch.testing.assert_close(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    assert {check.status for check in verify_adapter(tmp_path, AutoModelForCausalLM.from_pretrained(tiny_llama))} == {"same"}


class WritableHub(Hub):
    """Also POST /api/repos/create, /api/models/ID/preupload/main and /api/models/ID/commit/main, which takes files in base64."""

    root: Path

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(content)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.root / repo_id).mkdir(parents=True)
            self.repositories[repo_id] = self.root / repo_id
            return self.reply({"url": f"http://{self.headers['Host']}/{repo_id}", "id": repo_id})
        if "preupload" in parts:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(content)["files"]
            ]
            return self.reply({"files": files})
        if "commit" not in parts:
            return self.reply({})  # the card's front matter, which the hub itself would judge
        repo_id = "/".join(parts[2:4])
        for line in content.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                (self.repositories[repo_id] / entry["value"]["path"]).write_bytes(base64.b64decode(entry["value"]["content"]))
        return self.reply({"commitOid": COMMIT, "commitUrl": f"http://{self.headers['Host']}/{repo_id}/commit/{COMMIT}"})

    def reply(self, answer: dict) -> None:
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=True)


PUSH = """
import sys, torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from loraxs_core.tuner import LoraXSConfig
base, out = sys.argv[1:]
tokens = torch.arange(2, 14).reshape(2, 6)
config = LoraXSConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_weights=False)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
model.push_to_hub("me/pushed", token="t")
again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "me/pushed", token="t").eval()
torch.testing.assert_close(again(input_ids=tokens).logits, model(input_ids=tokens).logits)
model.save_pretrained(out)
from huggingface_hub import HfApi
HfApi(token="t").create_repo("me/uploaded")
HfApi(token="t").upload_folder(repo_id="me/uploaded", folder_path=out)
"""


def test_push_to_hub_works_as_with_any_adapter(tiny_llama, tmp_path):
    """A real client in a process of its own (it reads HF_ENDPOINT on import), and a small server that speaks the hub's protocol."""
    handler = type("ThisHub", (WritableHub,), {"repositories": {}, "asked": [], "root": tmp_path / "served"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "127.0.0.1",
    }
    try:
        command = [sys.executable, "-c", PUSH, tiny_llama, tmp_path / "saved"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    pushed, uploaded = (tmp_path / "served" / "me" / name for name in ("pushed", "uploaded"))
    for folder in (pushed, uploaded):
        assert {file.name for file in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
        assert settings_of(folder)["base_model_name_or_path"] is None
        assert len(read_adapter(folder).cores) == 2
        assert str(tiny_llama) not in (folder / "README.md").read_text()
    assert "# LoRA-XS adapter of" in (uploaded / "README.md").read_text()
