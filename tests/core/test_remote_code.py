"""Code beside a checkpoint: never run unasked, run from its own folder when allowed, refused in one sentence otherwise."""

import json

import pytest

from loraxs_core.architecture import OWN, inventory_from_config, meta_model, model_config
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError
from loraxs_core.remote_code import code_digest, needs_code
from tests.remote_model import own_modules, write_remote_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The checkpoint's folder; transformers' copies of its code go to a folder of this test alone."""
    own_modules(monkeypatch, tmp_path / "modules")
    write_remote_model(tmp_path / "gauge")
    return tmp_path / "gauge"


def was_run(folder) -> bool:
    return folder.with_name("gauge-was-run").exists()


def change(folder, **values) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return Checkpoint.open(folder)


def test_unasked_it_is_refused_and_nothing_has_run(folder):
    checkpoint = Checkpoint.open(folder)
    assert needs_code(checkpoint.config)
    for refused in (lambda: meta_model(checkpoint, "CAUSAL_LM"), lambda: model_config(checkpoint)):
        with pytest.raises(CheckpointError, match=r"'gauge' model.*was not run.*trust_remote_code") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert not was_run(folder)


def test_a_config_alone_does_not_tell_the_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="give a folder that holds its safetensors files and that code"):
        inventory_from_config(config, "gauge")
    assert not was_run(folder)


def test_allowed_it_is_built_from_the_folder(folder):
    checkpoint = Checkpoint.open(folder)
    for task in ("CAUSAL_LM", OWN):
        model = meta_model(checkpoint, task, trust_remote_code=True, num_hidden_layers=3)
        assert type(model).__name__ == "GaugeForCausalLM"
        assert len(model.model.layers) == 3
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert was_run(folder)


def test_a_head_that_the_code_lacks_is_named(folder):
    with pytest.raises(SettingsError, match="no ModelForSequenceClassification, only ModelForCausalLM"):
        meta_model(Checkpoint.open(folder), "SEQ_CLS", trust_remote_code=True)


@pytest.mark.parametrize(
    "reference", ["someone/else--configuration_gauge.GaugeConfig", "../evil.Config", "a.b.Config", None, 3]
)
def test_code_from_elsewhere_is_refused_even_when_allowed(folder, reference):
    checkpoint = change(folder, auto_map={"AutoConfig": reference})
    with pytest.raises(CheckpointError, match=r"only 'file\.Class' in the model's own folder"):
        meta_model(checkpoint, OWN, trust_remote_code=True)
    assert not was_run(folder)


def test_missing_and_broken_code_is_one_sentence(folder):
    (folder / "modeling_gauge.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(CheckpointError, match="a_package_that_is_not_there") as caught:
        meta_model(Checkpoint.open(folder), OWN, trust_remote_code=True)
    assert "\n" not in str(caught.value)
    (folder / "modeling_gauge.py").unlink()
    with pytest.raises(CheckpointError, match=r"needs modeling_gauge\.py, which is not in"):
        meta_model(Checkpoint.open(folder), OWN, trust_remote_code=True)


def test_what_transformers_knows_needs_no_code_and_runs_none(folder):
    checkpoint = change(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert not needs_code(checkpoint.config)
    model = meta_model(checkpoint, "CAUSAL_LM", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers.models.llama")
    assert not was_run(folder)


def test_the_digest_follows_every_python_file(folder):
    first = code_digest(folder)
    (folder / "README.md").write_text("no code")
    assert code_digest(folder) == first
    (folder / "helpers.py").write_text("# code")
    assert code_digest(folder) != first
