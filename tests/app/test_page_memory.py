"""Cost, GPU memory: figures, settings, what decides, what fits, and the command that gives the same."""

from __future__ import annotations

import ast
import json
import re
import shlex

import pytest

from analyzers.methods import METHODS
from app.views.cost import MEMORY
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import healthy, page, texts
from tests.remote_model import own_modules, write_remote_model

pytestmark = pytest.mark.usefixtures("fresh_page")


def memory(model, **session):
    """The Cost page with its half about memory in front."""
    return page(model, "cost", **{"cost-tab": MEMORY, **session})


def test_memory_is_broken_down_for_every_method(tiny_bert):
    test = healthy(memory(tiny_bert))
    peaks = [metric for metric in test.metric if "peak reserved" in metric.label]
    assert len(peaks) == 3
    assert all(re.fullmatch(r"\d+ MiB", metric.value) for metric in peaks)  # small ones are no "0.00 GiB"
    assert all(re.fullmatch(r"\d+ MiB to \d+ MiB", metric.delta) for metric in peaks)


def test_what_decides_about_memory_is_said_in_the_analyzer_s_words(tiny_bert):
    from analyzers.memory import MemorySettings, what_decides

    said = texts(healthy(memory(tiny_bert, **{"rank-lora-xs": 4})))
    settings = MemorySettings(method="lora-xs", rank=4, batch=8, sequence=40)
    beside = settings.but(method="lora", rank=8)  # what is shown next to it
    for sentence in what_decides(Checkpoint.open(tiny_bert), settings, rival=beside):
        assert sentence in said


def test_what_fits_a_gpu_is_searched_when_asked(tiny_llama):
    from analyzers.memory import MemorySettings, find_gpu, fit

    test = healthy(memory(tiny_llama, **{"rank-lora-xs": 4, "fit-gpu": "T4 16 GB"}))
    assert not [table for table in test.dataframe if "length limited by" in table.value]
    test.button(key="fit").click().run()
    table = healthy(test).dataframe[-1].value.set_index("method")
    assert set(table.index) == {"LoRA", "VeRA", "LoRA-XS", "Full fine-tune"}
    settings = MemorySettings(method="lora-xs", rank=4, batch=8, sequence=64)
    exact = fit(Checkpoint.open(tiny_llama), settings, find_gpu("T4 16 GB"))
    assert table.loc["LoRA-XS", "largest batch of 64 tokens"] == exact.batch > 0
    assert table.loc["LoRA-XS", "longest sequence at batch 8 (tokens)"] == exact.sequence == 64
    assert table.loc["LoRA-XS", "length limited by"] == "the model's positions"
    command = next(code.value for code in test.code if code.value.startswith("loraxs fit"))
    assert f"loraxs fit {tiny_llama} --gpu 'T4 16 GB' --methods lora-xs --rank 4 --batch 8 --sequence 64" in command


def test_what_does_not_fit_is_said_as_the_command_says_it(monkeypatch, tiny_llama):
    """In the table and in its CSV, where a 0 stood for it."""
    from analyzers.memory import Fit
    from app import components
    from app.panels import what_fits

    downloads = {}
    monkeypatch.setattr(components, "download_csv", lambda frame, name, *, key: downloads.update({name: frame}))
    monkeypatch.setattr(what_fits, "fit", lambda _, settings, gpu: Fit(gpu, settings.method, 3, 0, None, None))
    test = memory(tiny_llama, **{"rank-lora-xs": 4})
    test.button(key="fit").click().run()
    batch, sequence = "largest batch of 64 tokens", "longest sequence at batch 8 (tokens)"
    shown = healthy(test).dataframe[-1]
    assert set(shown.value[batch]) == {3}  # numbers, which sort as such
    assert set(shown.value[sequence]) == {0}
    assert b"none fits" in shown.proto.SerializeToString()
    assert set(downloads["fit.csv"][sequence]) == {"none fits"}
    assert set(downloads["fit.csv"][batch]) == {"3"}


