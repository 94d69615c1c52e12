"""What is a matrix, which way it is stored and what it is for, where names and shapes alone do not say it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.inventory import TensorInfo, inventory
from loraxs_core.roles import role_of
from tests.core.test_fused import DBRX, saved

GRANITE = {
    "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", "hidden_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "num_local_experts": 3, "num_experts_per_tok": 2,
    "vocab_size": 64,
}  # fmt: skip
JETMOE = {
    "architectures": ["JetMoeForCausalLM"], "model_type": "jetmoe", "hidden_size": 32, "num_hidden_layers": 1,
    "num_key_value_heads": 2, "kv_channels": 16, "intermediate_size": 24, "num_local_experts": 3, "num_experts_per_tok": 2,
    "vocab_size": 64,
}  # fmt: skip


@pytest.mark.parametrize("config", [GRANITE, JETMOE, DBRX], ids=lambda config: config["model_type"])
def test_every_expert_is_a_matrix_whatever_its_stack_is_called(config, tmp_path):
    model, checkpoint = saved(tmp_path, config)
    held = sum(parameter.numel() for name, parameter in model.named_parameters() if parameter.dim() >= 2)
    assert checkpoint.parameters == held
    roles = {
        weight.role: weight.shape for weight in checkpoint.weights if weight.kind == "expert" and "attention" not in weight.name
    }
    width = 48 if config is DBRX else 24
    both = {"mlp.gate": (width, 32), "mlp.up": (width, 32)} if config is DBRX else {"mlp.gate_up": (2 * width, 32)}
    assert roles == both | {"mlp.down": (32, width)}


def test_experts_of_dbrx_are_the_rows_its_code_takes(tmp_path):
    model, checkpoint = saved(tmp_path, DBRX)
    stack = model.get_submodule("transformer.blocks.0.ffn.experts.mlp")
    for name in ("w1", "v1", "w2"):
        for expert in range(3):
            weight = checkpoint.weight(f"transformer.blocks.0.ffn.experts.mlp.{name}[{expert}]")
            own = getattr(stack, name).view(3, 48, 32)[expert].detach().numpy()
            assert np.array_equal(checkpoint.read(weight), own.T if name == "w2" else own)
            assert np.array_equal(checkpoint.read_rows(weight, 3, 7), checkpoint.read(weight)[3:7])


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "gpt_oss", "made-up"])
def test_the_width_of_the_model_tells_which_way_experts_are_stored(model_type, turned):
    config = {"model_type": model_type, "text_config": {"hidden_size": 32}}
    stacks = {"model.layers.0.mlp.experts.gate_up_proj": (40, 32), "model.layers.0.mlp.experts.down_proj": (32, 20)}
    infos = {name: TensorInfo((3, *(sides[::-1] if turned else sides)), "bfloat16") for name, sides in stacks.items()}
    found = inventory(infos, config)
    assert len(found) == 6
    for weight in found:
        assert weight.shape == stacks[weight.tensor]
        assert weight.transposed == turned


def test_where_the_width_does_not_tell_the_architecture_does():
    infos = {"layers.0.mlp.experts.down_proj": TensorInfo((2, 32, 32), "bfloat16")}
    assert inventory(infos, {"model_type": "gpt_oss", "hidden_size": 32})[0].transposed
    assert not inventory(infos, {"model_type": "mixtral", "hidden_size": 32})[0].transposed


@pytest.mark.parametrize(
    ("config", "turned"),
    [
        ({"model_type": "gpt2"}, True),
        ({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}, "encoder": {"model_type": "vit"}}, True),
        ({}, True),  # the biases tell
        ({"model_type": "gpt_bigcode"}, False),
    ],
)
def test_conv1d_is_known_inside_a_larger_model_and_without_a_config(config, turned, tmp_path):
    rows, columns = (8, 24) if turned else (24, 8)
    tensors = {"h.0.attn.c_attn.weight": torch.randn(rows, columns), "h.0.attn.c_attn.bias": torch.zeros(24)}
    tensors |= {"h.0.attn.c_proj.weight": torch.randn(8, 8), "h.0.attn.c_proj.bias": torch.zeros(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.open(tmp_path)
    assert {weight.kind for weight in checkpoint.weights} == {"conv1d" if turned else "linear"}
    assert checkpoint.weight("h.0.attn.c_attn").shape == (24, 8)
    stored = tensors["h.0.attn.c_proj.weight"].numpy()
    assert np.array_equal(checkpoint.read(checkpoint.weight("h.0.attn.c_proj")), stored.T if turned else stored)


# Names from published checkpoints that the small models of `architectures.py` do not cover.
@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("transformer.tokens_embed transformer.positions_embed backbone.embeddings rwkv.embeddings embeddings", "embedding"),
        ("text_model.embeddings.token_embedding model.tok_embeddings visual.pos_embed embeddings.x_position_embeddings", "embedding"),
        ("output head head.fc transformer.output_layer proj_out bert.pooler.dense lm_head", "head"),
        ("mlp.router.classifier model.layers.0.block_sparse_moe.router.layer single_transformer_blocks.3.proj_out", "other"),
        ("multi_modal_projector.feed_forward.linear_out backbone.layers.0.mixer.dt_proj model.layers.0.mlp.gate", "other"),
        ("model.layers.0.attention.wqkv transformer.h.0.attn.c_attn model.layers.0.self_attn.W_pack blocks.0.attn.qkv", "attention.qkv"),
        ("layers.0.attention.self.query_global unet.attn1.to_q encoder.layers.0.self_attn.linear_q attn.wq_b", "attention.query"),
        ("vision.layers.0.self_attn.q_proj.linear encoder.block.0.layer.0.LocalSelfAttention.q", "attention.query"),
        ("unet.attn1.to_out.0 blocks.0.attn.proj layers.0.attention.wo blocks.0.attention.output", "attention.output"),
        ("encoder.layers.0.self_attn.linear_out vision.blocks.0.self_attn.projection", "attention.output"),
        ("transformer.h.0.mlp.w2 layers.0.feed_forward.w1 encoder.layers.0.mlp.fc12 block.0.layer.1.DenseReluDense.wi_0", "mlp.gate"),
        ("transformer.h.0.mlp.w1 layers.0.feed_forward.w3 encoder.layers.0.mlp.fc11 blocks.0.feed_forward.key", "mlp.up"),
        ("encoder.layers.0.feed_forward.intermediate_dense visual.blocks.0.mlp.linear_fc1 experts.expert_3.wi", "mlp.up"),
        ("blocks.0.feed_forward.value layers.0.feed_forward.w2 encoder.layers.0.feed_forward.output_dense", "mlp.down"),
        ("transformer.h.0.mlp.c_proj model.layers.0.shared_mlp.output_linear experts.expert_3.wo", "mlp.down"),
        ("model.layers.0.shared_mlp.input_linear model.layers.0.block_sparse_moe.input_linear[2]", "mlp.gate_up"),
    ],
)  # fmt: skip
def test_roles_of_published_names(names, role):
    assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)


def test_an_embedding_table_is_not_scanned_as_a_layer(tmp_path):
    save_file(
        {"backbone.embeddings.weight": torch.randn(50, 8), "backbone.layers.0.mixer.in_proj.weight": torch.randn(16, 8)},
        tmp_path / "model.safetensors",
    )
    assert [weight.name for weight in Checkpoint.open(tmp_path).linear] == ["backbone.layers.0.mixer.in_proj"]
