"""What can be known to fail is said before anything is trained: by the command, by Python and by the page."""

from __future__ import annotations

import json

import pytest

from analyzers.compare import SweepSettings, open_task, run_sweep
from analyzers.compare.writing_room import refuse_no_room
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
