"""Predicted sizes against files that PEFT's save_pretrained really wrote, to the byte."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from analyzers.methods import METHODS, AdapterSpec, peft_config
from analyzers.ranks import Budget, make_plan
from analyzers.storage import adapter_size
from loraxs_core.architecture import AUTO_CLASSES
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, SettingsError
from loraxs_core.targets import select_targets, target_patterns
from tests.analyzers.compare_helpers import SMALL


def tiny_configs():
    import transformers as t

    return {
        "bert": t.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
        "gpt2": t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=40, pad_token_id=0),
        "llama": t.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            pad_token_id=0,
        ),
        "t5": t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
        "opt": t.OPTConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32
        ),
        "mpnet": t.MPNetConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48),
    }


OWN_CLASS = {
    "bert": "BertModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "opt": "OPTForCausalLM",
    "mpnet": "MPNetForMaskedLM",
}
ARCHITECTURES = list(OWN_CLASS)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Checkpoint]:
    """Checkpoints on disk, one of each architecture, random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    found = {}
    for name, config in tiny_configs().items():
        folder = tmp_path_factory.mktemp(f"size_{name}")
        getattr(transformers, OWN_CLASS[name])(config).save_pretrained(folder)
        found[name] = Checkpoint.open(folder, name=name)
    return found


def written(checkpoint, config, folder, *, task=None, dtype="float32", own_class=None):
    """The files after PEFT really built and saved the adapter: name -> bytes; and the model."""
    import torch
    import transformers
    from peft import get_peft_model

    loader = getattr(transformers, own_class if task is None else AUTO_CLASSES[task])
    model = loader.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config, autocast_adapter_dtype=dtype == "float32")
        adapted.save_pretrained(folder)
    return {path.name: path.stat().st_size for path in folder.iterdir()}, adapted


def predicted(size) -> dict[str, int]:
    return {
        "adapter_model.safetensors": size.file_bytes,
        "adapter_config.json": size.config_bytes,
        "README.md": size.card_bytes,
    }


def spec_for(checkpoint, method, rank, task=None, targets="paper", modules_to_save=None, **options):
    weights = select_targets(checkpoint, targets)
    return AdapterSpec(
        method,
        target_patterns(checkpoint, weights),
        rank=rank,
        task_type=task,
        modules_to_save=modules_to_save,
        options=options,
    )


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        (one, name)
        for one in ARCHITECTURES
        for name, entry in METHODS.items()
        if entry.config and (one, name) != ("gpt2", "psoft")
    ],
)
def test_every_file_to_the_byte(tiny_models, tmp_path, architecture, method):
    checkpoint = tiny_models[architecture]
    for rank, dtype, targets in ((1, "float32", "paper"), (8, "bfloat16", "paper"), (11, "float32", "all-linear")):
        # PEFT's methods save what they train in; LoRA-XS trains R in float32 and saves it as asked
        small = SMALL.get(method, {})
        own = {"save_dtype": dtype} if METHODS[method].is_loraxs else small
        config = peft_config(spec_for(checkpoint, method, rank, targets=targets, **own))
        real, adapted = written(checkpoint, config, tmp_path / f"{rank}", dtype=dtype, own_class=OWN_CLASS[architecture])
        size = adapter_size(checkpoint, method, rank=rank, dtype=dtype, targets=targets, options=small)
        assert predicted(size) == real, (rank, dtype)
        assert size.folder_bytes == sum(real.values())
        assert size.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.config])
def test_in_float16_t5_keeps_some_modules_in_float32_and_peft_follows(tiny_models, tmp_path, method):
    checkpoint = tiny_models["t5"]
    own = {"save_dtype": "float16"} if METHODS[method].is_loraxs else SMALL.get(method, {})
    for targets, whole in (("all-linear", None), ("q,v", ["wo"])):
        config = peft_config(spec_for(checkpoint, method, 5, targets=targets, modules_to_save=whole, **own))
        real, _ = written(checkpoint, config, tmp_path / targets, dtype="float16", own_class=OWN_CLASS["t5"])
        given = {"rank": 5, "dtype": "float16", "targets": targets, "options": SMALL.get(method)}
        size = adapter_size(checkpoint, method, modules_to_save=whole or (), **given)
        assert predicted(size) == real, targets


