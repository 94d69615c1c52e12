"""The base is loaded once a process, texts are tokenised once: what a trial ends with depends on neither."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from analyzers.compare import base_and_head, tokens
from analyzers.compare.opened import Opened
from analyzers.compare.tasks import open_task
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import TrialSettings
from analyzers.methods.peft_configs import plain_config
from loraxs_core import bases
from loraxs_core.cache import remarks
from loraxs_core.checkpoint import Checkpoint
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

SAME = ("score", "validation_score", "test_loss", "adapter_parameters", "head_parameters")
WITH_BIAS = plain_config(
    {"peft_type": "LORA", "r": 4, "bias": "all", "target_modules": ["query"]}
)  # trains numbers of the base


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return Checkpoint.open(tiny_model(tmp_path_factory.mktemp("classifier")))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return open_task(f"csv:{sentiment_csv(tmp_path_factory.mktemp('film') / 'film.csv', 60)}")


def settings(method="lora-xs", seed=0, **changes) -> TrialSettings:
    rank = None if method in ("full", "head-only", "biased") else 4
    common = {"steps": 3, "batch": 8, "sequence": 16, "rank": rank, "evaluations": 1, "device": "cpu"}
    return TrialSettings(method, seed, 1e-2, 1e-2, **{**common, **changes})


def ended(trial, opened, folder):
    record = run_trial(trial, opened, folder)
    saved = folder / "adapter" / "adapter_model.safetensors"
    return [record[name] for name in SAME], saved.read_bytes() if saved.exists() else b""


def test_a_result_does_not_depend_on_what_was_trained_before(classifier, film, tmp_path):
    trials = [
        settings("lora"),
        settings("biased", config=WITH_BIAS),
        settings("lora-xs"),
        settings("pissa"),
        settings("lora-xs", seed=1),
        settings("full"),
        settings("head-only"),
    ]
    read = film.read()
    alone = [ended(trial, Opened(classifier, film, read), tmp_path / f"alone-{number}") for number, trial in enumerate(trials)]
    opened = Opened(classifier, film, read)
    forward = [ended(trial, opened, tmp_path / f"on-{number}") for number, trial in enumerate(trials)]
    backward = [ended(trial, opened, tmp_path / f"back-{number}") for number, trial in reversed([*enumerate(trials)])]
    assert forward == alone
    assert backward[::-1] == alone


def test_the_base_is_loaded_once_and_its_vectors_are_computed_once(classifier, film, tmp_path, monkeypatch):
    loads, decompositions = [], []
    load, svd = base_and_head._load, bases.truncated_svd
    monkeypatch.setattr(base_and_head, "_load", lambda *a, **k: loads.append(1) or load(*a, **k))
    monkeypatch.setattr(bases, "truncated_svd", lambda *a, **k: decompositions.append(1) or svd(*a, **k))
    opened, seconds = Opened(classifier, film, film.read()), []
    for number, trial in enumerate([settings(seed=0), settings(seed=1), settings("head-only"), settings(seed=2)]):
        record = run_trial(trial, opened, tmp_path / str(number))
        seconds.append(record["svd_seconds"])
    assert len(loads) == 1
    assert len(decompositions) == 2 * 4  # layers times modules
    assert seconds[0] == seconds[1] == seconds[3] > 0, "the time is what it takes where nothing is at hand"
    run_trial(settings(rank=2), opened.on(opened.splits), tmp_path / "rank")
    assert len(decompositions) == 2 * 2 * 4
    assert len(loads) == 1, "nor for other splits"


def test_a_base_that_somebody_has_changed_is_loaded_again(classifier, film, tmp_path):
    opened = Opened(classifier, film, film.read())
    untouched = ended(settings("lora"), opened, tmp_path / "untouched")
    lent = opened.base.prepared(classifier, film, settings("lora"))
    with torch.no_grad():  # as an initialisation that takes its start out of the weights in place
        lent.model.get_submodule("bert.encoder.layer.0.attention.self.query").weight.mul_(2)
    assert ended(settings("lora"), opened, tmp_path / "after") == untouched


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **options):
        self.calls += 1
        return self.tokenizer(*args, **options)


def test_texts_are_tokenised_once_and_kept(classifier, film, own_folders, monkeypatch):
    from analyzers.compare.examples import Encoded, Scale

    monkeypatch.setattr(tokens, "WORTH_KEEPING", 0)
    train = film.read().train
    scale = Scale(film, train)
    counting = Counting(base_and_head.load(classifier, film).tokenizer)

    def encode(part=train, sequence=16):
        found = Encoded(part, counting, scale, sequence=sequence, separate=False)
        return [found[index] for index in range(len(found))]

    tokens._recent.clear()
    first = encode()
    assert encode() == first
    assert counting.calls == 1
    tokens._recent.clear()  # another process
    assert encode() == first
    assert counting.calls == 1
    plain = [counting.tokenizer(example.text, truncation=True, max_length=16)["input_ids"] for example in train]
    assert [item["first"]["input_ids"] for item in first] == plain
    encode(sequence=4)
    assert counting.calls == 3  # texts that fill their room are read once more, to know which are longer
    encode(train[1:])
    assert counting.calls == 4
    (entry, *_) = sorted((own_folders / "cache" / "tokens").rglob("*.kept"))
    for path in (own_folders / "cache" / "tokens").rglob("*.kept"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    tokens._recent.clear()
    with pytest.warns(UserWarning, match="is damaged"):
        assert encode() == first
    assert counting.calls == 5
    assert entry.exists()
    assert remarks()


def test_another_tokenizer_gives_other_tokens(classifier, film, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(classifier.folder, folder)
    before = base_and_head.load(Checkpoint.open(folder), film).tokenizer.files_digest
    assert before == base_and_head.load(classifier, film).tokenizer.files_digest
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert base_and_head.load(Checkpoint.open(folder), film).tokenizer.files_digest != before
