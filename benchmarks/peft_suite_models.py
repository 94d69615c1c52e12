"""The small models that PEFT's test suite fetches from the Hub, made here: the same classes, as small, with random weights as those have.

Only what the cases of LoRA, VeRA, PSOFT and LoRA-XS need. They are laid out as a Hub cache, so that the suite's own
`from_pretrained("…/tiny-random-…")` finds them with HF_HUB_OFFLINE=1; tokenizers, datasets and finished adapters are not made.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

_COMMIT = "0" * 40
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 1100,
    "max_position_embeddings": 128,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 1100}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 1100}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 1100,
    "max_position_embeddings": 128,
}
_OPT = {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}

# The name at the Hub -> (architecture, settings of its configuration).
MODELS: dict[str, tuple[str, dict]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", _OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", _GPT),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _SMALL),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _SMALL),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", _SMALL),
    "peft-internal-testing/tiny-dummy-qwen2": (
        "Qwen2ForCausalLM",
        {**_SMALL, "initializer_range": 0.002},
    ),  # "has very small weights"
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {**_SMALL, "head_dim": 8}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", _T5),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": ("T5ForConditionalGeneration", _T5),
    "peft-internal-testing/tiny-random-t5": ("T5ForConditionalGeneration", _T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", _BART),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", _SMALL),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", _SMALL),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", _SMALL),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", _SMALL),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", _SMALL),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": ("RobertaForSequenceClassification", _SMALL),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", _SMALL),
}


def make_models(cache: Path) -> None:
    """Writes `MODELS` under `cache` as huggingface_hub keeps what it has fetched."""
    for name, (architecture, settings) in MODELS.items():
        kind = getattr(transformers, architecture)
        torch.manual_seed(0)
        config = kind.config_class(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        place = cache / f"models--{name.replace('/', '--')}"
        kind(config).save_pretrained(place / "snapshots" / _COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(_COMMIT, encoding="utf-8")