def test_an_unknown_gpu_is_one_sentence(tiny_bert):
    test = memory(tiny_bert, **{"fit-gpu": "abacus"})
    assert not test.exception
    assert "No GPU is called 'abacus'" in test.error[0].value


MORE = {
    "batch": 2, "sequence": 32, "padding": "no", "attention": "eager", "accumulation": 2, "dropout": 0.1, "mixed-precision": True,
    "keep-logits": True, "use-cache": True, "full-trace": True, "quantize": "4bit", "double-quantization": False, "gpus": 4,
    "sharding": "zero2", "checkpointing": True, "optimizer": "sgd", "base-dtype": "fp32", "memory-task": "causal-lm",
    "adapter-dtype": "bf16", "rank-lora-xs": 4, "rank-lora": 2,
}  # fmt: skip


def code(test, begins: str) -> str:
    return next(block.value for block in test.code if block.value.startswith(begins))


def test_command_and_python_give_what_is_on_screen(tiny_llama, capsys):
    """Whatever was set, the everyday and the further settings alike."""
    from typer.testing import CliRunner

    from app.cli import app
    from app.units import gib_text

    test = healthy(memory(tiny_llama, **MORE))
    shown = {metric.label: metric.value for metric in test.metric if "peak reserved" in metric.label}
    lines = code(test, "loraxs memory").splitlines()
    assert [line.split(" --method ")[1].split()[0] for line in lines] == ["lora", "vera", "lora-xs"]
    for line in lines:
        answer = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json"], catch_exceptions=False)
        peak = json.loads(answer.stdout)["peak_reserved_gib"]
        label = METHODS[shlex.split(line)[4]].label
        assert shown[f"{label}: peak reserved"] == gib_text(peak * 2**30)
    names: dict = {}
    exec(compile(code(test, "from analyzers.memory import MemorySettings, estimate_memory"), "snippet", "exec"), names)
    step = names["settings"]
    assert (step.padding, step.attention, step.gpus, step.sharding) == (False, "eager", 4, "zero2")
    assert (step.gradient_accumulation, step.dropout, step.double_quantization, step.full_trace) == (2, 0.1, False, True)
    printed = capsys.readouterr().out
    assert all(method in printed for method in names["methods"])
    said = texts(test)
    sentences = ast.literal_eval(printed.splitlines()[-1])
    assert len(sentences) == 3
    assert all(sentence in said for sentence in sentences)


def test_questions_without_a_meaning_are_not_asked(tiny_bert, tiny_llama):
    keys = {widget.key for widget in (*memory(tiny_llama).selectbox, *memory(tiny_llama).number_input)}
    assert {"padding", "attention", "gpus"} <= keys
    assert not {"sharding", "labels"} & keys
    classifier = memory(tiny_bert, gpus=2)
    assert classifier.number_input(key="labels").value == 2
    assert classifier.selectbox(key="sharding").value == "ddp"


def test_every_box_shows_what_is_chosen_even_the_usual(tiny_llama):
    """Streamlit shows a chosen None as "Choose an option", from the second run on."""
    boxes = memory(tiny_llama).run().selectbox
    assert len(boxes) > 6
    assert not [box.key for box in boxes if box.value is None]


def test_the_optimizers_arguments_and_an_evaluation_can_be_asked(tiny_llama):
    plain = healthy(memory(tiny_llama, **{"optimizer": "sgd", "memory-methods": ["full"], "sequence": 32}))
    asked = {"optimizer": "sgd", "optim-args": "momentum=0.9", "eval-batch": 64, "eval-predictions": 512}
    test = healthy(memory(tiny_llama, **asked, **{"memory-methods": ["full"], "sequence": 32}))
    peaks = [next(one.value for one in shown.metric if "peak reserved" in one.label) for shown in (plain, test)]
    assert peaks[0] != peaks[1]
    line = code(test, "loraxs memory")
    assert all(said in line for said in ("--optim-args momentum=0.9", "--eval-batch 64", "--eval-predictions 512"))
    wrong = memory(tiny_llama, **{"optimizer": "sgd", "optim-args": "momentum=much", "memory-methods": ["full"]})
    assert "the momentum in optim args must be a number of at least 0, not 'much'" in texts(wrong)
    assert not wrong.exception


