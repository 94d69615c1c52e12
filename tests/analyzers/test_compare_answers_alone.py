"""Logits are asked for from the first answer on: the loss, the likelihoods and the gradients are those of all logits."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from analyzers.compare.causal import IGNORED, AnswerCollator, answer_likelihoods, answers_alone
from tests.analyzers.compare_helpers import tiny_decoder

PARTS = [(9, 2), (4, 5), (6, 1)]  # tokens of prompt and answer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(tiny_decoder(tmp_path_factory.mktemp("decoder"))).eval()


def _batch(parts=PARTS):
    random = torch.Generator().manual_seed(0)
    items = []
    for prompt, answer in parts:
        ids = torch.randint(3, 17, (prompt + answer,), generator=random).tolist()
        items.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return AnswerCollator(0)(items)


@pytest.mark.parametrize("wrapped", [False, True])
def test_loss_likelihoods_and_gradients_are_those_of_all_logits(decoder, wrapped):
    model = decoder
    if wrapped:
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(decoder, config).eval()
    try:
        whole = _batch()
        short = answers_alone(whole, model)
        assert short["logits_to_keep"] == 11 - 3
        one, other = model(**whole), model(**short)
        assert other.logits.shape[1] == 8 < one.logits.shape[1]
        torch.testing.assert_close(other.loss, one.loss)
        torch.testing.assert_close(
            answer_likelihoods(other.logits, short["labels"]), answer_likelihoods(one.logits, whole["labels"])
        )
        weights = [value for value in model.parameters() if value.requires_grad and value.dim() == 2]
        pairs = zip(torch.autograd.grad(one.loss, weights), torch.autograd.grad(other.loss, weights), strict=True)
        assert all(torch.allclose(first, second, rtol=1e-4, atol=1e-6) for first, second in pairs)
        torch.testing.assert_close(
            model(**whole, num_items_in_batch=torch.tensor(8)).loss, model(**short, num_items_in_batch=torch.tensor(8)).loss
        )
    finally:
        if wrapped:
            model.unload()


def test_texts_that_run_on_are_left_whole(decoder):
    for parts in ([(0, 7), (3, 2)], [(1, 4), (5, 2)]):
        batch = _batch(parts)
        assert answers_alone(batch, decoder) is batch
    nothing = {**_batch(), "labels": torch.full((3, 11), IGNORED)}
    assert answers_alone(nothing, decoder) is nothing


def test_a_model_that_cannot_be_asked_so_gives_all_logits(monkeypatch):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    monkeypatch.setattr(model, "forward", lambda input_ids, attention_mask=None, labels=None: None)
    batch = _batch()
    assert answers_alone(batch, model) is batch


def test_a_prompt_that_is_learnt_stands_before_the_batch(decoder):
    model = get_peft_model(decoder, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    batch = _batch()
    assert answers_alone(batch, model) is batch
    assert model(**batch).loss.isfinite()
