"""A config.json that claims 10⁹ of something, given to every command that reads one, and to the page: a sentence, or the right answer."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.analyzers.compare_helpers import tiny_decoder
from tests.app.pages import page
from tests.app.test_cli import call

COMMANDS = {
    "inspect": (),
    "scan": (),
    "plan": ("--like-rank", "4"),
    "size": ("--rank", "4"),
    "fleet": ("--rank", "4"),
    "memory": ("--rank", "4"),
    "fit": ("--gpu", "24"),
    "compare": ("--task", "csv:{rows}", "--methods", "lora-xs", "--steps", "1"),
    "advise": ("--task", "csv:{rows}", "--ranks", "2,4"),
}
NEEDS_WEIGHTS = ("scan", "compare", "advise")  # and say that there are none, before anything else
READS_WEIGHTS = ("inspect", "scan")  # the files say what is in them, whatever the config claims
CLAIMS = {"num_hidden_layers": 10**9, "hidden_size": 10**400, "num_attention_heads": 10**12}


def claiming(folder: Path, source: Path, claim: str, *, weights: bool) -> Path:
    """A copy of `source`, its config claiming `claim`; with or without the weights."""
    shutil.copytree(source, folder, ignore=None if weights else shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {claim: CLAIMS[claim]}))
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "a config alone"])
@pytest.mark.parametrize("verb", COMMANDS)
def test_no_command_believes_it(capsys, own_folders, sound, verb, weights):
    rows = own_folders / "rows.csv"
    rows.write_text("text,label\n" + "a,good\nb,bad\n" * 30)
    for claim in CLAIMS:
        model = claiming(own_folders / claim, sound, claim, weights=weights)
        words = [word.format(rows=rows) for word in COMMANDS[verb]]
        started = time.monotonic()
        code, _, err = call(capsys, verb, str(model), *words)
        said = " ".join(err.split())
        assert time.monotonic() - started < 30
        assert "Traceback" not in err
        if weights and verb in READS_WEIGHTS:
            assert code == 0, err
        else:
            assert code == 2, err
            assert f"claims {claim} =" in said or (not weights and verb in NEEDS_WEIGHTS and "holds no safetensors" in said), (
                err
            )
        assert len(said) < 1000


@pytest.mark.parametrize("name", ["model", "plan", "cost", "compare"])
def test_nor_does_the_page(fresh_page, tiny_llama, tmp_path, name):
    for weights in (True, False):
        model = claiming(tmp_path / f"{weights}", tiny_llama, "num_hidden_layers", weights=weights)
        test = page(model, name)
        assert not test.exception, test.exception[0].message