def test_a_full_copy_needs_no_layer_that_an_adapter_could_go_on(tmp_path):
    """Mamba has neither attention nor an MLP, but projections; a matrix of no known role is nothing to adapt."""
    import transformers as t

    config = t.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    t.MambaForCausalLM(config).save_pretrained(tmp_path)
    size = adapter_size(Checkpoint.open(tmp_path), "full")
    assert size.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert size.ranks == {}
    ranks = adapter_size(Checkpoint.open(tmp_path), "lora-xs", rank=2).ranks
    assert {name.rpartition(".")[2] for name in ranks} == {"in_proj", "x_proj"}
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file({"strange.weight": np.ones((8, 4), np.float32)}, bare / "model.safetensors")
    with pytest.raises(CheckpointError, match="no attention or MLP layer"):
        adapter_size(Checkpoint.open(bare), "lora-xs")


def test_a_full_copy_in_float16_to_the_byte(tiny_models, tmp_path):
    import torch
    import transformers

    for architecture in ("t5", "llama"):
        checkpoint = tiny_models[architecture]
        loader = getattr(transformers, OWN_CLASS[architecture])
        loader.from_pretrained(checkpoint.folder, dtype=torch.float16).save_pretrained(tmp_path / architecture)
        saved = (tmp_path / architecture / "model.safetensors").stat().st_size
        assert adapter_size(checkpoint, "full", dtype="float16").file_bytes == saved


@pytest.mark.parametrize("method", ["lora", "lora-xs"])
def test_a_mixture_of_experts_to_the_byte(tmp_path, method):
    """PEFT writes down a list of fused parameters for it, empty where no expert has an adapter."""
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        num_local_experts=4,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    real, _ = written(
        checkpoint, peft_config(spec_for(checkpoint, method, 3)), tmp_path / "adapter", own_class="MixtralForCausalLM"
    )
    assert predicted(adapter_size(checkpoint, method, rank=3)) == real


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.config])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_with_a_classifier_to_the_byte(tiny_models, tmp_path, architecture, method):
    checkpoint = tiny_models[architecture]
    for rank in (2, 8):
        options = SMALL.get(method, {})
        config = peft_config(spec_for(checkpoint, method, rank, task="SEQ_CLS", **options))
        real, adapted = written(checkpoint, config, tmp_path / f"{rank}", task="SEQ_CLS")
        size = adapter_size(checkpoint, method, rank=rank, task="sequence-classification", options=options)
        assert predicted(size) == real, rank
        assert size.trainable + size.head_parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["lora", "vera", "lora-xs"])
@pytest.mark.parametrize(("architecture", "task", "extra"), [("gpt2", "CAUSAL_LM", "wte"), ("bert", "TOKEN_CLS", "LayerNorm")])
def test_modules_to_save_to_the_byte(tiny_models, tmp_path, architecture, task, extra, method):
    checkpoint = tiny_models[architecture]
    config = peft_config(spec_for(checkpoint, method, 4, task=task, modules_to_save=[extra]))
    real, _ = written(checkpoint, config, tmp_path, task=task)
    assert predicted(adapter_size(checkpoint, method, rank=4, task=task, modules_to_save=[extra])) == real


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_seeded_projections_of_vera_are_not_written(tiny_models, tmp_path, architecture):
    checkpoint = tiny_models[architecture]
    config = peft_config(spec_for(checkpoint, "vera", 16, save_projection=False))
    real, _ = written(checkpoint, config, tmp_path, own_class=OWN_CLASS[architecture])
    size = adapter_size(checkpoint, "vera", rank=16, options={"save_projection": False})
    assert predicted(size) == real
    assert adapter_size(checkpoint, "vera", rank=16).data_bytes - size.data_bytes == size.shared_bytes


