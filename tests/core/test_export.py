"""A LoRA-XS adapter as a plain LoRA: right by the rule of every reader, proved before it counts, named for others to find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError
from loraxs_core.export import export_lora
from loraxs_core.loading import AdapterFolder
from loraxs_core.proving import prove_lora
from loraxs_core.servers import llama_cpp_scaling, remarks, vllm_scaling
from loraxs_core.tuner import LoraXSConfig

FORMS = pytest.mark.parametrize("uniform_rank", [True, False])


def saved(model, folder, **config):
    """An untrained adapter that does something, saved; its ΔW by module."""
    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraXSConfig(**({"task_type": "CAUSAL_LM", "init_weights": False} | config)))
    adapted.save_pretrained(folder)
    modules = adapted.base_model.model.named_modules()
    return {name: layer.get_delta_weight("default").detach().numpy() for name, layer in modules if hasattr(layer, "loraxs_R")}


@pytest.fixture
def several_ranks(tiny_llama, tmp_path):
    config = {"r": 2, "alpha": 8, "rank_pattern": {"o_proj": 3, "up_proj": 5}, "alpha_pattern": {"up_proj": 1}}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    return tmp_path / "xs", saved(model, tmp_path / "xs", target_modules=["q_proj", "o_proj", "up_proj"], **config)


def read_by(folder, scaling) -> dict[str, np.ndarray]:
    """ΔW by module, as a reader makes it that multiplies lora_B lora_A by scaling(config, rank of the tensors)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            A, B = tensors[key], tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[name] = scaling(config, len(A)) * (B @ A).numpy()
    return found


def read_by_peft(model, folder) -> dict[str, np.ndarray]:
    modules = PeftModel.from_pretrained(model, folder).base_model.model.named_modules()
    return {name: layer.get_delta_weight("default").detach().numpy() for name, layer in modules if hasattr(layer, "lora_A")}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        np.testing.assert_allclose(found[name], delta, atol=2e-6 * np.abs(delta).max(), err_msg=name)


@FORMS
def test_different_ranks_are_right_where_alpha_is_divided_by_the_tensors_rank(
    tiny_llama, several_ranks, tmp_path, uniform_rank
):
    folder, wanted = several_ranks
    out = export_lora(folder, Checkpoint.open(tiny_llama), tmp_path / "lora", uniform_rank=uniform_rank)
    assert_same(read_by(out, llama_cpp_scaling), wanted)
    assert_same(read_by_peft(AutoModelForCausalLM.from_pretrained(tiny_llama), out), wanted)
    ranks = {entry.shape[0] for name, entry in AdapterFolder(out).file.entries.items() if "lora_A" in name}
    assert ranks == ({5} if uniform_rank else {2, 3, 5})
    assert any("one scale for all" in remark for remark in remarks(out)) != uniform_rank


def test_one_rank_is_the_default_and_right_in_servers_with_one_scale(tiny_llama, several_ranks, tmp_path):
    folder, wanted = several_ranks
    out = export_lora(folder, Checkpoint.open(tiny_llama), tmp_path / "lora")
    assert_same(read_by(out, vllm_scaling), wanted)
    assert "right in PEFT, vLLM, LoRAX and llama.cpp" in remarks(out)[0]


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names a folder with llama.cpp's convert_lora_to_gguf.py")
@FORMS
def test_llama_cpps_own_converter_writes_the_same_update(tiny_llama, several_ranks, tmp_path, uniform_rank):
    import gguf

    folder, wanted = several_ranks
    out = export_lora(folder, Checkpoint.open(tiny_llama), tmp_path / "lora", uniform_rank=uniform_rank)
    tools, file = Path(os.environ["LLAMA_CPP"]), tmp_path / "lora.gguf"
    command = [sys.executable, tools / "convert_lora_to_gguf.py", "--base", tiny_llama, "--outfile", file, out]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(tools / "gguf-py")})
    reader = gguf.GGUFReader(file)
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for layer in range(2):
        for theirs, ours in (("attn_output", "self_attn.o_proj"), ("ffn_up", "mlp.up_proj")):  # queries are permuted there
            a, b = (tensors[f"blk.{layer}.{theirs}.weight.lora_{which}"] for which in "ab")
            delta = wanted[f"model.layers.{layer}.{ours}"]
            np.testing.assert_allclose(alpha / b.shape[1] * (b @ a), delta, atol=2e-6 * np.abs(delta).max())


def mixture():
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING["deepseek_v2"](
        vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1,
        kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1,
        max_position_embeddings=64,
    )  # fmt: skip


