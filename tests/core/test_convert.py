"""Into LoRA-XS from LoRA and full fine-tunes, out to plain LoRA and plain weights: always against stock PEFT and plain NumPy."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from loraxs_core.bases import bases
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.convert import convert
from loraxs_core.errors import AdapterError, SettingsError, WorkbenchError
from loraxs_core.export import export_lora
from loraxs_core.loading import AdapterFolder, load_adapter
from loraxs_core.merging import merge
from loraxs_core.targets import select_targets
from loraxs_core.tuner import LoraXSConfig
from loraxs_core.tuner.folder import verify_adapter

TOKENS = torch.arange(2, 26).reshape(2, 12) % 60


def classifier(folder, labels=3):
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)


def trained(model, config, folder, steps=8):
    """A really trained adapter, saved by PEFT."""
    torch.manual_seed(2)
    adapted = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    labels = torch.tensor([0, 1])
    for _ in range(steps):
        if config.task_type == "CAUSAL_LM":
            loss = adapted(input_ids=TOKENS, labels=TOKENS).loss
        else:
            loss = adapted(input_ids=TOKENS, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval().save_pretrained(folder)
    return adapted


@pytest.fixture(scope="module")
def lora(tiny_bert, tmp_path_factory):
    """A LoRA of several ranks with a trained head, on the tiny BERT."""
    folder = tmp_path_factory.mktemp("lora")
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        rank_pattern={"layer.0.output.dense": 6},
        alpha_pattern={"layer.0.output.dense": 3},
        target_modules=["query", "value", "output.dense"],
        task_type="SEQ_CLS",
    )
    trained(classifier(tiny_bert), config, folder)
    return folder


@pytest.fixture(scope="module")
def lora_xs(tiny_bert, tmp_path_factory):
    """A LoRA-XS of several ranks with a trained head, on the tiny BERT."""
    folder = tmp_path_factory.mktemp("lora_xs")
    config = LoraXSConfig(
        r=4,
        alpha=8,
        rank_pattern={"encoder.layer.1.output.dense": 7},
        target_modules=["query", "output.dense"],
        task_type="SEQ_CLS",
    )
    trained(classifier(tiny_bert), config, folder)
    return folder


def deltas_of(model) -> dict[str, np.ndarray]:
    return {
        name: layer.get_delta_weight("default").detach().double().numpy()
        for name, layer in model.base_model.model.named_modules()
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer") and hasattr(layer, "scaling")
    }


def test_a_converted_lora_is_the_least_squares_optimum(tiny_bert, lora, tmp_path):
    base = Checkpoint.open(tiny_bert)
    result = convert(lora, base, rank=5, out=tmp_path / "xs")
    stock = deltas_of(PeftModel.from_pretrained(classifier(tiny_bert), lora))
    ours = deltas_of(PeftModel.from_pretrained(classifier(tiny_bert), tmp_path / "xs"))
    assert stock.keys() == ours.keys()
    for projection in result.projections:
        name = next(name for name in stock if name.endswith(projection.name))
        delta = stock[name]
        assert projection.norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        A, B = bases(base.read(base.weight(projection.name)), 5).pair()
        # The normal equations, solved without using that B and V are orthonormal.
        left = np.linalg.lstsq(B.astype(float), delta, rcond=None)[0]
        R = np.linalg.lstsq(A.T.astype(float), left.T, rcond=None)[0].T
        np.testing.assert_allclose(ours[name], B @ R @ A, atol=1e-5 * np.linalg.norm(delta))
        kept = np.linalg.norm(ours[name]) ** 2 / np.linalg.norm(delta) ** 2
        assert projection.kept_at_rank == pytest.approx(kept, rel=1e-3)
        values = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(projection.best, np.cumsum(values**2) / np.sum(values**2), atol=1e-6)
        assert (projection.kept <= projection.best + 1e-9).all()
        assert (np.diff(projection.kept) >= -1e-12).all()


def test_full_rank_converts_square_weights_without_loss_and_keeps_the_head(tiny_bert, tmp_path):
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    stock = trained(classifier(tiny_bert), config, tmp_path / "lora")(input_ids=TOKENS).logits
    base = Checkpoint.open(tiny_bert)
    result = convert(tmp_path / "lora", base, energy=1.0, out=tmp_path / "xs")
    assert result.kept == pytest.approx(1.0, abs=1e-6)
    ours = load_adapter(AdapterFolder(tmp_path / "xs"), base)(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, stock, atol=2e-4, rtol=1e-3)


def test_a_wide_weight_cannot_hold_everything_and_says_so(tiny_bert, lora):
    """Of a 32 x 64 weight the bases span 32 input directions; what ΔW does in the other 32 no rank can keep."""
    base = Checkpoint.open(tiny_bert)
    result = convert(lora, base, energy=0.99)
    short = {projection.name for projection in result.projections if projection.kept_at_rank < 0.99}
    assert short == set(result.out_of_reach(0.99))
    assert short == {f"encoder.layer.{layer}.output.dense" for layer in (0, 1)}


def test_energy_takes_the_smallest_rank_that_is_enough(tiny_bert, lora):
    base = Checkpoint.open(tiny_bert)
    for projection in convert(lora, base, energy=0.3).projections:
        assert projection.kept_at_rank >= 0.3
        assert projection.rank == 1 or projection.kept[projection.rank - 2] < 0.3


def test_a_real_full_fine_tune_is_projected(minilm, tmp_path):
    from sample_models import open_model

    tuned = open_model("minilm-sre")
    weights = select_targets(minilm, "layer.0.attention.output.dense,layer.0.output.dense")
    result = convert(tuned, minilm, rank=32, targets="layer.0.attention.output.dense,layer.0.output.dense", out=tmp_path / "xs")
    assert all(check.ok for check in verify_adapter(tmp_path / "xs", minilm))
    for projection, weight in zip(result.projections, weights, strict=True):
        base = minilm.read(weight).astype(float)
        delta = tuned.read(tuned.weight(weight.name)).astype(float) - base
        assert 0.005 < projection.norm / np.linalg.norm(base) < 0.05
        U, _, Vt = np.linalg.svd(base, full_matrices=False)
        kept = np.linalg.norm(U[:, :32].T @ delta @ Vt[:32].T) ** 2 / np.linalg.norm(delta) ** 2
        assert projection.kept[31] == pytest.approx(kept, rel=1e-4)
    kept, best = result.curve()
    assert (kept <= best).all()
    assert 0 < result.kept < result.best < 1


@pytest.mark.parametrize("uniform_rank", [False, True])
def test_an_exported_lora_gives_the_same_logits_through_stock_peft(tiny_bert, lora_xs, tmp_path, uniform_rank):
    base = Checkpoint.open(tiny_bert)
    ours = load_adapter(AdapterFolder(lora_xs), base)(input_ids=TOKENS).logits
    folder = export_lora(lora_xs, base, tmp_path / "lora", uniform_rank=uniform_rank)
    plain = PeftModel.from_pretrained(classifier(tiny_bert), folder).eval()
    torch.testing.assert_close(plain(input_ids=TOKENS).logits, ours, atol=1e-5, rtol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    ranks = {entry.shape[0] for name, entry in AdapterFolder(folder).file.entries.items() if "lora_A" in name}
    assert ranks == ({7} if uniform_rank else {4, 7})
    if uniform_rank:
        assert config["r"] == config["lora_alpha"] == 7
        assert not config["rank_pattern"]


def test_an_exported_lora_on_conv1d_gives_the_same_logits(tiny_gpt2, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    adapted = trained(model, LoraXSConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM"), tmp_path / "xs")
    expected = adapted(input_ids=TOKENS).logits
    base = Checkpoint.open(tiny_gpt2)
    export_lora(tmp_path / "xs", base, tmp_path / "lora")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_gpt2), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(input_ids=TOKENS).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_merged_checkpoint_is_plain_and_gives_the_same_logits(tiny_bert, lora_xs, tmp_path):
    source = tmp_path / "base"
    shutil.copytree(tiny_bert, source)
    (source / "tokenizer.json").write_text("{}")
    base = Checkpoint.open(source)
    ours = load_adapter(AdapterFolder(lora_xs), base)(input_ids=TOKENS).logits
    result = merge(lora_xs, base, tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(input_ids=TOKENS).logits, ours, atol=1e-5, rtol=1e-5)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert set(Checkpoint.open(tmp_path / "merged").files) >= {"bert.encoder.layer.0.output.dense.weight", "classifier.weight"}
    assert len(result.rounding) == 6
    assert result.worst < 1e-4


def test_merging_into_16_bits_reports_the_rounding(tiny_bert, lora_xs, tmp_path):
    half = tmp_path / "half"
    classifier(tiny_bert).to(torch.bfloat16).base_model.save_pretrained(half)
    base = Checkpoint.open(half)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(half, num_labels=3, dtype="auto"),
        LoraXSConfig(r=4, target_modules=["query"], init_weights=False, task_type="SEQ_CLS"),
    )
    model.save_pretrained(tmp_path / "xs")
    result = merge(tmp_path / "xs", base, tmp_path / "merged")
    assert 1e-4 < result.worst < 1


def test_merging_into_a_tied_weight_is_refused(tiny_gpt2, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    get_peft_model(model, LoraConfig(r=2, target_modules=["wte"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "lora")
    with pytest.raises(AdapterError, match="tied to lm_head"):
        merge(tmp_path / "lora", Checkpoint.open(tiny_gpt2), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def edited(folder, tmp_path, **changes):
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "adapter_config.json").read_text()) | changes
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base weights"),
        ({"peft_type": "VERA"}, "VERA adapter"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(tiny_bert, lora, tmp_path, changes, reason):
    with pytest.raises(WorkbenchError, match=reason):
        convert(edited(lora, tmp_path, **changes), Checkpoint.open(tiny_bert), rank=2)


def test_an_adapter_for_another_base_is_refused(tiny_llama, lora):
    with pytest.raises(AdapterError, match="does not have"):
        convert(lora, Checkpoint.open(tiny_llama), rank=2)


def test_bad_settings_are_one_sentence(tiny_bert, lora, tmp_path):
    base = Checkpoint.open(tiny_bert)
    for settings in ({}, {"rank": 4, "energy": 0.9}, {"rank": 0}, {"energy": 1.5}):
        with pytest.raises(SettingsError):
            convert(lora, base, **settings)
    with pytest.raises(AdapterError, match="no adapter folder"):
        AdapterFolder(tmp_path / "absent")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="peft_type"):
        AdapterFolder(tmp_path)
    with pytest.raises(AdapterError, match="only LoRA-XS"):
        export_lora(lora, base, tmp_path / "out")


def adapter_of(folder, tmp_path, name="lora", **settings):
    """A LoRA of a causal model with numbers that are not zero."""
    torch.manual_seed(1)
    config = LoraConfig(**({"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings))
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if any(one in key for one in ("lora_B", "lora_embedding_A", "token_adapter")):
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"LoRA on an embedding \(model\.embed_tokens"),
        ({"lora_bias": True}, r"biases of LoRA's own \(lora_bias\) \(model\.layers\.0\.self_attn\.q_proj\.lora_B\.bias and"),
        ({"trainable_token_indices": [3, 5]}, r"trained tokens \(trainable_token_indices\) \(model\.embed_tokens"),
        ({"layer_replication": [[0, 2], [0, 2]]}, r"repeats layers"),
    ],
)  # fmt: skip
def test_a_part_that_a_lora_xs_adapter_cannot_hold_is_named(tiny_llama, tmp_path, settings, reason):
    with pytest.raises(AdapterError, match=reason):
        convert(adapter_of(tiny_llama, tmp_path, **settings), Checkpoint.open(tiny_llama), rank=2, out=tmp_path / "xs")
    assert not (tmp_path / "xs").exists()


def test_modules_saved_whole_go_along_and_are_named(tiny_llama, tmp_path):
    lora = adapter_of(tiny_llama, tmp_path, modules_to_save=["lm_head"])
    result = convert(lora, Checkpoint.open(tiny_llama), rank=2, out=tmp_path / "xs")
    assert result.whole == ("lm_head.weight",)
    assert "Carried along whole: lm_head.weight." in result.remarks()
    assert AdapterFolder(tmp_path / "xs").heads.keys() == {"lm_head.weight"}


def test_a_lora_with_wrappers_in_its_names_converts_to_the_same_adapter(tiny_llama, tmp_path):
    base = Checkpoint.open(tiny_llama)
    lora = adapter_of(tiny_llama, tmp_path)
    convert(lora, base, rank=4, out=tmp_path / "xs")
    file = lora / "adapter_model.safetensors"
    save_file({f"_orig_mod.{key.removeprefix('base_model.model.')}": one for key, one in load_file(file).items()}, file)
    convert(lora, base, rank=4, out=tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("xs", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_lora_that_is_there_in_part_or_for_another_vocabulary_is_not_converted(tiny_llama, tmp_path):
    base = Checkpoint.open(tiny_llama)
    lora = adapter_of(tiny_llama, tmp_path, target_modules=["q_proj", "v_proj"])
    file = lora / "adapter_model.safetensors"
    save_file({key: one for key, one in load_file(file).items() if "q_proj" in key}, file)
    with pytest.raises(AdapterError, match=r"tensors of .* are not in .*v_proj"):
        convert(lora, base, rank=2)
    lora = adapter_of(tiny_llama, tmp_path, "resized", modules_to_save=["embed_tokens", "lm_head"])
    file = lora / "adapter_model.safetensors"
    rows = base.weight("lm_head").shape[0]
    save_file({key: torch.cat([one, one[:2]]) if len(one) == rows else one for key, one in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match=rf"have {rows + 2} rows in .* and {rows} in .*resize"):
        convert(lora, base, rank=2)


def test_a_full_fine_tune_keeps_its_class_and_says_what_it_cannot_hold(tiny_llama, tmp_path):
    base = Checkpoint.open(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    torch.manual_seed(5)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.add_(
            torch.randn_like(model.model.layers[0].self_attn.q_proj.weight) * 0.001
        )
        model.model.norm.weight.add_(0.5)
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight) * 0.3)
    model.save_pretrained(tmp_path / "tuned")
    result = convert(Checkpoint.open(tmp_path / "tuned"), base, energy=1.0, out=tmp_path / "xs")
    assert result.kept == pytest.approx(1.0, abs=1e-6)
    moved = {one.name: one for one in result.left_out}
    assert {name: one.kind for name, one in moved.items()} == {"lm_head": "head", "model.norm.weight": "norm"}
    for name, one in moved.items():
        old = before[f"{name.removesuffix('.weight')}.weight"]
        delta = (model.state_dict()[f"{name.removesuffix('.weight')}.weight"] - old).norm()
        assert one.norm == pytest.approx(float(delta), rel=1e-5)
        assert one.moved == pytest.approx(float(delta / old.norm()), rel=1e-5)
    assert result.kept_of_everything < 0.01
    (said,) = result.remarks()
    assert "1 head (lm_head by" in said
    assert "1 norm (model.norm.weight by" in said
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "xs")
    merge(tmp_path / "xs", base, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(
        merged["model.layers.0.self_attn.q_proj.weight"],
        model.model.layers[0].self_attn.q_proj.weight.detach(),
        atol=1e-6,
        rtol=1e-5,
    )
    assert torch.equal(merged["lm_head.weight"], before["lm_head.weight"])


def test_a_fine_tuned_classifier_takes_its_head_along(tiny_bert, tmp_path):
    """From a base without that head, whose pooler it also brings; what comes out is the classifier but for what is named."""
    model = classifier(tiny_bert).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        weight = model.base_model.encoder.layer[0].attention.self.query.weight
        weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(tmp_path / "tuned")
    base = Checkpoint.open(tiny_bert)
    result = convert(Checkpoint.open(tmp_path / "tuned"), base, energy=1.0, out=tmp_path / "xs")
    assert {"classifier.weight", "classifier.bias"} <= set(result.whole)
    assert not result.left_out
    ours = load_adapter(AdapterFolder(tmp_path / "xs"), base)(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, model(input_ids=TOKENS).logits, atol=1e-4, rtol=1e-3)
