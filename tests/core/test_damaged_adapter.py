"""A damaged or edited adapter folder: an error that says what is wrong, or the right result; never a silently wrong model."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, logging

from loraxs_core.errors import AdapterError, WorkbenchError
from loraxs_core.tuner import LoraXSConfig, read_adapter
from tests.core.tuners import IDS, LOADERS
from tests.fuzz import one_sentence, some, survived

logging.set_verbosity_error()


def rewrite(folder, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def healthy(tiny_bert, tmp_path_factory):
    """(folder, logits) of an adapter with a trained head."""
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    model = get_peft_model(base, LoraXSConfig(r=4, alpha=8, task_type="SEQ_CLS", init_weights=False)).eval()
    folder = tmp_path_factory.mktemp("healthy")
    model.save_pretrained(folder)
    return folder, model(IDS).logits.detach()


def damaged(healthy_folder, tmp_path):
    target = tmp_path / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(healthy_folder, target)
    return target


def some_r(tensors, index=0):
    return sorted(key for key in tensors if key.endswith("loraxs_R"))[index]


def swap(tensors):
    one, other = some_r(tensors), some_r(tensors, 1)
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


def drop(ending):
    return lambda tensors: tensors.pop(next(key for key in sorted(tensors) if key.endswith(ending)))


def poke(key, value):
    def change(tensors):
        name = next(one for one in sorted(tensors) if one.endswith(key))
        tensors[name].view(-1)[0] = value

    return change


BY_TENSORS = {
    "two R exchanged": (swap, r"R of bert\.encoder\.layer\.0\..*not what it was"),
    "one R missing": (
        drop("loraxs_R"),
        r"no R for bert\.encoder\.layer\.0|R of bert\.encoder\.layer\.0.*not what it was|does not fit",
    ),
    "proof missing": (drop("loraxs_proof"), "no proof|incomplete"),
    "NaN in R": (poke("loraxs_R", float("nan")), r"R of bert\.encoder.*NaN"),
    "another number in R": (poke("loraxs_R", 0.5), r"R of bert\.encoder.*not what it was"),
    "another number in the head": (poke("classifier.weight", 0.5), "saved whole is not what it was"),
    "proof of nothing": (poke("loraxs_proof", 0), "damaged"),
}


@pytest.mark.parametrize("load", [*LOADERS, "read"])
@pytest.mark.parametrize("kind", BY_TENSORS)
def test_damaged_tensors(healthy, tiny_bert, tmp_path, kind, load):
    if kind == "another number in the head" and load.startswith("transformers, "):
        pytest.skip("with is_trainable, transformers gives no sign that loading is over before the head is used")
    change, message = BY_TENSORS[kind]
    folder = damaged(healthy[0], tmp_path)
    rewrite(folder, change)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder) if load == "read" else LOADERS[load](base, folder)


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 16}, {"sigma": "none"}, {"vectors": "bottom"}, {"alpha_pattern": {"query": 1}}, {"target_modules": ["query"]}],
)
@pytest.mark.parametrize("load", [*LOADERS, "read"])
def test_an_edited_configuration(healthy, tiny_bert, tmp_path, changes, load):
    folder = damaged(healthy[0], tmp_path)
    edit(folder, **changes)
    if load == "read":
        if "target_modules" in changes:
            pytest.skip("which modules are adapted is in the tensors; the list matters to PEFT alone")
        with pytest.raises(AdapterError, match=r"adapter_config\.json does not say"):
            read_adapter(folder)
        return
    with pytest.raises(
        (AdapterError, RuntimeError), match=r"adapter_config\.json does not say|no place|size mismatch|loraxs_proof"
    ):
        LOADERS[load](AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3), folder)


def mutate(folder, rng: np.random.Generator) -> None:
    """One random mutation: bytes flipped, the file cut or grown, tensors changed, dropped, renamed or exchanged, JSON edited."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    raw = bytearray(weights.read_bytes())
    (header,) = struct.unpack("<Q", raw[:8])
    kind = rng.integers(10)
    if kind == 0:
        weights.write_bytes(raw[: rng.integers(0, len(raw))])
    elif kind == 1:
        weights.write_bytes(bytes(raw) + rng.bytes(int(rng.integers(1, 50))))
    elif kind == 2:
        for _ in range(int(rng.integers(1, 4))):
            raw[rng.integers(8 + header, len(raw))] ^= 1 << rng.integers(8)
        weights.write_bytes(raw)
    elif kind == 3:
        raw[rng.integers(0, 8 + header)] ^= 1 << rng.integers(8)
        weights.write_bytes(raw)
    elif kind == 4:
        text = bytearray(config.read_bytes())
        text[rng.integers(len(text))] = rng.integers(32, 127)
        config.write_bytes(text)
    elif kind == 5:
        settings_ = json.loads(config.read_text())
        key = rng.choice(sorted(settings_))
        settings_[key] = [None, 0, 1, -3, 7.5, "x", [], {}, True, ["query"], 1e400, "bottom"][rng.integers(12)]
        config.write_text(json.dumps(settings_))
    else:
        tensors = load_file(weights)
        keys = sorted(tensors)
        one, other = rng.choice(keys, 2, replace=False)
        if kind == 6:
            del tensors[one]
        elif kind == 7:
            tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
        elif kind == 8:
            tensors[one] = tensors[one].reshape(-1)[: max(1, tensors[one].numel() // 2)].clone()
        else:
            tensors[f"{one}x"] = tensors.pop(one)
        save_file(tensors, weights, metadata={"format": "pt"})


def a_damaged_adapter(seed: int, source: Path, base: Path, expected: list, folder: Path) -> str:
    """An error or the right logits, through PEFT or transformers; nothing else."""
    copied = damaged(source, folder)
    mutate(copied, np.random.default_rng(seed))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_adapter(copied)  # any other exception of the reader is a bug
        except WorkbenchError as error:
            one_sentence(error)
        try:
            logits = list(LOADERS.values())[seed % 2](model, copied).eval()(IDS).logits.detach()
        except Exception:  # PEFT and transformers raise what they like; a crash or a wrong result is the failure here
            return "error"
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=0, atol=0)
    return "right"


@some(quick=12)
def test_mutated_folders(healthy, tiny_bert, tmp_path, numbers):
    """Each gives an error or the right logits; none computes something else."""
    source, logits = healthy
    base = tmp_path / "base"
    AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3).save_pretrained(base)
    found = survived(a_damaged_adapter, numbers, source, base, logits.tolist(), tmp_path)
    assert found["error"] > len(numbers) // 2, found
