"""The `loraxs` command: documented JSON keys, tables, exit codes, one sentence an error."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from app import commands
from app.cli import main


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """Runs the command in this process: (exit code, standard output, standard error)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    printed = capsys.readouterr()
    return stop.value.code or 0, printed.out, printed.err


def call_json(capsys, *arguments: str) -> dict:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("verb", commands.VERBS)
def test_every_verb_explains_itself(capsys, verb):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert "Usage" in out


def test_help_is_quick_because_it_imports_nothing_heavy():
    heavy = ["torch", "transformers", "peft", "pandas", "streamlit", "scipy"]
    code = f"import sys, app.cli; print([name for name in {heavy!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_inspect_lists_every_weight(capsys, minilm):
    found = call_json(capsys, "inspect", "minilm")
    assert found["model"] == "minilm"
    assert len(found["weights"]) == len(minilm.weights) == 40
    first = next(weight for weight in found["weights"] if weight["name"] == "encoder.layer.0.output.dense")
    assert first["role"] == "mlp.down"
    assert first["shape"] == [384, 1536]
    assert first["dtype"] == "float32"
    assert first["parameters"] == 384 * 1536
    code, out, _ = call(capsys, "inspect", "minilm")
    assert code == 0
    assert "encoder.layer.5.output.dense" in out


def test_an_error_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    code, out, err = call(capsys, "inspect", str(tmp_path / "absent"))
    assert code == 2
    assert out == ""
    assert str(tmp_path / "absent") in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
