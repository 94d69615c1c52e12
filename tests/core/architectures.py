"""Small configs of every architecture the workbench names roles for, and how many weights of each role such a model has."""

from __future__ import annotations

from dataclasses import dataclass

_BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64,
    "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
_LLAMA = _BERT | {"num_key_value_heads": 2, "head_dim": 8}
_DEBERTA = _BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 40}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
_IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64, "max_position_embeddings": 40,
}  # fmt: skip


def _roles(**counts: int) -> dict[str, int]:
    """`query=2` -> ``attention.query`` and so on; roles not named are expected nowhere."""
    full = {
        "query": "attention.query", "key": "attention.key", "value": "attention.value", "qkv": "attention.qkv",
        "output": "attention.output", "position": "attention.position", "gate": "mlp.gate", "up": "mlp.up",
        "gate_up": "mlp.gate_up", "down": "mlp.down",
    }  # fmt: skip
    return {full.get(name, name): count for name, count in counts.items()}


_SEPARATE = {"query": 2, "key": 2, "value": 2, "output": 2, "up": 2, "down": 2}
_GATED = _SEPARATE | {"gate": 2}
_FUSED = {"qkv": 2, "output": 2, "up": 2, "down": 2}
_TWICE = {"query": 6, "key": 6, "value": 6, "output": 6, "up": 4, "down": 4}  # encoder, decoder and what joins them


@dataclass(frozen=True)
class Case:
    """A model class, its config and what a checkpoint of it holds. tied: the name of the head tied to the embedding."""

    model_class: str
    model_type: str
    settings: dict
    roles: dict[str, int]
    tied: str | None = None

    @property
    def config(self) -> dict:
        return {"architectures": [self.model_class], "model_type": self.model_type, **self.settings}

    def __str__(self) -> str:
        return self.model_class


def _case(model_class, model_type, settings, roles, tied=None, **rest) -> Case:
    return Case(model_class, model_type, settings, _roles(**roles, **rest), tied)