def test_further_methods_take_the_shared_rank_or_their_own(tiny_llama):
    chosen = ["full", "lora-xs", "ia3", "dora"]
    test = healthy(memory(tiny_llama, **{"memory-methods": chosen, "rank-lora-xs": 4}))
    labels = [metric.label for metric in test.metric if "peak reserved" in metric.label]
    assert labels == [f"{METHODS[name].label}: peak reserved" for name in ("lora-xs", "full", "dora", "ia3")]
    command = code(test, "loraxs memory")
    assert "--method dora --rank 8" in command
    assert "--method ia3 --batch" in command
    test.number_input(key="memory-rank").set_value(3).run()
    assert "--method dora --rank 3" in code(healthy(test), "loraxs memory")


def test_what_one_method_cannot_do_leaves_the_others(tiny_llama):
    test = memory(tiny_llama, **{"memory-methods": ["full", "lora-xs"], "rank-lora-xs": 4, "quantize": "4bit"})
    assert not test.exception
    assert [box.value for box in test.error] == [
        "A quantised base cannot be trained in full; choose an adapter method or leave quantize out."
    ]
    assert [metric.label for metric in test.metric if "peak" in metric.label] == ["LoRA-XS: peak reserved"]


def test_a_closed_form_is_marked(tmp_path):
    """BART's classifier looks for the end-of-sequence tokens, whose values nothing on the meta device knows."""
    from transformers import BartConfig, BartModel

    config = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    BartModel(config).save_pretrained(tmp_path / "bart")
    test = healthy(memory(tmp_path / "bart", **{"memory-task": "sequence-classification", "rank-lora-xs": 4}))
    labels = [metric.label for metric in test.metric if "peak reserved" in metric.label]
    assert labels == [f"{label} (closed form): peak reserved" for label in ("LoRA", "VeRA", "LoRA-XS")]
    assert "LoRA-XS (closed form) (MiB)" in test.dataframe[-1].value
    assert "cannot be traced" in texts(test)


def test_figures_side_by_side_have_one_unit(tiny_bert):
    """A step of more than a GiB beside one of less: both in GiB, on the cards and in the table."""
    test = healthy(memory(tiny_bert, batch=4096, sequence=32, **{"rank-lora-xs": 4}))
    found = {metric.label: metric.value for metric in test.metric if "peak reserved" in metric.label}
    assert all(re.fullmatch(r"\d\.\d\d GiB", value) for value in found.values()), found
    sizes = {label: float(value.split()[0]) for label, value in found.items()}
    assert sizes["LoRA-XS: peak reserved"] < 1 < sizes["VeRA: peak reserved"]
    assert test.dataframe[-1].value.columns.tolist() == ["part", "LoRA (GiB)", "VeRA (GiB)", "LoRA-XS (GiB)"]


def test_a_sequence_beyond_the_positions_is_said_once(tiny_bert):
    test = memory(tiny_bert, sequence=65, **{"rank-lora-xs": 4})
    assert not test.exception
    assert [box.value for box in test.error] == [
        f"{tiny_bert} has positions for 40 tokens, fewer than a sequence of 65; choose at most 40."
    ]


