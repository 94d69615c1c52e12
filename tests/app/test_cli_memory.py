"""`loraxs memory`: every setting reaches the estimate, and what is wrong is said in one sentence."""

import json
import re
import shutil

import pytest

from app.cli import main
from tests.remote_model import own_modules, write_remote_model


@pytest.fixture(autouse=True)
def _own(own_folders):
    """A cache of this test alone."""


def call(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()  # what making the model said is no part of the answer
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return left.value.code, out, err


def peak(capsys, *arguments) -> float:
    code, out, err = call(capsys, "memory", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["peak_allocated_gib"]


def refused(capsys, *arguments) -> str:
    """The sentence that is said; one line, nothing on standard output, exit code 2."""
    code, out, err = call(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    return err


def test_settings_change_the_estimate(capsys, tiny_llama):
    """What each does on its own is told by the tests of the estimates; here, that the command hands it on."""
    base = (tiny_llama, "--rank", 4, "--sequence", 64, "--batch", 8)
    usual = peak(capsys, *base)
    for more in (["--keep-logits"], ["--attention", "eager"], ["--accumulation", 2], ["--dropout", 0.1], ["--mixed-precision"]):
        assert peak(capsys, *base, *more) != usual
    assert peak(capsys, *base, "--padding") == usual != peak(capsys, *base, "--no-padding")
    small = (*base, "--quantize", "4bit")
    assert (
        peak(capsys, *small, "--double-quantization")
        == peak(capsys, *small)
        != peak(capsys, *small, "--no-double-quantization")
    )
    assert peak(capsys, *base, "--gpus", 2, "--sharding", "fsdp") != peak(capsys, *base, "--gpus", 2) != usual


@pytest.mark.parametrize("verb", [("memory",), ("fit", "--gpu", "24")])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch", 0), "batch must be a whole number of at least 1, not 0."),
        (("--optimizer", "lamb"), "Unknown optimizer 'lamb'; there are adamw, "),
        (("--trainer", "axolotl"), "Unknown trainer 'axolotl'; there are trainer, sft, dpo, peft-bench."),
        (("--loss", "chunked"), "Unknown loss 'chunked'; there are transformers, trl, liger, cut-cross-entropy."),
        (("--peft-config", "no-such-file.json"), "There is no file no-such-file.json"),
        (("--transformers-version", "new"), "'new' is no version of transformers"),
        (("--sharding", "fsdp"), "'fsdp' spreads a fine-tune over several GPUs"),
        (("--attention", "flash"), "Unknown attention 'flash'; there are sdpa, eager, flash_attention_2."),
        (("--task", "seq2seq"), "has no ModelForSeq2SeqLM"),
        (("--plan", "no-such-plan.json"), "no-such-plan.json"),
    ],
)
def test_bad_settings(capsys, tiny_llama, verb, arguments, says):
    assert says in refused(capsys, *verb, tiny_llama, "--sequence", 32, "--rank", 4, *arguments)


def test_no_method_to_fit(capsys, tiny_llama):
    assert "at least one method" in refused(capsys, "fit", tiny_llama, "--gpu", "24", "--methods", ",")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads (5)"),
        ({"hidden_act": "wobble"}, "unknown value 'wobble'"),
        ({"model_type": "gauge"}, "is a 'gauge' model, which this version of transformers does not know."),
    ],
)
def test_a_config_that_transformers_cannot_build(capsys, tiny_llama, tmp_path, config, says):
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    said = refused(capsys, "memory", folder, "--sequence", 32, "--rank", 4)
    assert says in said
    assert "broken" in said


def test_a_models_own_code_needs_leave(capsys, tmp_path, monkeypatch):
    own_modules(monkeypatch, tmp_path / "modules")
    marker = write_remote_model(tmp_path / "gauge")
    arguments = (tmp_path / "gauge", "--sequence", 32, "--rank", 4)
    for verb in (("memory",), ("fit", "--gpu", "24")):
        assert "a memory estimate may run it: trust_remote_code (--trust-remote-code)" in refused(capsys, *verb, *arguments)
    assert not marker.exists()
    assert peak(capsys, *arguments, "--trust-remote-code") > 0
    assert marker.exists()


def test_parts_of_a_small_peak_are_said_in_mib(capsys, minilm):
    """They were a column of 0.00 GiB below a peak of 92 MiB."""
    code, out, err = call(capsys, "memory", "minilm", "--rank", "8")
    assert code == 0, err
    weights = next(line for line in out.splitlines() if line.startswith("weights"))
    assert re.fullmatch(r"weights +\d\d MiB +\d\d\.\d %", weights.strip())
