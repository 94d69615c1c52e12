"""Parts of fused projections against what each architecture's own code takes for query, key and value."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraxs_core.architecture import inventory_from_config
from loraxs_core.checkpoint import Checkpoint
from tests.core.architectures import CASES

CONFIGS = {case.model_class: case.config for case in CASES}
FALCON = CONFIGS["FalconForCausalLM"]
PERSIMMON = {
    "architectures": ["PersimmonForCausalLM"], "model_type": "persimmon", "hidden_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64, "qk_layernorm": False,
}  # fmt: skip
BIGCODE = {
    "architectures": ["GPTBigCodeForCausalLM"],
    "model_type": "gpt_bigcode",
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "vocab_size": 64,
}
DBRX = {
    "architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "d_model": 32, "n_layers": 1, "n_heads": 4, "vocab_size": 64,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}, "ffn_config": {"moe_num_experts": 3, "moe_top_k": 1, "ffn_hidden_size": 48, "hidden_size": 32},
}  # fmt: skip
CODEGEN = {
    "architectures": ["CodeGenForCausalLM"],
    "model_type": "codegen",
    "n_embd": 64,
    "n_layer": 1,
    "n_head": 4,
    "vocab_size": 64,
    "rotary_dim": 8,
}
MPT = {"architectures": ["MptForCausalLM"], "model_type": "mpt", "d_model": 32, "n_layers": 1, "n_heads": 4, "vocab_size": 64}


def saved(tmp_path, config: dict):
    """A randomly initialised model of `config` and the checkpoint it was saved as."""
    import transformers

    torch.manual_seed(0)
    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    model = getattr(transformers, config["architectures"][0])(settings).eval()
    model.save_pretrained(tmp_path)
    return model, Checkpoint.open(tmp_path)


def attention_inputs(model, monkeypatch) -> dict[str, torch.Tensor]:
    """What the model's own attention of layer 0 works with at the first position, where rotary embeddings do nothing."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = {}

    def spy(module, query, key, value, *args, **kwargs):
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            seen.setdefault(name, tensor[0, :, 0].reshape(-1))  # heads x head size, flattened
        return torch.zeros_like(query).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "spy", spy)
    model.config._attn_implementation = "spy"
    model(torch.tensor([[3, 5, 7]]))
    return seen


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["GPT2LMHeadModel"], CONFIGS["GPTNeoXForCausalLM"], CONFIGS["Phi3ForCausalLM"], CONFIGS["ModernBertForMaskedLM"],
        PERSIMMON, BIGCODE, BIGCODE | {"multi_query": False}, DBRX,
    ],
    ids=lambda config: config["architectures"][0],
)  # fmt: skip
def test_parts_are_what_the_attention_works_with(config, tmp_path, monkeypatch):
    model, checkpoint = saved(tmp_path, config)
    whole = next(weight for weight in checkpoint.weights if weight.role == "attention.qkv" and weight.layer == 0)
    inputs = {}
    module = next(module for name, module in model.named_modules() if name.endswith(whole.key))
    module.register_forward_hook(lambda module, given, result: inputs.update({"x": given[0][0, 0]} if not inputs else {}))
    if module.bias is not None:
        torch.nn.init.zeros_(module.bias)
    seen = attention_inputs(model, monkeypatch)
    parts = checkpoint.parts(whole)
    assert [part.part for part in parts] == ["query", "key", "value"]
    for part in parts:
        matrix = checkpoint.read(part)
        assert matrix.shape == part.shape
        assert np.allclose(matrix @ inputs["x"].detach().numpy(), seen[part.part].detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "split"),
    [
        (CONFIGS["BloomForCausalLM"], "_reshape"),
        (FALCON | {"multi_query": True}, "_split_heads"),
        (FALCON | {"multi_query": False}, "_split_heads"),
        (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, "_split_heads"),
        (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 1}, "_split_heads"),
        (CONFIGS["DebertaForMaskedLM"], "transpose_for_scores"),
    ],
)
def test_parts_are_what_the_model_splits_off(config, split, tmp_path):
    model, checkpoint = saved(tmp_path, config)
    whole = next(weight for weight in checkpoint.weights if weight.role == "attention.qkv" and weight.layer == 0)
    attention = next(module for name, module in model.named_modules() if hasattr(module, split))
    numbered = torch.arange(whole.shape[0], dtype=torch.float32).reshape(1, 1, -1)  # every output row is its own number
    pieces = getattr(attention, split)(numbered)
    if split == "transpose_for_scores":
        pieces = pieces.chunk(3, dim=-1)
    parts = checkpoint.parts(whole)
    assert sum(part.shape[0] for part in parts) == whole.shape[0]
    matrix = checkpoint.read(whole)
    for part, piece in zip(parts, pieces, strict=True):
        rows = piece.flatten().unique().long().numpy()  # sorted; repeated where a key serves several queries
        assert np.array_equal(np.sort(checkpoint.read(part), axis=0), np.sort(matrix[rows], axis=0))
        assert len(rows) == part.shape[0]