@pytest.mark.parametrize("method", ["lora", "dora", "lora-xs"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rank_plans_to_the_byte(tiny_models, tmp_path, architecture, method):
    checkpoint = tiny_models[architecture]
    plan = make_plan(checkpoint, "role", budget=Budget.parameters(700), targets="all-linear")
    config = peft_config(plan.spec(method))
    real, _ = written(checkpoint, config, tmp_path, own_class=OWN_CLASS[architecture])
    assert predicted(adapter_size(checkpoint, method, plan=plan)) == real


def test_a_full_copy_and_a_head_to_the_byte(tiny_models, tmp_path):
    import torch
    import transformers
    from safetensors.torch import save_file

    for architecture, checkpoint in tiny_models.items():
        saved = (checkpoint.folder / "model.safetensors").stat().st_size
        assert adapter_size(checkpoint, "full").file_bytes == saved, architecture
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_models["bert"].folder, dtype=torch.float32)
    head = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("classifier.")}
    save_file(head, tmp_path / "head.safetensors", metadata={"format": "pt"})
    size = adapter_size(tiny_models["bert"], "head-only", task="sequence-classification")
    assert size.file_bytes == (tmp_path / "head.safetensors").stat().st_size
    assert size.head_parameters == 32 * 2 + 2


def test_what_peft_cannot_build_has_no_size(tiny_models):
    with pytest.raises(SettingsError, match=r"cannot lay out psoft on transformer\.h\.0\.attn\.c_attn: it is a Conv1D"):
        adapter_size(tiny_models["gpt2"], "psoft", rank=4)


@pytest.mark.parametrize("method", ["lora", "vera", "lora-xs"])
def test_layers_of_two_digits_are_written_in_the_order_of_their_names(tmp_path, method):
    import transformers

    config = tiny_configs()["llama"]
    config.num_hidden_layers = 12
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    real, _ = written(
        checkpoint, peft_config(spec_for(checkpoint, method, 3)), tmp_path / "adapter", own_class="LlamaForCausalLM"
    )
    assert predicted(adapter_size(checkpoint, method, rank=3)) == real


def test_a_head_keeps_the_precision_of_the_base(tiny_models, tmp_path):
    import torch
    import transformers
    from peft import get_peft_model

    checkpoint = tiny_models["bert"]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint.folder, dtype=torch.bfloat16)
    get_peft_model(base, peft_config(spec_for(checkpoint, "lora", 4, task="SEQ_CLS"))).save_pretrained(tmp_path)
    size = adapter_size(checkpoint, "lora", rank=4, task="SEQ_CLS", head_dtype="bfloat16")
    assert size.file_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *[("tinylora", {"weight_tying": tied}) for tied in (0.1, 0.5, 0.7, 1.0)],
        ("tinylora", {"u": 3, "save_projection": False}),
        ("psoft", {"psoft_orth": False}),
        ("psoft", {"psoft_mag_a": False, "psoft_mag_b": False}),
        ("vera", {"save_projection": False}),
    ],
)
def test_the_rules_know_the_options_that_change_tensors(tiny_models, method, options):
    """The rule that answers at once against PEFT itself, which built the adapter on the meta device."""
    from analyzers.storage.tensors import _Question, _traced

    checkpoint = tiny_models["llama"]
    assert set(options) <= METHODS[method].written_options
    size = adapter_size(checkpoint, method, rank=5, options=options)
    traced = _traced(_Question(f"{method} {options}", checkpoint, spec_for(checkpoint, method, 5, **options), "float32", None))
    assert size.tensors == len(traced.tensors)
    assert size.saved == sum(tensor.numbers for tensor in traced.tensors.values())
    assert sorted(one.shape for one in size.trained_tensors) == sorted(one.shape for one in traced.trained)
    assert size.shared == traced.shared


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.config])
def test_a_slider_gets_its_answer_within_a_second(method):
    import time

    from sample_models import open_model

    checkpoint = open_model("llama-3-8b")
    adapter_size(checkpoint, method, rank=3)  # imports, and the model's own names
    began = time.process_time()  # of this process alone: what else the machine does is no part of the answer
    adapter_size(checkpoint, method, rank=4)
    assert time.process_time() - began < 1
