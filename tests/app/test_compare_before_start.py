"""What can be known to fail is said before anything is trained: by the command, by Python and by the page."""

from __future__ import annotations

import json
import re

import pytest

from analyzers.compare import SweepSettings, open_task, run_sweep
from analyzers.compare.dry_build import refuse_unbuildable
from analyzers.compare.writing_room import most_tokens, refuse_no_room, short_of_room
from analyzers.methods import METHODS
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from tests.analyzers.compare_helpers import sentiment_csv, tiny_decoder, tiny_model
from tests.app.pages import page
from tests.app.test_cli import call

SHORT = "decoder reads at most 128 in all; choose a model of a longer context or another task."
UNKNOWN = "The configuration 'mine' cannot be trained: PEFT knows no adapter of type 'ABACUS'; there are ADALORA, "


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    pytest.importorskip("lm_eval")
    return tiny_decoder(tmp_path_factory.mktemp("short") / "decoder")


def test_the_command_refuses_a_context_without_room_for_the_answer(capsys, decoder, tmp_path):
    code, _, err = call(capsys, "compare", str(decoder), "--task", "gsm8k", "--out", str(tmp_path / "run"))
    assert code != 0
    assert SHORT in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_ends_before_its_first_trial(decoder, tmp_path):
    with pytest.raises(SettingsError, match=SHORT):
        run_sweep(SweepSettings(str(decoder), "gsm8k"), tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert SHORT in status["error"]
    assert not list((tmp_path / "run").glob("trials/*"))


@pytest.mark.usefixtures("fresh_page")
def test_the_page_refuses_it_before_start(decoder):
    test = page(decoder, "compare", task="gsm8k")
    assert not test.exception
    assert SHORT in test.error[0].value
    assert not [button for button in test.button if button.key == "start" and not button.disabled]


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"max_position_embeddings": 256}, True),
        ({"max_position_embeddings": 257}, False),
        ({"n_positions": 64}, True),
        ({"n_ctx": 64}, True),
        ({"max_position_embeddings": 64, "text_config": {"max_position_embeddings": 4096}}, False),
        ({}, False),  # its tokenizer may say; the scoring asks it
    ],
)
def test_room_is_what_the_harness_finds(config, refused, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import resolve_max_length
    from transformers import PretrainedConfig

    text = PretrainedConfig(**config["text_config"]) if "text_config" in config else None
    plain = {name: value for name, value in config.items() if name != "text_config"}
    stands = PretrainedConfig(**plain)
    if text is not None:
        stands.text_config = text
    assert (resolve_max_length(stands) <= 256) == refused, "not what the harness itself finds"
    checkpoint = Checkpoint("some", config, [])
    if refused:
        with pytest.raises(SettingsError, match="GSM8K has a model write up to 256 tokens"):
            refuse_no_room(checkpoint, open_task("gsm8k", {}))
    else:
        refuse_no_room(checkpoint, open_task("gsm8k", {}))
    refuse_no_room(checkpoint, open_task("boolq", {}))  # whose answers are weighed


def test_a_configuration_of_an_unknown_type_is_refused_before_a_folder_is_made(capsys, tmp_path):
    model, data = tiny_model(tmp_path / "model"), sentiment_csv(tmp_path / "film.csv")
    own = {"peft_type": "ABACUS", "r": 4}
    (tmp_path / "mine.json").write_text(json.dumps(own))
    given = ["--task", f"csv:{data}", "--methods", f"lora,{tmp_path / 'mine.json'}", "--out", str(tmp_path / "run")]
    for more in ([], ["--detach"]):
        code, _, err = call(capsys, "compare", str(model), *given, *more)
        assert code != 0
        assert UNKNOWN in " ".join(err.split())
    with pytest.raises(SettingsError, match=UNKNOWN):
        run_sweep(SweepSettings(str(model), f"csv:{data}", ("mine",), configs={"mine": own}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_little_room_says_so_before_the_start_and_counts_what_it_cuts(capsys, tmp_path, own_folders):
    """The tiny model reads 64 tokens, and read none of a text of more: transformers ended in an IndexError."""
    model, data = tiny_model(tmp_path / "model"), tmp_path / "long.csv"
    words = (
        " ".join(["film", ("bad", "good")[number % 2], *["story"] * (90 if number % 4 == 0 else 5)]) for number in range(60)
    )
    data.write_text("text,label\n" + "".join(f"{text},{number % 2}\n" for number, text in enumerate(words)))
    given = ["--task", str(data), "--methods", "head-only", "--steps", "2", "--batch", "60", "--out", str(tmp_path / "run")]
    code, out, err = call(capsys, "compare", str(model), *given)
    said = " ".join(f"{out} {err}".split())
    assert code == 0
    assert "reads at most 64 tokens: longer texts are cut there, though 128 are asked for." in said
    record = json.loads(next((tmp_path / "run" / "trials").glob("*/result.json")).read_text())
    assert (
        "training examples of seed 0 are longer than 64 tokens and were cut; the model reads no more." in record["data_remark"]
    )
    assert "test examples are longer than 64 tokens" in record["data_remark"]
    assert "reads at most 64 tokens" in (tmp_path / "run" / "log.txt").read_text()


def test_room_for_a_question_is_told_with_that_of_the_answer():
    checkpoint = Checkpoint("some", {"max_position_embeddings": 257}, [])
    assert "of questions longer than 1 tokens only the end" in short_of_room(checkpoint, open_task("gsm8k", {}), 128)
    assert not short_of_room(checkpoint, open_task("boolq", {}), 128)
    roberta = Checkpoint("some", {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, [])
    assert (most_tokens(roberta), most_tokens(checkpoint), most_tokens(Checkpoint("some", {}, []))) == (512, 257, None)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"peft_type": "LORA", "r": 0}, "`r` should be a positive integer value but the value passed is 0; mend it"),
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "No modules were targeted for adaptation"),
        ({"peft_type": "LORA", "target_modules": "(["}, "unterminated character set"),
        ({"peft_type": "LORA", "target_modules": ["LayerNorm"]}, "is not supported"),
        ({"peft_type": "LORA", "bias": "some"}, "Requested bias: some, is not implemented"),
        ({"peft_type": "BOFT", "boft_block_size": 7}, "must be divisible by boft_block_size"),
    ],
)
def test_what_peft_refuses_on_any_numbers_is_told_before_a_folder_is_made(own, sentence, tmp_path, own_folders):
    """It failed once a trial, after everything had begun."""
    model, data = tiny_model(tmp_path / "model"), sentiment_csv(tmp_path / "film.csv")
    given = {"targets": ("query",), "steps": 1, "device": "cpu"}
    settings = SweepSettings(str(model), f"csv:{data}", ("lora", "mine"), configs={"mine": own}, **given)
    with pytest.raises(SettingsError, match=re.escape(sentence)) as raised:
        run_sweep(settings, tmp_path / "run")
    assert str(raised.value).startswith("mine cannot be built on ")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_every_method_as_it_stands_is_buildable(tmp_path):
    model, data = tiny_model(tmp_path / "model"), sentiment_csv(tmp_path / "film.csv")
    small = {"vblora": {"peft_type": "VBLORA", "vector_length": 8, "target_modules": ["query"]}}
    names = [name for name in METHODS if name != "vblora"]
    for targets in ("all-linear", ("query",)):
        configs = {f"my-{name}": values for name, values in small.items()}
        settings = SweepSettings(str(model), f"csv:{data}", (*names, *configs), configs=configs, targets=targets)
        refuse_unbuildable(settings, settings.check())