@pytest.mark.parametrize("config", [MPT, CODEGEN], ids=lambda config: config["architectures"][0])
def test_only_the_parts_of_one_value_reach_the_output_and_only_queries_and_keys_the_scores(config, tmp_path):
    """MPT and CodeGen take their rows apart inside `forward`: a part is known by what the attention does with it."""
    model, checkpoint = saved(tmp_path, config)
    whole = next(weight for weight in checkpoint.weights if weight.role == "attention.qkv")
    module = model.get_submodule(whole.name)
    rows = {part.part: np.flatnonzero((checkpoint.read(whole)[:, None] == checkpoint.read(part)[None]).all(-1).any(1))
            for part in checkpoint.parts(whole)}  # fmt: skip
    assert sorted(np.concatenate(list(rows.values()))) == list(range(whole.shape[0]))

    def output(**zero: bool) -> torch.Tensor:
        with torch.no_grad():
            kept = module.weight.clone()
            for part in zero:
                module.weight[rows[part]] = 0
            found = model(torch.tensor([[3, 5, 7]]), output_attentions=True, output_hidden_states=True)
            module.weight.copy_(kept)
        return found

    # With queries or keys at zero every position seen is weighed alike; with values at zero nothing comes out.
    for part in ("query", "key"):
        weights = output(**{part: True}).attentions[0][0, 0, 2]
        if config is CODEGEN:
            assert weights.numpy() == pytest.approx(1 / 3, abs=1e-6)
        assert not torch.equal(weights, output().attentions[0][0, 0, 2])
    assert torch.equal(output(value=True).attentions[0], output().attentions[0])
    projection = model.get_submodule(whole.name.rpartition(".")[0]).out_proj
    seen = []
    hook = projection.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    output(value=True)
    hook.remove()
    assert not seen[0].any()


def test_cross_attention_of_gpt2_holds_keys_and_values_alone(tmp_path):
    model, checkpoint = saved(tmp_path, CONFIGS["GPT2LMHeadModel"] | {"add_cross_attention": True, "n_embd": 48})
    whole = next(weight for weight in checkpoint.weights if weight.name.endswith("0.crossattention.c_attn"))
    assert whole.shape == (96, 48)  # divisible by three
    key, value = checkpoint.parts(whole)
    assert (key.role, value.role) == ("attention.key", "attention.value")
    stored = model.get_submodule(whole.name).weight.detach().numpy().T
    assert np.array_equal(np.vstack([checkpoint.read(key), checkpoint.read(value)]), stored)


