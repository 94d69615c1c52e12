"""Roles of names that are no plain transformer's: state-space mixers, Conformers, diffusers, RWKV, xLSTM and others."""

from __future__ import annotations

import pytest

from analyzers.ranks import Budget, make_plan
from app.charts.theme import ROLE_COLORS
from loraxs_core.architecture import inventory_from_config
from loraxs_core.roles import LABELS, ROLES, role_of

NAMES = {
    "model.layers.0.linear_attn.in_proj_qkvz": "attention.qkv",
    "model.layers.0.linear_attn.in_proj_qkv": "attention.qkv",
    "model.layers.0.linear_attn.in_proj_z": "mixer.input",
    "model.layers.0.linear_attn.in_proj_ba": "other",  # a number a head
    "model.layers.0.linear_attn.out_proj": "attention.output",
    "backbone.layers.0.mixer.in_proj": "mixer.input",
    "backbone.layers.0.mixer.x_proj": "mixer.input",
    "backbone.layers.0.mixer.out_proj": "other",  # Mamba's kernels take its weight and pass the module by
    "model.layers.0.mamba.in_proj": "mixer.input",
    "model.layers.0.mamba.out_proj": "other",
    "model.layers.0.conv.in_proj": "mixer.input",
    "model.layers.0.conv.out_proj": "mixer.output",
    "model.layers.0.temporal_block.linear_y": "mixer.input",
    "encoder.layers.0.feed_forward1.linear1": "mlp.up",
    "encoder.layers.0.feed_forward2.linear2": "mlp.down",
    "conformer.0.ffw_layer_start.ffw_layer_1": "mlp.up",
    "transformer_blocks.0.ff.net.0.proj": "mlp.up",
    "transformer_blocks.11.ff.net.2": "mlp.down",
    "transformer_blocks.0.ff_context.net.0.proj": "mlp.up",
    "transformer_blocks.0.attn.add_q_proj": "attention.query",
    "transformer_blocks.0.attn.add_k_proj": "attention.key",
    "transformer_blocks.0.attn.add_v_proj": "attention.value",
    "transformer_blocks.0.attn.to_add_out": "attention.output",
    "transformer_blocks.0.attn.to_out.0": "attention.output",
    "single_transformer_blocks.0.proj_mlp": "mlp.up",
    "rwkv.blocks.0.attention.receptance": "attention.query",
    "rwkv.blocks.0.feed_forward.receptance": "mlp.gate",
    "backbone.blocks.0.mlstm_layer.q": "attention.query",
    "backbone.blocks.0.mlstm_layer.out_proj": "attention.output",
    "backbone.blocks.0.ffn.proj_up_gate": "mlp.gate",
    "backbone.blocks.0.ffn.proj_down": "mlp.down",
    "lxmert.encoder.x_layers.0.lang_inter.dense": "mlp.up",
    "encoder.layer.0.attention.layout_output.dense": "attention.output",
    "encoder.layer.0.layout_output.dense": "mlp.down",
    "h.3.multi_head_attention.Wq": "attention.query",
    "backbone.blocks.2.mlp.proj_out": "mlp.down",
    "proj_out": "head",
    "classifier.linear1": "head",
    "multi_modal_projector.linear_1": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_the_role_of_what_it_does(name):
    assert role_of(name) == NAMES[name]


def test_every_role_has_a_label_and_a_colour():
    assert set(ROLES) == set(LABELS) == set(ROLE_COLORS)


def test_mamba_can_be_planned():
    config = {
        "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4,
        "vocab_size": 64,
    }  # fmt: skip
    plan = make_plan(inventory_from_config(config, "mamba"), "uniform", budget=Budget.like_rank(2))
    assert {name.rpartition(".")[2] for name in plan.ranks} == {"in_proj", "x_proj"}
