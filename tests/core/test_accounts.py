"""Nothing is loaded or merged unless every tensor found its place and every parameter came from a file.

Adapters as other trainers and wrappers write them, bases that lack something, files that were damaged on the way: each is either
understood, and then gives the numbers it was trained to give, or refused in one sentence with nothing written.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loraxs_core import merged_files
from loraxs_core.account import balance
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, CheckpointError
from loraxs_core.merging import merge
from loraxs_core.tuner import LoraXSConfig

IDS = torch.arange(3, 15)[None]
PREFIX = "base_model.model."
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=40)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=64, decoder_start_token_id=0)
    ),
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
}
TARGETS = {"llama": "q_proj", "gpt2": "c_attn", "t5": "q", "bert": "query"}


def saved(tmp_path, kind="llama", dtype=torch.float32, **options):
    """Folder of a tiny model."""
    torch.manual_seed(0)
    MODELS[kind]().to(dtype).save_pretrained(tmp_path / kind, **options)
    return tmp_path / kind


def trained(
    base, tmp_path, *, kind="llama", config=LoraConfig, load_as=None, rename=None, edit=None, name="adapter", **settings
):
    """(adapter folder, the model with the adapter) with numbers that are not zero."""
    torch.manual_seed(1)
    model = (load_as or type(MODELS[kind]())).from_pretrained(base, dtype="auto")
    settings = {"r": 2, "target_modules": [TARGETS[kind]], "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(model, config(**settings)).eval()
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if any(one in key for one in ("lora_B", "lora_embedding_A", "token_adapter", "loraxs_R")):
                parameter.normal_(0, 0.1)
    folder = tmp_path / name
    adapted.save_pretrained(folder)
    rewrite(folder, rename, edit)
    return folder, adapted


def rewrite(folder, rename=None, edit=None):
    file = folder / "adapter_model.safetensors"
    tensors = {(rename or (lambda key: key))(key): tensor for key, tensor in load_file(file).items()}
    save_file(edit(tensors) if edit else tensors, file, metadata={"format": "pt"})


def configure(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def changed(out, base):
    before, after = tensors_of(base), tensors_of(out)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("start", [True, False])
def test_an_adapter_that_is_there_in_part_is_refused(start, tmp_path):
    """With ``init_lora_weights: false`` the missing factors would be random numbers; else they would be left out without a word."""
    base = saved(tmp_path)
    folder, _ = trained(
        base,
        tmp_path,
        target_modules=["q_proj", "v_proj"],
        edit=lambda tensors: {k: v for k, v in tensors.items() if "q_proj" in k},
    )
    configure(folder, init_lora_weights=start)
    with pytest.raises(AdapterError, match=r"2 tensors of .* are not in .*v_proj\.lora_A\.weight and .*v_proj\.lora_B\.weight"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_module_that_the_config_does_not_target_is_refused(tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path, target_modules=["q_proj", "v_proj"])
    configure(folder, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"2 of the 4 tensors .* have no place"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")


@pytest.mark.parametrize("with_mapping", [True, False])
def test_without_a_task_the_class_is_what_the_files_say(with_mapping, tmp_path):
    base = saved(tmp_path)
    folder, adapted = trained(base, tmp_path, task_type=None)
    if not with_mapping:
        configure(folder, auto_mapping=None)
    merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert changed(tmp_path / "merged", base) == {"model.layers.0.self_attn.q_proj.weight"}
    with torch.no_grad():
        torch.testing.assert_close(
            LlamaForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, adapted(IDS).logits, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("config", [LoraConfig, LoraXSConfig])
def test_an_adapter_of_the_bare_model_leaves_the_head_where_it_was(config, tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path, config=config, load_as=LlamaModel, task_type="FEATURE_EXTRACTION")
    merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert changed(tmp_path / "merged", base) == {"model.layers.0.self_attn.q_proj.weight"}
    assert (tmp_path / "merged" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize(("kind", "task"), [("llama", "CAUSAL_LM"), ("llama", None), ("t5", "SEQ_2_SEQ_LM"), ("bert", None)])
def test_a_base_that_lacks_parameters_is_refused(kind, task, tmp_path):
    base = saved(tmp_path, kind)
    folder, _ = trained(base, tmp_path, kind=kind, task_type=task)
    file = base / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "norm" in name.lower() and name.endswith("weight"))
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 tensor of .* is not in the files of .*{lost.split('.')[-2]}.*download"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_advice_for_a_missing_head_works(tmp_path):
    """Trained again with the modules_to_save that the sentence names, the adapter merges."""
    base = saved(tmp_path, "t5")
    folder, _ = trained(base, tmp_path, kind="t5", task_type="FEATURE_EXTRACTION")
    configure(folder, task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match="modules_to_save=") as refusal:
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    named = json.loads(str(refusal.value).partition("modules_to_save=")[2].partition("]")[0].replace("'", '"') + "]")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = LoraConfig(r=2, target_modules=["q"], modules_to_save=named, task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "again")
    merge(tmp_path / "again", Checkpoint.open(base), tmp_path / "merged")


def test_tensors_that_transformers_has_no_use_for_are_kept(tmp_path):
    """Such as the layer for predicting several tokens that DeepSeek stores after the last one."""
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path)
    file = base / "model.safetensors"
    save_file(load_file(file) | {"model.layers.1.eh_proj.weight": torch.randn(32, 64)}, file, metadata={"format": "pt"})
    result = merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert changed(tmp_path / "merged", base) == set(result.changed) == {"model.layers.0.self_attn.q_proj.weight"}


def test_what_is_not_touched_keeps_its_bytes_and_precision(tmp_path):
    """Norms in float32 beside matrices in bfloat16, and shards, stay what they are."""
    base = saved(tmp_path, dtype=torch.bfloat16)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.rand(32)
    save_file(tensors, file, metadata={"format": "pt"})
    folder, _ = trained(base, tmp_path)
    result = merge(folder, Checkpoint.open(base), tmp_path / "merged", shard_size="8KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    assert changed(tmp_path / "merged", base) == {"model.layers.0.self_attn.q_proj.weight"}
    assert tensors_of(tmp_path / "merged")["model.norm.weight"].dtype == torch.float32
    assert result.worst > 1e-4


def test_the_head_that_gives_way_to_a_classifier_is_named(tmp_path):
    base = saved(tmp_path, "bert")
    folder, _ = trained(base, tmp_path, kind="bert", load_as=AutoModelForSequenceClassification, task_type="SEQ_CLS",
                        modules_to_save=["pooler", "classifier"])  # fmt: skip
    result = merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert "cls.predictions.transform.dense.weight" in result.left_out
    assert "Left out, as the adapter's class has no place for it: cls.predictions" in str(result)


def test_an_adapter_that_changes_nothing_is_not_merged(tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path, edit=lambda tensors: {key: tensor * 0 for key, tensor in tensors.items()})
    with pytest.raises(AdapterError, match="changes nothing"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("fault", ["bit", "lost", "stranger"])
def test_a_file_that_was_written_wrongly_is_found_out(fault, tmp_path, monkeypatch):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path)
    write = merged_files.write

    def badly(tensors, target, **options):
        write(tensors, target, **options)
        file = target / "model.safetensors"
        numbers = load_file(file)
        if fault == "bit":
            numbers["model.norm.weight"] = numbers["model.norm.weight"] * (1 + 1e-6)
        elif fault == "lost":
            del numbers["model.norm.weight"]
        else:
            numbers["more"] = torch.ones(1)
        save_file(numbers, file, metadata={"format": "pt"})

    monkeypatch.setattr(merged_files, "write", badly)
    with pytest.raises(AdapterError, match=r"model\.norm\.weight|more"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "adapter"}


def spoiled(tensors):
    return {key: tensor * float("nan") if "lora_B" in key else tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("settings", "edit", "reason"),
    [
        ({}, spoiled, r"NaN or infinite numbers: .*q_proj\.lora_B\.weight"),
        ({"lora_bias": True}, None, r"lora_bias.* to model\.layers\.0\.self_attn\.q_proj"),
        ({"layer_replication": [[0, 1], [0, 1]]}, None, r"layer_replication=\[\[0, 1\], \[0, 1\]\]"),
    ],
)  # fmt: skip
def test_what_pefts_merge_chokes_on_is_one_sentence(settings, edit, reason, tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path, edit=edit, **settings)
    with pytest.raises(AdapterError, match=reason):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_sum_too_large_for_the_base_is_named(tmp_path):
    base = saved(tmp_path, dtype=torch.float16)
    folder, _ = trained(base, tmp_path, edit=lambda tensors: {key: tensor * 3000 for key, tensor in tensors.items()})
    with pytest.raises(AdapterError, match=r"q_proj gives numbers that float16 cannot hold"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")


def test_a_resized_vocabulary_is_named_with_both_sizes_and_the_remedy_works(tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(
        base, tmp_path, modules_to_save=["embed_tokens", "lm_head"],
        edit=lambda tensors: {key: torch.cat([one, one[:2]]) if len(one) == 64 else one for key, one in tensors.items()},
    )  # fmt: skip
    with pytest.raises(AdapterError, match=r"lm_head and model\.embed_tokens have 66 rows in .* and 64 in .*resized"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(66)
    model.save_pretrained(tmp_path / "resized")
    merge(folder, Checkpoint.open(tmp_path / "resized"), tmp_path / "merged")
    assert tensors_of(tmp_path / "merged")["lm_head.weight"].shape == (66, 32)


def test_a_rank_that_is_not_the_files_is_named_with_both(tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path)
    configure(folder, r=16)
    with pytest.raises(AdapterError, match=r"q_proj has rank 2 in adapter_model\.safetensors and 16 in adapter_config\.json"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")


def test_an_embedding_trained_apart_from_its_tied_head_is_refused(tmp_path):
    base = saved(tmp_path, "gpt2")
    folder, _ = trained(base, tmp_path, kind="gpt2", modules_to_save=["wte"],
                        edit=lambda tensors: {key: one + 1 if "wte" in key else one for key, one in tensors.items()})  # fmt: skip
    with pytest.raises(AdapterError, match=r"trained lm_head\.weight and transformer\.wte\.weight apart"):
        merge(folder, Checkpoint.open(base), tmp_path / "merged")


def test_methods_that_scale_are_proved_too(tmp_path):
    base = saved(tmp_path)
    model = LlamaForCausalLM.from_pretrained(base)
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    assert merge(tmp_path / "ia3", Checkpoint.open(base), tmp_path / "merged").changed == (
        "model.layers.0.self_attn.k_proj.weight",
    )


def test_a_quantised_base_is_refused(tmp_path):
    base = saved(tmp_path)
    folder, _ = trained(base, tmp_path)
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(())}
    shutil.copytree(base, tmp_path / "fp8")
    save_file(tensors, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is quantised \(1 tensor: .*up_proj.*16-bit"):
        merge(folder, Checkpoint.open(tmp_path / "fp8"), tmp_path / "merged")


def test_an_account_says_what_does_not_fit():
    account = balance("the file", {"a": (2, 3), "b": (1,)}, "the model", {"a": (2, 4), "c": (5,)})
    assert (account.unplaced, account.unfilled, account.misfits) == (("b",), ("c",), {"a": ((2, 3), (2, 4))})
    with pytest.raises(AdapterError, match="a is 2x3 in the file and 2x4 in the model; mend it"):
        account.refuse("mend it")
    balance("the file", {"a": (2,)}, "the model", {"a": (2,)}).refuse("never")