def test_a_training_loop_fills_in_what_it_does(tiny_llama):
    """And what is changed afterwards stays."""
    test = memory(tiny_llama, sequence=32, **{"rank-lora-xs": 4, "rank-lora": 4})
    assert (test.selectbox(key="optimizer").value, test.selectbox(key="base-dtype").value) == ("adamw-fused", "own")
    test.selectbox(key="trainer").select("peft-bench").run()
    assert (test.selectbox(key="optimizer").value, test.toggle(key="keep-logits").value) == ("adamw", True)
    test.number_input(key="sequence").set_value(48)
    test.selectbox(key="optimizer").select("sgd").run()
    assert "--sequence 48" in code(test, "loraxs memory")
    assert "--optimizer sgd" in code(test, "loraxs memory")
    assert "--keep-logits --use-cache --empty-cache" in code(test, "loraxs memory")


def test_a_models_own_code_runs_only_while_the_switch_is_on(tmp_path, monkeypatch):
    own_modules(monkeypatch, tmp_path / "modules")
    marker = write_remote_model(tmp_path / "gauge")
    test = memory(tmp_path / "gauge", sequence=32, **{"rank-lora-xs": 4})
    switch = next(toggle for toggle in test.toggle if "own code" in toggle.label)
    assert not switch.value
    assert "as you, with access to your files and network" in texts(test)
    assert any("was not run" in box.value for box in test.error)
    assert not marker.exists()
    switch.set_value(True).run()
    assert not test.exception
    assert marker.exists()
    assert len([metric for metric in test.metric if "peak reserved" in metric.label]) == 3
    assert "--trust-remote-code" in code(test, "loraxs memory")
    assert "trust_remote_code=True" in code(test, "from analyzers.memory import MemorySettings, estimate_memory")
    again = memory(tmp_path / "gauge", sequence=32, **{"rank-lora-xs": 4})  # another session
    assert not next(toggle for toggle in again.toggle if "own code" in toggle.label).value
    assert not any("trust" in key for key in again.query_params)


def test_the_switch_is_not_there_for_what_transformers_knows(tiny_llama):
    assert not [toggle for toggle in memory(tiny_llama).toggle if "own code" in toggle.label]


def test_the_answer_is_about_the_persons_own_card_which_is_remembered(tiny_llama):
    test = healthy(memory(tiny_llama))
    test.selectbox(key="fit-gpu").set_value("T4 16 GB").run()
    assert re.match(
        r"LoRA-XS fits T4 16 GB: it takes .*, the card has 14\.\d GiB; so do LoRA and VeRA\.", healthy(test).header[0].value
    )
    assert len(test.header) == 1
    test.number_input(key="sequence").set_value(64)
    test.number_input(key="batch").set_value(4096).run()
    small = healthy(memory(tiny_llama, **{"fit-gpu": "1", "batch": 4096, "sequence": 64}))
    assert small.header[0].value.startswith("LoRA-XS does not fit 1 GB: it takes 1.")
    again = healthy(memory(tiny_llama))  # another session
    assert again.selectbox(key="fit-gpu").value == "T4 16 GB"


def test_a_remedy_is_a_button_that_saves_what_it_says(tiny_llama):
    test = healthy(memory(tiny_llama, **{"rank-lora-xs": 4, "memory-methods": ["lora-xs"], "batch": 64, "sequence": 64}))

    def peak() -> float:
        return float(test.metric[0].value.split()[0])

    button = next(button for button in test.button if button.label.startswith("batch 1 x 64: \u2212"))
    saved, before = float(button.label.split("\u2212")[1].split()[0]), peak()
    healthy(button.click().run())
    assert peak() == pytest.approx(before - saved, abs=1.0)
    assert test.number_input(key="accumulation").value == 64
    assert not any(button.label.startswith("batch 1") for button in test.button)


def test_a_decoder_opens_at_the_length_that_decoders_are_trained_at(tiny_llama, tiny_bert):
    from analyzers.memory import MemorySettings, usual_length
    from sample_models import open_model

    assert usual_length(open_model("llama-3-8b")) == MemorySettings.preset("sft").sequence == 1024
    assert usual_length(open_model("roberta-large")) == 128
    assert usual_length(Checkpoint.open(tiny_llama)) == 64  # its positions
