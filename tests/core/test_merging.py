"""Adapters added to their base, where heads have several layers, other names or another number of labels than the base's."""

from __future__ import annotations

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from analyzers.compare.base_and_head import is_sentence_encoder
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.convert import convert
from loraxs_core.errors import AdapterError
from loraxs_core.loading import AdapterFolder, load_adapter
from loraxs_core.merging import merge
from loraxs_core.tuner import LoraXSConfig
from tests.analyzers.compare_helpers import tiny_model

TOKENS = torch.tensor([[5, 9, 12, 8, 3], [6, 13, 14, 11, 3]])  # 3: T5's end token
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 22}
MODELS = {
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL, max_position_embeddings=40)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=22, max_position_embeddings=40)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=22, eos_token_id=3, decoder_start_token_id=0
        )
    ),
}
TARGETS = {"roberta": ["query"], "distilbert": ["q_lin"], "t5": ["q"]}
HEADS = {"roberta": ["classifier"], "distilbert": ["classifier"], "t5": ["classification_head"]}
CONFIGS = {
    "lora-xs": lambda **common: LoraXSConfig(r=4, init_weights=False, **common),
    "lora": lambda **common: LoraConfig(r=4, init_lora_weights=False, **common),
    "vera": lambda **common: VeraConfig(r=4, init_weights=False, **common),
    "ia3": lambda **common: IA3Config(init_ia3_weights=False, feedforward_modules=[], **common),
}


def adapted(kind, method, tmp_path, labels=3):
    """(base, adapter folder, logits) of a classifier with random numbers in adapter and head."""
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=labels)
    config = CONFIGS[method](target_modules=TARGETS[kind], modules_to_save=HEADS[kind], task_type="SEQ_CLS")
    model = get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return Checkpoint.open(tmp_path / "base"), tmp_path / "adapter", model(input_ids=TOKENS).logits


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_merged_classifier_is_the_trained_one(kind, method, tmp_path):
    base, folder, expected = adapted(kind, method, tmp_path)
    torch.testing.assert_close(logits(load_adapter(AdapterFolder(folder), base)), expected)
    result = merge(folder, base, tmp_path / "merged")
    plain, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not {*loading["missing_keys"], *loading["mismatched_keys"]}
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-4)
    assert (result.worst is None) == (method == "ia3")


def test_peft_itself_merges_lora_xs_under_a_head_of_several_layers(tmp_path):
    base, folder, expected = adapted("roberta", "lora-xs", tmp_path)
    model = load_adapter(AdapterFolder(folder), base).merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_every_part_of_a_head_is_converted_along(tmp_path):
    base, folder, _ = adapted("distilbert", "lora", tmp_path)
    assert {"pre_classifier.weight", "classifier.weight"} <= AdapterFolder(folder).heads.keys()
    convert(folder, base, rank=4, out=tmp_path / "xs")
    assert AdapterFolder(tmp_path / "xs").heads == AdapterFolder(folder).heads
    load_adapter(AdapterFolder(tmp_path / "xs"), base)


def test_a_base_with_a_head_of_its_own_gives_way_to_the_adapters(tmp_path):
    _, folder, expected = adapted("roberta", "lora-xs", tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=7).save_pretrained(tmp_path / "classifier")
    merge(folder, Checkpoint.open(tmp_path / "classifier"), tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-4)


def test_a_head_that_is_nowhere_is_not_made_up(tmp_path):
    torch.manual_seed(0)
    MODELS["t5"]().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    get_peft_model(base, LoraXSConfig(r=2, target_modules=["q"], task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        AdapterError, match=r"classification_head\.dense\.bias .* is neither in the adapter nor in .*base; .*modules_to_save"
    ):
        merge(tmp_path / "adapter", Checkpoint.open(tmp_path / "base"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_start_that_is_not_in_the_file_is_refused(tmp_path):
    base, folder, _ = adapted("roberta", "lora", tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa_niter_16"}))
    with pytest.raises(AdapterError, match="initialised by pissa_niter_16, which changed the base weights"):
        merge(folder, base, tmp_path / "merged")


def test_a_merged_sentence_encoder_stays_one(tmp_path):
    folder = tiny_model(tmp_path / "encoder", sentence_encoder=True)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "../secret", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    base = Checkpoint.open(folder)
    from transformers import AutoModel

    config = LoraXSConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION")
    get_peft_model(AutoModel.from_pretrained(folder), config).save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", base, tmp_path / "out" / "merged")
    assert is_sentence_encoder(Checkpoint.open(tmp_path / "out" / "merged"))
    assert not (tmp_path / "out" / "secret").exists()


def test_a_merged_decoder_classifier_reads_batches(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=22, n_positions=40))
    folder = tiny_model(tmp_path / "gpt2", model=model)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    config = LoraXSConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", Checkpoint.open(folder), tmp_path / "merged")
    assert logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")).shape == (2, 3)
