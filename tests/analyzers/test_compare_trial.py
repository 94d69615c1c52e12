"""One trial: fairness of the start, what is counted, what is saved, and that training works."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from analyzers.compare import adapter, base_and_head, examples, trial
from analyzers.compare.opened import Opened
from analyzers.compare.tasks import TASKS, open_task
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import Listener, TrialSettings
from analyzers.methods import METHODS as METHODS_THERE_ARE
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError, WeightsMissing
from loraxs_core.progress import Cancellation
from loraxs_core.tuner import verify_adapter
from tests.analyzers.compare_helpers import SMALL, sentiment_csv, tiny_model

METHODS = ("head-only", "lora", "vera", "lora-xs", "full")


def settings(method="lora-xs", **changes) -> TrialSettings:
    common = TrialSettings(method, 0, 1e-2, 1e-2, steps=4, batch=8, sequence=32, rank=4, evaluations=2, device="cpu")
    return dataclasses.replace(common, **changes)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return Checkpoint.open(tiny_model(tmp_path_factory.mktemp("classifier")))


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    return Checkpoint.open(tiny_model(tmp_path_factory.mktemp("encoder"), sentence_encoder=True))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return open_task(f"csv:{sentiment_csv(tmp_path_factory.mktemp('film') / 'film.csv')}")


@pytest.fixture(scope="module")
def splits(film):
    return film.read(None, None)


@pytest.mark.parametrize("kind", ["classifier", "sentence_encoder"])
def test_every_method_starts_with_the_same_head(kind, film, request):
    checkpoint = request.getfixturevalue(kind)
    heads = []
    for method in METHODS:
        prepared = base_and_head.prepare(checkpoint, film, seed=3)
        adapted = adapter.adapted(prepared, settings(method, seed=3), checkpoint)
        trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
        inside = [value.detach().clone() for name, value in sorted(trained.items()) if adapter.is_head(name, prepared.head)]
        assert inside, method
        heads.append(inside)
    for other in heads[1:]:
        assert len(other) == len(heads[0])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(heads[0], other, strict=True))
    again = base_and_head.prepare(checkpoint, film, seed=4)
    changed = [value for name, value in sorted(again.model.named_parameters()) if adapter.is_head(name, again.head)]
    assert [value.shape for value in changed] == [value.shape for value in heads[0]]
    assert not all(torch.equal(mine, theirs) for mine, theirs in zip(changed, heads[0], strict=True))


def test_batches_depend_on_the_seed_alone_and_cover_an_epoch(splits):
    first = examples.batches(splits.train, batch=8, steps=40, seed=1)
    assert first == examples.batches(splits.train, batch=8, steps=40, seed=1)
    assert first != examples.batches(splits.train, batch=8, steps=40, seed=2)
    assert first[:10] == examples.batches(splits.train, batch=8, steps=10, seed=1)  # a longer run begins as a shorter one
    epoch = [index for batch in first[:20] for index in batch]  # 160 examples
    assert sorted(epoch) == list(range(160))
    assert [len(batch) for batch in examples.batches(splits.train[:5], batch=8, steps=3, seed=0)] == [5, 5, 5]


def test_batches_hold_texts_of_like_length():
    pairs = TASKS["stsb"].read(None, None).train
    lengths = np.array([len(example.text) + len(example.pair) for example in pairs])
    batches = examples.batches(pairs, batch=32, steps=150, seed=0)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    random = [list(part) for part in np.array_split(np.random.default_rng(0).permutation(len(pairs))[:4800], 150)]
    assert padded < 0.75 * sum(lengths[batch].max() * len(batch) for batch in random)


def test_trainer_sees_the_same_batches_whatever_the_method(classifier, film, splits, tmp_path, monkeypatch):
    seen: dict[str, list] = {}
    collate = examples.Collator.__call__

    def spy(self, items):
        seen.setdefault(current, []).append([item["first"]["input_ids"] for item in items])
        return collate(self, items)

    monkeypatch.setattr(examples.Collator, "__call__", spy)
    for current in ("head-only", "lora", "lora-xs"):
        run_trial(settings(current), Opened(classifier, film, splits), tmp_path / current)
    assert seen["head-only"] == seen["lora"] == seen["lora-xs"]
    assert len(seen["lora"]) >= 4


@pytest.mark.parametrize("kind", ["classifier", "sentence_encoder"])
@pytest.mark.parametrize("method", METHODS)
def test_a_trial_learns_and_records(kind, method, film, splits, tmp_path, request):
    checkpoint = request.getfixturevalue(kind)
    rate = {"full": 3e-3, "lora-xs": 0.1, "vera": 0.1}.get(method, 1e-2)
    points = []
    chosen = settings(method, learning_rate=rate, steps=60, batch=32, head_learning_rate=2e-2)
    record = run_trial(chosen, Opened(checkpoint, film, splits), tmp_path / "t", listener=Listener(report=points.append))
    train = [point["value"] for point in points if point["kind"] == "train"]
    evaluations = [point for point in points if point["kind"] == "eval"]
    assert np.mean(train[-5:]) < np.mean(train[:5])
    assert [point["step"] for point in evaluations] == [30, 60]
    assert record["validation_score"] == evaluations[-1]["accuracy"]
    assert 0 <= record["score"] <= 1
    assert record["seconds"] >= record["train_seconds"] > 0
    assert record["peak_memory_bytes"] > 50e6
    assert json.loads((tmp_path / "t" / "result.json").read_text()) == record
    written = {path.name: path.stat().st_size for path in (tmp_path / "t" / "adapter").glob("*.safetensors")}
    if method == "full":
        assert not written
    else:
        head_apart = kind == "sentence_encoder"
        expected = {"head.safetensors"} if head_apart else set()
        expected |= {"adapter_model.safetensors"} if method != "head-only" or not head_apart else set()
        assert written.keys() == expected
        assert record["file_bytes"] == sum(written.values()) > record["adapter_bytes"] + record["head_bytes"]
        assert record["adapter_file_bytes"] == (0 if method == "head-only" else written["adapter_model.safetensors"])
        assert record["head_bytes"] == 4 * record["head_parameters"]
    assert (record["svd_seconds"] > 0) == (method == "lora-xs")
    if method in ("lora", "full"):
        assert record["score"] > 0.75, "an adapter with room to learn finds the telling words"


def test_trained_numbers_are_those_of_the_formulas(minilm):
    task = TASKS["stsb"]
    expected = {
        "lora-xs": (16, 24 * 16**2),
        "lora": (8, 8 * 6 * (3 * 768 + 1920)),
        "vera": (256, 24 * 256 + 24 * 384),
        "head-only": (None, 0),
    }
    for method, (rank, numbers) in expected.items():
        prepared = base_and_head.prepare(minilm, task, seed=0)
        adapted = adapter.adapted(prepared, settings(method, rank=rank), minilm)
        assert adapter.count_trained(adapted, prepared.head) == (numbers, 2 * 384 + 1), method


def test_minilm_is_a_sentence_encoder_and_knows_likeness_untrained(minilm):
    """The vectors that the head sees carry STS-B before any training, which is why pairs are read one by one."""
    task = TASKS["stsb"]
    splits = task.read(None, None)
    prepared = base_and_head.prepare(minilm, task, seed=0)
    assert prepared.separate
    scale = examples.Scale(task, splits.train)
    part = examples.evaluation_part(splits.test, 128)
    encoded = examples.Encoded(part, prepared.tokenizer, scale, sequence=64, separate=True)
    batch = examples.Collator(prepared.tokenizer, scale, True)([encoded[index] for index in range(len(encoded))])
    with torch.no_grad():
        first, second = prepared.model.embed(**batch["first"]), prepared.model.embed(**batch["second"])
    alike = torch.nn.functional.cosine_similarity(first, second)
    assert np.corrcoef(alike, batch["labels"])[0, 1] > 0.7


def test_what_the_checkpoint_lacks_is_trained_with_the_head(film, splits, tmp_path):
    """A BERT saved without its pooler gets a new one; frozen at random it would stand between the base and the head."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    checkpoint = Checkpoint.open(tiny_model(tmp_path / "bert", model=BertModel(config, add_pooling_layer=False)))
    prepared = base_and_head.prepare(checkpoint, film, seed=0)
    assert prepared.head == ["classifier", "bert.pooler.dense"]
    record = run_trial(settings("lora-xs"), Opened(checkpoint, film, splits), tmp_path / "t")
    assert record["head_parameters"] == (32 * 32 + 32) + (2 * 32 + 2)
    assert record["head_bytes"] == 4 * record["head_parameters"]


