"""The options of a training step: all that `MemorySettings` knows, the same for every verb, and the way back into words."""

import shlex
from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from analyzers.memory import MemorySettings
from app.options.training_step import TrainingStep, takes_training_step, words

EVERYTHING = {
    "rank": 4, "targets": "q_proj,v_proj", "batch": 3, "sequence": 77, "padding": False, "base_dtype": "fp16", "adapter_dtype": "bf16",
    "mixed_precision": True, "gradient_checkpointing": True, "gradient_accumulation": 2, "quantize": "4bit",
    "double_quantization": False, "optimizer": "sgd", "dropout": 0.1, "task": "causal-lm", "labels": 5, "attention": "eager",
    "keep_logits": True, "use_cache": True, "gpus": 2, "sharding": "zero3", "full_trace": True, "trust_remote_code": True,
    "padding_free": True, "kbit_prepared": True, "loss": "liger", "empty_cache": True, "expandable_segments": True,
    "offload_optimizer": True, "offload_activations": True, "reentrant_checkpointing": True, "transformers_version": "4.48",
    "torch_version": "2.4", "optim_args": "momentum=0.9", "optim_target_modules": ["q_proj", "v_proj"], "preference": "dpo",
    "eval_batch": 4, "eval_predictions": 12,
}  # fmt: skip


def parsed(said: str, method: str = "lora-xs") -> MemorySettings:
    """What a verb makes of the options."""
    found = []
    app = typer.Typer()

    @app.command()
    @takes_training_step
    def verb(step: TrainingStep) -> None:
        found.append(step.settings(method))

    answer = CliRunner().invoke(app, shlex.split(said), catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return found[0]


def test_every_setting_has_an_option_but_the_method_and_options_of_peft():
    known = {field.name for field in fields(MemorySettings)}
    assert {field.name for field in fields(TrainingStep)} == known - {"method", "options"} | {"trainer"}
    assert set(EVERYTHING) == known - {"method", "options", "plan", "peft_config"}


def test_options_left_out_are_the_defaults_of_the_settings():
    assert parsed("") == MemorySettings()


def test_another_trainers_defaults_hold_for_what_is_left_out_and_for_nothing_else():
    assert parsed("--trainer sft") == MemorySettings.preset("sft", method="lora-xs")
    assert parsed("--trainer sft --no-checkpointing --base-dtype bf16 --sequence 64") == MemorySettings.preset(
        "sft", gradient_checkpointing=False, base_dtype="bf16", sequence=64
    )


def test_a_file_of_peft_is_read(tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text('{"peft_type": "LOHA", "r": 4, "target_modules": ["q_proj"]}')
    assert parsed(f"--peft-config {file}") == parsed(f"--peft-config {tmp_path}")
    assert parsed(f"--peft-config {file}").peft_config["r"] == 4


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_setting_survives_being_said(name):
    goes_with = {"sharding": {"gpus": 2}, "preference": {"loss": "trl"}, "eval_predictions": {"eval_batch": 4}}
    asked = {name: EVERYTHING[name]} | goes_with.get(name, {})
    assert getattr(MemorySettings(), name) != EVERYTHING[name]  # or leaving it out would pass too
    assert parsed(words(asked)) == MemorySettings(**asked)


def test_all_of_them_together():
    together = {name: value for name, value in EVERYTHING.items() if name != "preference"}  # pairs are padded
    assert parsed(words(together)) == MemorySettings(**together)
    assert parsed(words({"padding": True})).padding is True


def test_what_has_no_meaning_is_not_shown_as_filled_in():
    full, adapter = (MemorySettings.preset("sft", method=name) for name in ("full", "lora"))
    assert "adapter_dtype" not in TrainingStep().filled(full)
    assert TrainingStep().filled(adapter)["adapter_dtype"] == adapter.adapter_dtype
    assert "preference" not in TrainingStep().filled(adapter)


@pytest.mark.parametrize("verb", ["memory", "fit"])
def test_both_verbs_have_them_all(verb):
    from typer.main import get_command

    from app.cli import app

    offered = {parameter.name for parameter in get_command(app).commands[verb].params}
    assert {field.name for field in fields(TrainingStep)} <= offered