@FORMS
def test_dense_layers_of_a_mixture_of_experts_keep_their_update_in_peft(tmp_path, uniform_rank):
    """PEFT 0.21 takes targets that end in gate_proj, up_proj or down_proj for the routed experts, and drops them."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(mixture()).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    targets = ["o_proj", "gate_proj", "up_proj", "down_proj"]
    wanted = saved(model, tmp_path / "xs", r=2, rank_pattern={"down_proj": 3}, target_modules=targets)
    assert len(wanted) == 8
    out = export_lora(tmp_path / "xs", Checkpoint.open(tmp_path / "base"), tmp_path / "lora", uniform_rank=uniform_rank)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), out).merge_and_unload()
    plain = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "base").named_modules())
    found = {
        name: (module.weight - plain[name].weight).detach().numpy() for name, module in merged.named_modules() if name in wanted
    }
    for name, delta in wanted.items():
        np.testing.assert_allclose(found[name], delta, atol=1e-5 * np.abs(delta).max(), err_msg=name)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_heads_and_embeddings_are_exported(tiny_llama, tmp_path, target):
    """PEFT puts the base's own embedding into the adapter's file too, which is no part of the adapter."""
    tokens = torch.arange(2, 14).reshape(2, 6)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    saved(base, tmp_path / "xs", r=2, target_modules=["q_proj", target])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    wanted = PeftModel.from_pretrained(model, tmp_path / "xs")(input_ids=tokens).logits
    out = export_lora(tmp_path / "xs", Checkpoint.open(tiny_llama), tmp_path / "lora")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), out).eval()
    torch.testing.assert_close(plain(input_ids=tokens).logits, wanted, atol=1e-5, rtol=1e-5)


def test_what_servers_refuse_is_said(tiny_llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    saved(model, tmp_path / "xs", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    out = export_lora(tmp_path / "xs", Checkpoint.open(tiny_llama), tmp_path / "lora")
    said = remarks(out)
    assert "vLLM refuses an adapter with modules_to_save" in said[0]
    assert "loraxs merge" in said[0]
    assert said[0] in (out / "README.md").read_text()


def test_a_rank_above_vllms_default_names_the_option(tiny_llama, tmp_path):
    saved(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "xs", r=20, target_modules=["q_proj"])
    out = export_lora(tmp_path / "xs", Checkpoint.open(tiny_llama), tmp_path / "lora")
    assert "--max-lora-rank 32" in remarks(out)[1]


def prepared(tiny_llama, tmp_path):
    folder, base = tmp_path / "lora", Checkpoint.open(tiny_llama)
    saved(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "xs", r=2, target_modules=["q_proj", "v_proj"])
    export_lora(tmp_path / "xs", base, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=names, task_type="CAUSAL_LM")
    return folder, config, tensors, AdapterFolder(tmp_path / "xs"), base


def test_a_file_that_does_not_hold_what_was_written_is_no_export(tiny_llama, tmp_path):
    folder, config, tensors, source, base = prepared(tiny_llama, tmp_path)
    prove_lora(folder, config, tensors, source, base)
    first = min(tensors)
    save_file(tensors | {first: tensors[first] + 1}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="does not hold what was written"):
        prove_lora(folder, config, tensors, source, base)


def test_what_peft_would_drop_or_scale_otherwise_is_refused(tiny_llama, tmp_path):
    folder, config, tensors, source, base = prepared(tiny_llama, tmp_path)
    config.use_rslora = True
    with pytest.raises(AdapterError, match=r"q_proj.lora_A.weight finds no place on .* or another scale"):
        prove_lora(folder, config, tensors, source, base)
    config.use_rslora, config.target_modules = False, [*config.target_modules, "k_proj"]
    with pytest.raises(AdapterError, match=r"k_proj.lora_A.weight finds no place.*Merge"):
        prove_lora(folder, config, tensors, source, base)


def test_the_base_is_named_by_hub_id_and_commit_never_by_a_path(tiny_llama, several_ranks, tmp_path):
    folder, _ = several_ranks
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / commit
    shutil.copytree(tiny_llama, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    out = export_lora(folder, Checkpoint.open(snapshot), tmp_path / "lora")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/model", commit)
    card = ModelCard.load(out / "README.md")
    assert (card.data.base_model, card.data.license, card.data.library_name) == ("some/model", "apache-2.0", "peft")
    assert card.data.pipeline_tag == "text-generation"
    assert "`apache-2.0`" in card.text
    unnamed = export_lora(folder, Checkpoint.open(tiny_llama), tmp_path / "unnamed")
    for file in ("adapter_config.json", "README.md"):
        for text in ((out / file).read_text(), (unnamed / file).read_text()):
            assert str(tmp_path) not in text
            assert str(tiny_llama) not in text