@pytest.mark.parametrize("method", ["lora", "vera", "lora-xs"])
def test_a_decoder_is_tuned_through_its_score_head(method, film, splits, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    checkpoint = Checkpoint.open(tiny_model(tmp_path / "llama", model=LlamaForCausalLM(config)))
    record = run_trial(settings(method), Opened(checkpoint, film, splits), tmp_path / "t")
    assert record["head_parameters"] == 2 * 32
    # a layer: q 32x32, k and v 16x32, o 32x32, gate and up 48x32, down 32x48
    sides = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
    expected = {
        "lora-xs": 2 * len(sides) * 4**2,
        "lora": 2 * sum(4 * (out + inner) for out, inner in sides),
        "vera": 2 * sum(4 + out for out, _ in sides),
    }
    assert record["adapter_parameters"] == expected[method]


def test_an_encoder_decoder_is_scored_by_its_logits(film, splits, tmp_path):
    """Its classifier gives the encoder's states as well, one shape a batch."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, eos_token_id=3, decoder_start_token_id=0
    )  # the tests' tokenizer ends a text with 3
    checkpoint = Checkpoint.open(tiny_model(tmp_path / "t5", model=T5ForConditionalGeneration(config)))
    record = run_trial(settings("lora-xs"), Opened(checkpoint, film, splits), tmp_path / "t")
    assert 0 <= record["score"] <= 1
    assert record["classes"] == "negative, positive"


@pytest.mark.parametrize("method", [name for name, method in METHODS_THERE_ARE.items() if method.config])
def test_a_saved_adapter_gives_the_same_predictions_when_loaded(method, sentence_encoder, film, splits, tmp_path, monkeypatch):
    """Of a sentence encoder too it is an adapter of the model that transformers loads, with the head in a file beside it."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel

    kept = {}
    save = adapter.save_adapter

    def keep(trained, *rest):
        kept["model"] = trained
        return save(trained, *rest)

    monkeypatch.setattr(adapter, "save_adapter", keep)
    own = {"rank": 4 if METHODS_THERE_ARE[method].ranked else None, "options": SMALL.get(method, {})}
    run_trial(settings(method, learning_rate=0.05, steps=12, **own), Opened(sentence_encoder, film, splits), tmp_path / "t")
    fresh = base_and_head.prepare(sentence_encoder, film, seed=99)
    saved = tmp_path / "t" / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's of keys that find no place
        warnings.filterwarnings("ignore", "Unsupported layer type")  # PEFT's of every LayerNorm, which it then tunes
        fresh.model.encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(sentence_encoder.folder), saved)
    fresh.model.head.load_state_dict(
        {name.removeprefix("head."): value for name, value in load_file(saved / "head.safetensors").items()}
    )
    inputs = dict(fresh.tokenizer([example.text for example in splits.test], padding=True, return_tensors="pt"))
    with torch.no_grad():
        mine = kept["model"].eval()(first=inputs)["logits"]
        theirs = fresh.model.eval()(first=inputs)["logits"]
    assert torch.allclose(mine, theirs, atol=1e-5)
    if method == "lora-xs":
        assert {check.status for check in verify_adapter(saved, sentence_encoder)} == {"same"}


