"""Training LoRA-XS as PEFT's users do: a 16-bit base, mixed precision, checkpointing, dropout, a head, transformers' Trainer."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from loraxs_core.tuner import LoraXSConfig
from tests.core.tuners import IDS, layers_of, llama, trainable


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_16_bit_base_keeps_r_in_float32(tiny_llama, tmp_path, low_cpu_mem_usage):
    model = get_peft_model(llama(tiny_llama, dtype=torch.bfloat16), LoraXSConfig(r=4, init_weights=False))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        llama(tiny_llama, dtype=torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=True
    )
    for name, layer in layers_of(again).items():
        assert layer.loraxs_R["default"].dtype == torch.float32
        assert layer.frozen("default")[0].dtype == torch.bfloat16
        assert torch.equal(layer.loraxs_R["default"], layers_of(model)[name].loraxs_R["default"])
    result = again(input_ids=IDS, labels=IDS)
    assert result.logits.dtype == torch.bfloat16
    result.loss.backward()
    assert all(layer.loraxs_R["default"].grad is not None for layer in layers_of(again).values())
    torch.testing.assert_close(again.eval()(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_mixed_precision_and_gradient_checkpointing_give_the_same_gradients(tiny_llama):
    def gradients(checkpointing: bool, autocast: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, init_weights=False)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        found = [layer.loraxs_R["default"].grad for layer in layers_of(model).values()]
        assert all(one.dtype == torch.float32 for one in found)
        return torch.cat([one.flatten() for one in found])

    plain = gradients(False, False)
    torch.testing.assert_close(gradients(True, False), plain, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(gradients(False, True), plain, rtol=0, atol=0.05 * float(plain.abs().max()))


def test_dropout_only_in_training(tiny_llama):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, dropout=0.5, init_weights=False)).eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_trained_head_is_saved_with_it(tiny_bert, tmp_path, low_cpu_mem_usage):
    def fresh():
        torch.manual_seed(3)
        return AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3).eval()

    model = get_peft_model(fresh(), LoraXSConfig(r=4, task_type="SEQ_CLS", init_weights=False)).eval()
    assert {name for name in trainable(model) if "loraxs_R" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{end}" for end in ("weight", "bias")
    }
    for parameter in model.base_model.model.classifier.modules_to_save.parameters():
        parameter.data += 1.0
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(fresh(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    native = fresh()
    native.load_adapter(tmp_path)
    torch.testing.assert_close(native(IDS).logits, model(IDS).logits, rtol=0, atol=0)


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def test_trainer_checkpoints_resume_and_the_best_model(tiny_llama, tmp_path):
    def trainer(steps: int, out: str, **extra) -> Trainer:
        torch.manual_seed(0)
        model = get_peft_model(llama(tiny_llama), LoraXSConfig(r=4, task_type="CAUSAL_LM"))
        arguments = TrainingArguments(
            tmp_path / out, max_steps=steps, save_steps=2, learning_rate=0.05, per_device_train_batch_size=4, report_to=[],
            use_cpu=True, disable_tqdm=True, logging_steps=1, **extra,
        )  # fmt: skip
        return Trainer(model, arguments, train_dataset=Tokens(), eval_dataset=Tokens())

    whole = trainer(4, "whole", eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, lr_scheduler_type="constant")
    start = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < start
    resumed = trainer(4, "resumed", lr_scheduler_type="constant")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    straight = trainer(4, "straight", lr_scheduler_type="constant")
    straight.train()
    for name, layer in layers_of(resumed.model).items():
        torch.testing.assert_close(
            layer.loraxs_R["default"], layers_of(straight.model)[name].loraxs_R["default"], rtol=1e-4, atol=1e-6
        )
    saved = {file.name for file in (tmp_path / "whole" / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= saved
    assert not any(name.startswith("model") for name in saved)