# As the code in these models' own repositories cuts them (modeling_internlm2.py, modeling_chatglm.py, modeling_qwen.py).
@pytest.mark.parametrize(
    ("config", "name", "heads"),
    [
        ({"model_type": "internlm2", "num_attention_heads": 4, "num_key_value_heads": 2}, "attention.wqkv", "qqkvqqkv"),
        (
            {"model_type": "chatglm", "num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2},
            "self_attention.query_key_value",
            "qqqqkkvv",
        ),
        ({"model_type": "chatglm", "num_attention_heads": 2}, "attention.query_key_value", "qkvqkv"),
        ({"model_type": "qwen", "num_attention_heads": 2}, "attn.c_attn", "qqkkvv"),
        ({"model_type": "baichuan", "num_attention_heads": 2}, "self_attn.W_pack", "qqkkvv"),
        ({"model_type": "nomic_bert", "n_head": 2}, "attn.Wqkv", "qqkkvv"),
    ],
)
def test_layouts_of_models_with_code_of_their_own(config, name, heads, tmp_path):
    matrix = torch.arange(8 * len(heads), dtype=torch.float32).reshape(-1, 2)  # four rows a head
    save_file({f"layers.0.{name}.weight": matrix}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.open(tmp_path)
    parts = checkpoint.parts(checkpoint.weight(f"layers.0.{name}"))
    assert [part.part for part in parts] == ["query", "key", "value"]
    for part in parts:
        rows = [row for index, head in enumerate(heads) if head == part.part[0] for row in range(4 * index, 4 * index + 4)]
        assert np.array_equal(checkpoint.read(part), matrix[rows].numpy())


@pytest.mark.parametrize("model_class", ["Phi3ForCausalLM", "ModernBertForMaskedLM"])
def test_gate_is_the_half_that_goes_through_the_activation(model_class, tmp_path):
    model, checkpoint = saved(tmp_path, CONFIGS[model_class])
    whole = next(weight for weight in checkpoint.weights if weight.role == "mlp.gate_up" and weight.layer == 0)
    mlp = model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith(whole.key)).rpartition(".")[0])
    activation = next(module for name, module in mlp.named_modules() if name in ("activation_fn", "act"))
    x, seen = torch.randn(whole.shape[1]), {}
    activation.register_forward_hook(lambda module, given, result: seen.update(gate=given[0].flatten()))
    mlp(x.reshape(1, 1, -1))
    gate, up = checkpoint.parts(whole)
    assert (gate.role, up.role) == ("mlp.gate", "mlp.up")
    assert np.allclose(checkpoint.read(gate) @ x.numpy(), seen["gate"].detach().numpy(), atol=1e-6)
    assert np.array_equal(np.vstack([checkpoint.read(gate), checkpoint.read(up)]), checkpoint.read(whole))


def test_gate_and_up_alternate_in_gpt_oss(tmp_path):
    model, checkpoint = saved(tmp_path, CONFIGS["GptOssForCausalLM"])
    whole = next(weight for weight in checkpoint.weights if weight.role == "mlp.gate_up" and weight.expert == 1)
    stack = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    gate, up = checkpoint.parts(whole)
    assert gate.name == "model.layers.0.mlp.experts.gate_up_proj[1][gate]"
    assert np.array_equal(checkpoint.read(gate), stack[1, :, ::2].detach().numpy().T)
    assert np.array_equal(checkpoint.read(up), stack[1, :, 1::2].detach().numpy().T)


def test_an_in_projection_of_torch(tmp_path):
    attention = torch.nn.MultiheadAttention(16, 4)
    save_file({f"layer.attn.{name}": tensor for name, tensor in attention.state_dict().items()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    whole = checkpoint.weight("layer.attn.in_proj_weight")
    assert (whole.role, whole.kind, whole.is_adaptable) == ("attention.qkv", "parameter", False)
    assert np.array_equal(
        np.vstack([checkpoint.read(part) for part in checkpoint.parts(whole)]), attention.in_proj_weight.detach().numpy()
    )


def test_an_unknown_layout_is_never_cut(tmp_path):
    tensors = {"layer.0.attn.qkv.weight": torch.ones(12, 4), "layer.0.attn.q_proj.weight": torch.ones(4, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "made-up", "num_attention_heads": 2}))
    checkpoint = Checkpoint.open(tmp_path)
    assert all(checkpoint.parts(weight) == [] for weight in checkpoint.weights)


@pytest.mark.parametrize("heads", [0, -1, "four", None, 7, True])
def test_a_config_that_does_not_fit_is_not_followed(heads):
    config = CONFIGS["GPTNeoXForCausalLM"]
    checkpoint = inventory_from_config(config, "tiny")
    checkpoint.config = config | {"num_attention_heads": heads}
    whole = next(weight for weight in checkpoint.weights if weight.role == "attention.qkv")
    assert checkpoint.parts(whole) == []


@pytest.mark.parametrize("model_class", ["GPT2LMHeadModel", "BloomForCausalLM", "GptOssForCausalLM", "LlamaForCausalLM"])
def test_strips_are_rows_and_columns_of_the_matrix(model_class, tmp_path):
    _, checkpoint = saved(tmp_path, CONFIGS[model_class])
    for whole in checkpoint.linear:
        for weight in (whole, *checkpoint.parts(whole)):
            matrix, strips = checkpoint.read(weight), checkpoint.strips(weight)
            assert matrix.shape == strips.shape == weight.shape
            out, into = weight.shape
            for start, stop in ((0, 1), (1, out - 1), (out - 1, out), (2, 2)):
                assert np.array_equal(checkpoint.read_rows(weight, start, stop), matrix[start:stop])
            for start, stop in ((0, 1), (1, into - 1), (into - 1, into), (2, 2)):
                assert np.array_equal(strips.columns(start, stop), matrix[:, start:stop])
