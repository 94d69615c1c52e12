"""Decoders: the loss is on the answers alone, lm-evaluation-harness scores the model in memory, and a trial runs from end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from analyzers.compare import causal, harness
from analyzers.compare.base_and_head import prepare
from analyzers.compare.opened import Opened
from analyzers.compare.tasks import TASKS, Example, Task, open_task
from analyzers.compare.tasks.base import Definition
from analyzers.compare.tasks.definitions import examples
from analyzers.compare.tasks.metrics import CAUSAL, scores
from analyzers.compare.trial import run_trial
from analyzers.compare.trial_settings import Listener, TrialSettings
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError
from loraxs_core.progress import Cancellation
from tests.analyzers.compare_helpers import tiny_decoder

NUMBERS = ["one", "two", "three", "four"]
BOOLQ = Definition("boolq", "super_glue/boolq")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Checkpoint:
    return Checkpoint.open(tiny_decoder(tmp_path_factory.mktemp("decoder") / "llama"))


@pytest.fixture(scope="module")
def prepared(decoder):
    return prepare(decoder, TASKS["boolq"], 0)


def completions(path, rows: int = 60) -> str:
    with open(path, "w", encoding="utf-8") as file:
        for index in range(rows):
            word = NUMBERS[index % 4]
            file.write(json.dumps({"prompt": f"after {word} comes", "completion": f" {NUMBERS[(index + 1) % 4]}"}) + "\n")
    return str(path)


def test_the_prompt_is_read_and_the_answer_learnt(prepared):
    tokenizer = prepared.tokenizer
    (one,) = causal.written([Example("after one comes", answer=" two")], tokenizer, 16, ends=True)
    assert tokenizer.convert_ids_to_tokens(one.input_ids) == ["after", "one", "comes", "two", "[EOS]"]
    assert one.labels == [causal.IGNORED] * 3 + one.input_ids[3:]
    (short,) = causal.written([Example("after one comes", answer=" two")], tokenizer, 2, ends=False)
    assert tokenizer.convert_ids_to_tokens(short.input_ids) == ["comes", "two"], "the beginning of a prompt is what is cut"
    assert short.cut


def test_of_a_conversation_every_turn_of_the_assistant_is_learnt(prepared):
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    (one,) = causal.written([Example("", answer="four", messages=messages)], prepared.tokenizer, 64, ends=True)
    learnt = [label for label in one.labels if label != causal.IGNORED]
    assert prepared.tokenizer.convert_ids_to_tokens(learnt) == ["two", "[EOS]", "four", "[EOS]"]
    (one,) = causal.written([Example("", answer="four", messages=messages, learnt_from=2)], prepared.tokenizer, 64, ends=True)
    learnt = [label for label in one.labels if label != causal.IGNORED]
    assert prepared.tokenizer.convert_ids_to_tokens(learnt) == ["four", "[EOS]"], "turns of the prompt are read alone"
    template, prepared.tokenizer.chat_template = prepared.tokenizer.chat_template, None
    try:
        with pytest.raises(SettingsError, match="no chat template"):
            causal.written([Example("", answer="four", messages=messages)], prepared.tokenizer, 64, ends=True)
        prepared.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
        with pytest.raises(
            SettingsError, match="refuses a conversation of user, assistant, user, assistant: System role not supp"
        ):
            causal.written([Example("", answer="four", messages=messages)], prepared.tokenizer, 64, ends=True)
    finally:
        prepared.tokenizer.chat_template = template


def test_text_is_cut_into_blocks_and_its_perplexity_is_the_models_own(prepared):
    texts = [Example("one two three four after"), Example("four three two one comes")]
    blocks = causal.written(texts, prepared.tokenizer, 4, ends=False)
    assert [block.length for block in blocks] == [4, 4, 2]
    batch = causal.AnswerCollator(0)([{"input_ids": block.input_ids, "labels": block.labels} for block in blocks])
    with torch.no_grad():
        found = prepared.model(**batch)
    outputs = causal.answer_likelihoods(found.logits, batch["labels"]).numpy()
    assert outputs[:, 1].tolist() == [3, 3, 1]
    assert scores(CAUSAL, outputs, np.zeros(3))["perplexity"] == pytest.approx(math.exp(float(found.loss)), rel=1e-5)


def test_a_text_begins_with_the_tokenizers_first_token_once_a_block(prepared, tmp_path):
    """As Llama's and Gemma's do: amid a text it would be an easy word to guess, and lower the perplexity."""
    import copy

    from tokenizers import processors

    tokenizer = copy.deepcopy(prepared.tokenizer)
    tokenizer.add_special_tokens({"bos_token": "[EOS]"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[EOS] $A", special_tokens=[("[EOS]", tokenizer.bos_token_id)]
    )
    blocks = causal.written([Example("one two"), Example("three four one")], tokenizer, 4, ends=False)
    words = [tokenizer.convert_ids_to_tokens(block.input_ids) for block in blocks]
    assert words == [["[EOS]", "one", "two", "three"], ["[EOS]", "four", "one"]]


def test_the_harness_weighs_answers_as_the_model_does(prepared):
    rows = [{"passage": f"{word} two", "question": "after one", "label": index % 2} for index, word in enumerate(NUMBERS * 2)]
    asked = examples(BOOLQ, rows)
    assert (asked[1].text, asked[1].answer) == ("two two\nQuestion: after one?\nAnswer:", " yes")
    found = harness.score(prepared.model, prepared.tokenizer, TASKS["boolq"], asked, 4, Listener())

    def likelihood(text: str, answer: str) -> float:
        (one,) = causal.written([Example(text, answer=answer)], prepared.tokenizer, 64, ends=False)
        batch = causal.AnswerCollator(0)([{"input_ids": one.input_ids, "labels": one.labels}])
        with torch.no_grad():
            logits = prepared.model(**batch).logits
        return -float(causal.answer_likelihoods(logits, batch["labels"])[0, 0])

    right = [
        float((likelihood(one.text, " yes") > likelihood(one.text, " no")) == bool(row["label"]))
        for one, row in zip(asked, rows, strict=True)
    ]
    assert found.right.tolist() == right
    assert found.means["accuracy"] == pytest.approx(np.mean(right))


def test_questions_that_a_model_has_no_room_for_are_counted(prepared):
    """The tiny model reads 128 tokens."""
    rows = [{"passage": "one " * count, "question": "after one", "label": 1} for count in (3, 200, 5, 300)]
    found = harness.score(prepared.model, prepared.tokenizer, TASKS["boolq"], examples(BOOLQ, rows), 4, Listener())
    assert (found.cut, found.room) == (2, 128)


def test_the_harness_stops_when_it_is_asked_to(prepared):
    asked = examples(BOOLQ, [{"passage": "one", "question": "two", "label": 1}] * 4)
    with pytest.raises(Cancellation):
        harness.score(prepared.model, prepared.tokenizer, TASKS["boolq"], asked, 2, Listener(cancelled=lambda: True))


def test_a_decoder_learns_what_to_write(decoder, tmp_path, own_folders):
    task = open_task(f"data:{completions(tmp_path / 'next.jsonl')}")
    common = {
        "seed": 0,
        "learning_rate": 0.02,
        "head_learning_rate": 1e-3,
        "batch": 8,
        "sequence": 16,
        "evaluations": 1,
        "device": "cpu",
    }
    base = run_trial(TrialSettings("head-only", steps=1, **common), Opened(decoder, task, task.read()), tmp_path / "base")
    tuned = run_trial(
        TrialSettings("lora-xs", steps=60, rank=8, targets="all-linear", **common),
        Opened(decoder, task, task.read()),
        tmp_path / "tuned",
    )
    assert (base["trainable"], base["file_bytes"], base["train_seconds"]) == (0, 0, 0)
    assert tuned["score"] < 0.8 * base["score"]
    assert tuned["validation_score"] == pytest.approx(-math.log(tuned["score"]), abs=0.5)
    assert tuned["overlap_same"] == tuned["overlap_of"], "these few prompts stand in both splits"
    assert json.loads((tmp_path / "tuned" / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_a_decoder_that_writes_is_scored_by_what_it_wrote(decoder, tmp_path, own_folders):
    config = TASKS["boolq-generation"].definition.config
    definition = Definition("next", config={**config, "filter_list": None}, tokens=4)
    rows = [{"prompt": f"after {word} comes", "answer": NUMBERS[(place + 1) % 4]} for place, word in enumerate(NUMBERS)] * 10

    def spaced(part):
        return tuple(Example(one.text, answer=f" {one.answer}", row=one.row) for one in part)

    made = spaced(examples(definition, rows))
    from analyzers.compare.tasks import Splits

    task = Task(
        "next", "Next", "", CAUSAL, "exact_match", read=lambda *_: Splits(made, made[:4], made[:4]), definition=definition
    )
    trial = TrialSettings("full", 0, 0.01, 1e-3, steps=80, batch=8, sequence=16, evaluations=1, device="cpu")
    record = run_trial(trial, Opened(decoder, task, task.read()), tmp_path / "trial")
    assert record["score"] == 1.0
    assert record["test_loss"] is None


def test_an_encoder_is_refused_in_one_sentence(minilm):
    with pytest.raises(CheckpointError, match="BoolQ is for decoders, which write their answers, and minilm"):
        prepare(minilm, TASKS["boolq"], 0)