@pytest.mark.parametrize("method", ["lora-xs", "pissa"])
def test_a_classifiers_adapter_is_saved_with_its_head(method, classifier, film, splits, tmp_path, monkeypatch):
    from loraxs_core.loading import AdapterFolder, load_adapter

    kept = {}
    save = adapter.save_adapter

    def keep(trained, *rest):
        with torch.no_grad():
            kept["logits"] = trained.eval()(input_ids=torch.tensor([[2, 5, 9, 3]])).logits
        return save(trained, *rest)

    monkeypatch.setattr(adapter, "save_adapter", keep)
    record = run_trial(settings(method, learning_rate=0.05, steps=12), Opened(classifier, film, splits), tmp_path / "t")
    assert record["head_bytes"] == 4 * record["head_parameters"]
    again = load_adapter(AdapterFolder(tmp_path / "t" / "adapter"), classifier)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=torch.tensor([[2, 5, 9, 3]])).logits, kept["logits"], atol=1e-5, rtol=1e-4)


def test_a_rank_plan_is_followed(minilm, tmp_path):
    from analyzers.ranks import Budget, make_plan

    plan = make_plan(minilm, "role", budget=Budget.like_rank(4))
    prepared = base_and_head.prepare(minilm, TASKS["stsb"], seed=0)
    adapted = adapter.adapted(prepared, settings(rank=None, plan=plan.to_dict(), plan_label="role"), minilm)
    assert adapter.count_trained(adapted, prepared.head)[0] == plan.trainable
    shapes = [tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad and "loraxs" in name]
    assert sorted(shapes) == sorted((rank, rank) for rank in plan.ranks.values())


