"""Estimates of a model that only code in its folder can build: refused, or traced when that is allowed; never mixed up."""

import pytest

from analyzers.memory import MemorySettings, estimate_memory, fit
from analyzers.memory.gpus import find_gpu
from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError
from tests.remote_model import LLAMA, own_modules, write_remote_model

SETTINGS = MemorySettings(method="lora-xs", rank=4, batch=2, sequence=64)
TRUSTED = SETTINGS.but(trust_remote_code=True)
MIB = 2**20


@pytest.fixture
def folder(own_folders, monkeypatch):
    own_modules(monkeypatch, own_folders / "modules")
    write_remote_model(own_folders / "gauge")
    return own_folders / "gauge"


def test_refused_without_leave_and_not_run(folder):
    for ask in (estimate_memory, lambda model, settings: fit(model, settings, find_gpu(24))):
        with pytest.raises(CheckpointError, match="was not run"):
            ask(Checkpoint.open(folder), SETTINGS)
    assert not folder.with_name("gauge-was-run").exists()


def test_traced_with_leave_as_the_llama_that_it_is(folder):
    """The modelling file adds a kilobyte to a Llama; the rest has to be what transformers' own Llama takes, layer by layer."""
    found = estimate_memory(Checkpoint.open(folder), TRUSTED)
    assert found.how == "extrapolated"
    plain = inventory_from_config({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LLAMA}, "the same")
    assert found.peak_allocated == estimate_memory(plain, SETTINGS).peak_allocated + 1024
    whole = estimate_memory(Checkpoint.open(folder), TRUSTED.but(full_trace=True))
    assert whole.peak_allocated == pytest.approx(found.peak_allocated, rel=1e-3)


def test_the_cache_tells_leave_and_code_apart(folder):
    checkpoint = Checkpoint.open(folder)
    first = estimate_memory(checkpoint, TRUSTED)
    with pytest.raises(CheckpointError, match="was not run"):
        estimate_memory(checkpoint, SETTINGS)  # what was kept with leave is no answer without
    assert estimate_memory(checkpoint, TRUSTED) == first
    file = folder / "modeling_gauge.py"
    file.write_text(file.read_text().replace("torch.empty(256,", f"torch.empty({4 * MIB},"))
    assert estimate_memory(checkpoint, TRUSTED).peak_allocated == first.peak_allocated - 1024 + 16 * MIB