# fmt: off
CASES = [
    _case("BertModel", "bert", _BERT, _SEPARATE, embedding=3, head=1),
    _case("BertForSequenceClassification", "bert", _BERT, _SEPARATE, embedding=3, head=2),
    _case("BertForMaskedLM", "bert", _BERT, _SEPARATE, "cls.predictions.decoder", embedding=3, head=2),
    _case("RobertaForMaskedLM", "roberta", _BERT, _SEPARATE, "lm_head.decoder", embedding=3, head=2),
    _case("RobertaForSequenceClassification", "roberta", _BERT, _SEPARATE, embedding=3, head=2),
    _case("XLMRobertaForMaskedLM", "xlm-roberta", _BERT, _SEPARATE, "lm_head.decoder", embedding=3, head=2),
    _case("MPNetModel", "mpnet", _BERT, _SEPARATE, embedding=3, head=1),
    _case("MPNetForMaskedLM", "mpnet", _BERT, _SEPARATE, "lm_head.decoder", embedding=3, head=2),
    _case(
        "DistilBertForMaskedLM",
        "distilbert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 64, "max_position_embeddings": 40},
        _SEPARATE,
        "vocab_projector",
        embedding=2,
        head=2,
    ),
    _case(
        "DebertaForMaskedLM", "deberta", _DEBERTA, _FUSED, "cls.predictions.decoder", position=4, embedding=3, head=2
    ),
    _case(
        "DebertaV2ForMaskedLM",
        "deberta-v2",
        _DEBERTA | {"share_att_key": False},
        _SEPARATE,
        "cls.predictions.decoder",
        position=4,
        embedding=3,
        head=2,
    ),
    _case("ElectraForPreTraining", "electra", _BERT | {"embedding_size": 16}, _SEPARATE, embedding=3, head=2, other=1),
    _case(
        "ElectraForMaskedLM", "electra", _BERT | {"embedding_size": 16}, _SEPARATE, "generator_lm_head",
        embedding=3, head=2, other=1,
    ),
    _case("GPT2LMHeadModel", "gpt2", _GPT2, _FUSED, "lm_head", embedding=2, head=1),
    _case("GPTNeoXForCausalLM", "gpt_neox", _BERT | {"tie_word_embeddings": False}, _FUSED, embedding=1, head=1),
    _case(
        "OPTForCausalLM",
        "opt",
        {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 64,
            "word_embed_proj_dim": 16, "max_position_embeddings": 40,
        },
        _SEPARATE,
        "lm_head",
        embedding=2,
        head=1,
        other=2,
    ),
    _case(
        "BloomForCausalLM", "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, _FUSED, "lm_head",
        embedding=1, head=1,
    ),
    _case("LlamaForCausalLM", "llama", _LLAMA, _GATED, embedding=1, head=1),
    _case("LlamaForCausalLM", "llama", _LLAMA | {"tie_word_embeddings": True}, _GATED, "lm_head", embedding=1, head=1),
    _case("MistralForCausalLM", "mistral", _LLAMA, _GATED, embedding=1, head=1),
    _case("GemmaForCausalLM", "gemma", _LLAMA, _GATED, "lm_head", embedding=1, head=1),
    _case("Gemma2ForCausalLM", "gemma2", _LLAMA, _GATED, "lm_head", embedding=1, head=1),
    _case("Gemma3ForCausalLM", "gemma3_text", _LLAMA, _GATED, "lm_head", embedding=1, head=1),
    _case(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        {"text_config": _LLAMA, "vision_config": _IMAGE | {"vision_use_head": False}, "mm_tokens_per_image": 4},
        {"query": 4, "key": 4, "value": 4, "output": 4, "gate": 2, "up": 4, "down": 4},
        "lm_head",
        embedding=2,
        head=1,
        other=1,
    ),
    _case("Qwen2ForCausalLM", "qwen2", _BERT | {"num_key_value_heads": 2}, _GATED, embedding=1, head=1),
    _case("Qwen3ForCausalLM", "qwen3", _LLAMA, _GATED, embedding=1, head=1),
    _case(
        "Phi3ForCausalLM", "phi3", _BERT | {"num_key_value_heads": 2},
        {"qkv": 2, "output": 2, "gate_up": 2, "down": 2}, embedding=1, head=1,
    ),
    _case("PhiForCausalLM", "phi", _BERT, _SEPARATE, embedding=1, head=1),
    _case("T5ForConditionalGeneration", "t5", _T5, _TWICE, "lm_head", embedding=3, head=1),
    _case(
        "T5ForConditionalGeneration", "t5", _T5 | {"feed_forward_proj": "gated-gelu"},
        _TWICE | {"gate": 4}, "lm_head", embedding=3, head=1,
    ),
    _case("ViTForImageClassification", "vit", _IMAGE, _SEPARATE, head=1),
    _case(
        "MixtralForCausalLM", "mixtral", _LLAMA | {"num_local_experts": 3},
        {"query": 2, "key": 2, "value": 2, "output": 2, "gate": 6, "up": 6, "down": 6}, embedding=1, head=1, other=2,
    ),
    _case(
        "Qwen3MoeForCausalLM", "qwen3_moe",
        _LLAMA | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
        {"query": 2, "key": 2, "value": 2, "output": 2, "gate": 6, "up": 6, "down": 6}, embedding=1, head=1, other=2,
    ),
    _case(
        "GptOssForCausalLM", "gpt_oss", _LLAMA | {"num_local_experts": 3},
        {"query": 2, "key": 2, "value": 2, "output": 2, "gate_up": 6, "down": 6}, embedding=1, head=1, other=2,
    ),
    _case("BartForConditionalGeneration", "bart", _BART, _TWICE, "lm_head", embedding=3, head=1),
    _case("BartForSequenceClassification", "bart", _BART, _TWICE, embedding=3, head=2),
    _case(
        "FalconForCausalLM", "falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64},
        _FUSED, "lm_head", embedding=1, head=1,
    ),
    _case(
        "GPTJForCausalLM", "gptj", _GPT2 | {"rotary_dim": 8, "tie_word_embeddings": False}, _SEPARATE, embedding=1, head=1
    ),
    _case(
        "AlbertForMaskedLM", "albert", _BERT | {"embedding_size": 16},
        {"query": 1, "key": 1, "value": 1, "output": 1, "up": 1, "down": 1}, "predictions.decoder",
        embedding=3, head=2, other=1,
    ),
    _case(
        "ModernBertForMaskedLM", "modernbert", _BERT,
        {"qkv": 2, "output": 2, "gate_up": 2, "down": 2}, "decoder", embedding=1, head=2,
    ),
]
# fmt: on