def test_a_diverging_rate_is_one_sentence(classifier, film, splits, tmp_path):
    with pytest.raises(SettingsError, match=r"not a number .*lower its learning rate \(1e\+25\)"):
        run_trial(settings("full", learning_rate=1e25, steps=10), Opened(classifier, film, splits), tmp_path / "t")
    assert not (tmp_path / "t" / "result.json").exists()


def test_a_trial_stops_soon_when_asked(classifier, film, splits, tmp_path):
    steps = []
    with pytest.raises(Cancellation):
        run_trial(
            settings("lora", steps=1000),
            Opened(classifier, film, splits),
            tmp_path / "t",
            Listener(advance=lambda cost, message: steps.append(message), cancelled=lambda: len(steps) > 5),
        )
    assert len(steps) < 12


def test_models_that_cannot_be_tuned_say_why(tiny_bert, film):
    from loraxs_core.architecture import inventory_from_config

    with pytest.raises(CheckpointError, match="no tokenizer"):
        base_and_head.prepare(Checkpoint.open(tiny_bert), film, seed=0)
    config = json.loads((tiny_bert / "config.json").read_text())
    with pytest.raises(WeightsMissing, match="without weights"):
        base_and_head.prepare(inventory_from_config(config, "plain"), film, seed=0)
    with pytest.raises(SettingsError, match="no device 'tpu'"):
        trial.resolve_device("tpu")


def test_numbers_are_standardised_by_the_training_labels(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("text,label\n" + "".join(f"item {n},{1000.5 + 10 * n}\n" for n in range(40)))
    task = open_task(f"csv:{path}")
    part = task.read(None, None).train
    scaled = [examples.Scale(task, part)(example.label) for example in part]
    assert np.mean(scaled) == pytest.approx(0, abs=1e-9)
    assert np.std(scaled) == pytest.approx(1)


@pytest.mark.parametrize("method", ["lora-xs", "head-only", "lora"])
def test_a_rate_that_is_far_too_large_is_told_of_whether_or_not_every_number_stays_finite(
    method, classifier, film, splits, tmp_path
):
    chosen = settings(method, learning_rate=1e6, head_learning_rate=1e6 if method == "head-only" else 1e-2, steps=8)
    try:
        record = run_trial(chosen, Opened(classifier, film, splits), tmp_path)
    except SettingsError as error:
        said = str(error)
    else:
        assert record["state"] == "done"
        assert method != "lora", "its loss is no number"
        said = record["remark"]
    assert "diverged" in said
    assert "lower its learning rate (1e+06)" in said


def test_an_ordinary_trial_has_no_remark(classifier, film, splits, tmp_path):
    for method, rate in {"head-only": 1e-2, "lora-xs": 0.1, "vera": 0.1}.items():
        assert (
            run_trial(settings(method, learning_rate=rate), Opened(classifier, film, splits), tmp_path / method)["remark"]
            is None
        )


@pytest.mark.parametrize("sentence_encoder", [False, True])
def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(film, tmp_path, sentence_encoder):
    from transformers import AutoTokenizer

    folder = tiny_model(tmp_path / "model", sentence_encoder=sentence_encoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["splendid", "dreadful"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=f"gives ids up to {rows + 1} and the model has embeddings for {rows}"):
        base_and_head.prepare(Checkpoint.open(folder), film, seed=0)


@pytest.mark.parametrize("method", ["lora", "lora-xs", "vera"])
def test_layers_that_the_forward_never_reaches_are_named(method):
    """As a vision tower's are when a model of images and text is trained on text."""
    from peft import get_peft_model

    from analyzers.compare.training import unreached
    from analyzers.methods import AdapterSpec, peft_config

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    model = get_peft_model(Half(), peft_config(AdapterSpec(method, ["used", "idle"], rank=2)))
    model(torch.ones(1, 8)).sum().backward()
    assert unreached(model) == ["idle"]
    assert unreached(Half()) == []
