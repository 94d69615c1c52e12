"""The `loraxs` command: documented JSON keys, tables, exit codes, one sentence an error."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from safetensors.numpy import load_file, save_file

from app import commands
from app.cli import main
from loraxs_core.progress import Progress


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


@pytest.mark.parametrize("verb", [*commands.VERBS, *commands.GROUPS])
def test_every_verb_explains_itself(capsys, verb):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert "Usage" in out


def test_the_version_is_that_of_the_package_and_of_the_citation(capsys):
    from importlib.metadata import version
    from pathlib import Path

    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith(f"loraxs {version('loraxs-workbench')} (torch ")
    root = Path(__file__).parents[2]
    written = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {written}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {written}\n" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_help_lists_every_strategy():
    from analyzers.ranks import STRATEGIES as known
    from app.options.plan import STRATEGIES as listed

    assert sorted(listed) == sorted(known)


def test_options_have_the_defaults_of_the_questions_they_ask():
    from dataclasses import asdict

    from analyzers.plans import PlanSettings
    from analyzers.spectra import ScanSettings
    from app.options.plan import PlanChoice
    from app.options.scan import ScanChoice

    assert asdict(ScanChoice()) == asdict(ScanSettings())
    assert PlanChoice().settings() == PlanSettings()


def test_help_waits_for_no_library():
    """The first thing that anybody types: what takes seconds to import is imported where it is needed."""
    slow = ("numpy", "pandas", "scipy", "torch", "transformers", "peft", "streamlit", "plotly")
    program = f"import sys, app.cli; print(*[name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_ctrl_c_says_that_it_stopped(capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("app.commands.inspect.open_model", interrupted)
    assert call(capsys, "inspect", "minilm") == (130, "", "loraxs: stopped.\n")


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


def test_scan_gives_the_documented_keys(capsys, minilm):
    found = call_json(capsys, "scan", "minilm")
    assert len(found["layers"]) == len(minilm.linear)
    assert found["seconds"] >= 0
    keys = {"name", "role", "shape", "sigma_max", "stable_rank", "effective_rank", "rank_50", "rank_90", "rank_95", "rank_99"}
    layer = next(layer for layer in found["layers"] if layer["name"] == "encoder.layer.0.output.dense")
    assert keys <= layer.keys()
    assert layer["shape"] == [384, 1536]
    assert 1 <= layer["rank_50"] < layer["rank_90"] < layer["rank_99"] <= 384


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_scan_writes_tables(capsys, tmp_path, ending):
    import pandas as pd

    target = tmp_path / f"layers.{ending}"
    assert call(capsys, "scan", "minilm", "--out", str(target))[0] == 0
    frame = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[ending](target)
    assert {"name", "sigma_max"} <= set(frame.columns)
    assert len(frame) == 37


def test_the_papers_counts(capsys):
    assert call_json(capsys, "size", "roberta-large", "--method", "lora-xs", "--rank", "25")["trainable"] == 60_000
    assert call_json(capsys, "size", "llama-3-8b", "--method", "lora-xs", "--rank", "128")["trainable"] == 3_670_016
    options = ("--rank", "16", "--dtype", "bfloat16", "--adapters", "1000000")
    both = call_json(capsys, "size", "gpt-3-175b", *options)["methods"]
    sizes = {row["method"]: row for row in both}
    assert sizes["lora"]["trainable"] * 2 == 144 * 2**20
    assert sizes["lora-xs"]["trainable"] * 2 == 96 * 2**10
    assert sizes["lora-xs"]["fleet_bytes"] == sizes["lora-xs"]["file_bytes"] * 1_000_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("scan", "llama-3-8b"), "without weights"),
        (("plan", "minilm", "--strategy", "magic"), "Unknown strategy 'magic'"),
        (("plan", "minilm", "--parameters", "3"), "below rank 1"),
        (("plan", "minilm", "--like-rank", "8", "--parameters", "300"), "one budget"),
        (("plan", "minilm", "--targets", "nothing_like_it"), "matches the target"),
        (("plan", "minilm", "--min-rank", "500"), "larger than the matrix"),
        (("size", "minilm", "--method", "magic"), "Unknown method 'magic'"),
        (("size", "minilm", "--method", "lora-xs", "--rank", "900"), "384"),
        (("size", "minilm", "--plan", "no-such-plan.json"), "no-such-plan.json"),
        (("scan", "minilm", "--out", "layers.xyz"), ".csv, .parquet, .json or .safetensors"),
        (("scan", "minilm", "--device", "nowhere"), "on the device 'nowhere'"),
        (("scan", "minilm", "--engine", "ray", "--device", "cuda"), "ray engine scans on CPUs"),
        (("scan", "~nobody-of-that-name/model"), "no model '~nobody-of-that-name/model'"),
        (("verify", "~nobody-of-that-name/x", "--model", "minilm"), "~nobody-of-that-name is nobody's home folder"),
        (("convert", "~nobody-of-that-name/x", "--model", "minilm", "--rank", "4"), "is nobody's home folder"),
        (("compare", "minilm", "--task", "csv:~nobody-of-that-name/x.csv"), "is nobody's home folder"),
        (("scan", "ä/ö"), "no model 'ä/ö'"),
        (("spectrum", "minilm", "pooler.dense[query]"), "has no parts that are known"),
        (("fleet", "minilm", "--price", "-1"), "price"),
        (("fleet", "minilm", "--adapters", "0"), "number of adapters"),
        (("fleet",), "Give a MODEL or a --scenario"),
        (("spectrum", "minilm", "query"), "6 layers end in 'query'"),
        (("spectrum", "minilm", "nothing"), "'nothing'"),
        (("compare", "minilm", "--task", "magic"), "magic"),
        (("compare", "minilm", "--methods", "magic"), "magic"),
        (("compare", "minilm", "--learning-rate", "lora"), "METHOD=RATE"),
        (("memory", "llama-3-8b", "--batch", "0"), "batch"),
        (("memory", "llama-3-8b", "--optimizer", "magic"), "magic"),
        (("size", "minilm", "--steps", "0"), "number of steps"),
        (("verify", "no-such-adapter", "--model", "minilm"), "no-such-adapter"),
        (("convert", "minilm-sre", "--model", "minilm"), "Give either a rank"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, arguments, says):
    code, out, err = call(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_what_a_run_writes(capsys):
    options = ("--method", "lora-xs", "--rank", "16", "--steps", "1000", "--save-every", "300", "--keep", "2")
    run = call_json(capsys, "size", "minilm", *options)["run"]
    assert run["saves"] == 4
    assert run["kept"] == 2
    assert run["written"] == 4 * run["each"]
    assert run["optimizer"] > 2 * 4 * 6144  # AdamW keeps two numbers for each trained one
    code, out, _ = call(capsys, "size", "minilm", *options)
    assert code == 0
    assert "saves every 300" in out


def test_the_papers_fleet(capsys):
    found = call_json(capsys, "fleet", "--scenario", "gpt-3-one-million-users")
    sizes = {row["method"]: row["number_bytes"] for row in found["methods"]}
    assert sizes["lora"] == 144 * 2**20
    assert sizes["lora-xs"] == 96 * 2**10
    assert found["break_even"][0]["rank_by_trainable"] > 16


def test_a_fleet_is_saved_as_a_question_and_asked_again(capsys, tmp_path):
    question = tmp_path / "fleet.json"
    options = ("--methods", "lora,lora-xs", "--rank", "lora=8", "--rank", "lora-xs=16", "--adapters", "500")
    first = call_json(capsys, "fleet", "minilm", *options, "--save", str(question))
    assert call_json(capsys, "fleet", "--scenario", str(question)) == first
    assert [row["rank"] for row in first["methods"]] == ["8", "16"]


def test_one_spectrum_is_drawn(capsys):
    found = call_json(capsys, "spectrum", "minilm", "layer.3.output.dense")
    values = found["singular_values"]
    assert len(values) == 384
    assert values == sorted(values, reverse=True)
    assert found["cumulative_energy"][-1] == pytest.approx(1)
    code, out, _ = call(capsys, "spectrum", "minilm", "layer.3.output.dense")
    assert code == 0
    assert "█" in out


def test_a_scan_with_a_damaged_layer_names_it_and_its_exit_code_says_so(capsys, tmp_path, own_folders):
    import numpy as np
    from safetensors.numpy import save_file

    weights = {f"model.layers.{index}.mlp.up_proj.weight": np.eye(8, dtype=np.float32) for index in range(3)}
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = np.nan
    (tmp_path / "model").mkdir()
    save_file(weights, tmp_path / "model" / "model.safetensors")
    table = tmp_path / "layers.csv"
    code, out, err = call(capsys, "scan", str(tmp_path / "model"), "--out", str(table))
    assert code == 3
    assert "2 linear weights" in out
    assert "no spectrum, in 1 of 3 weights: model.layers.1.mlp.up_proj." in err
    assert len(table.read_text().splitlines()) == 3
    code, out, _ = call(capsys, "scan", str(tmp_path / "model"), "--json")
    assert code == 3
    found = json.loads(out)
    assert found["not_finite"] == ["model.layers.1.mlp.up_proj"]
    assert len(found["layers"]) == 2


def test_a_scan_says_what_it_left_out(capsys, tmp_path, tiny_bert):
    tuned = shutil.copytree(tiny_bert, tmp_path / "tuned")
    tensors = {key: tensor for key, tensor in load_file(tuned / "model.safetensors").items() if not key.startswith("pooler")}
    save_file(tensors, tuned / "model.safetensors")
    arguments = "scan", str(tuned), "--minus", str(tiny_bert)
    assert "1 weight matrix is not in both models" in call(capsys, *arguments)[1]
    assert call_json(capsys, *arguments)["note"].startswith("1 weight matrix is not in both models")
    assert call_json(capsys, "scan", str(tuned))["note"] == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("model", ["minilm", "tiny_bert"], ids=["more than a buffer", "less"])
def test_output_to_a_full_disk_is_one_sentence(model, options, request):
    model = model if model == "minilm" else str(request.getfixturevalue(model))
    with open("/dev/full", "w") as full:
        code = "from app.cli import main; main()"
        command = [sys.executable, "-c", code, "inspect", model, *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "loraxs: Cannot write the output: No space left on device; free some space or send it elsewhere.\n"


@pytest.mark.parametrize("out", ["layers.xyz", "in-the-way/layers.csv", "folder.csv"])
def test_where_a_scan_is_to_be_written_is_asked_before_the_work(capsys, tmp_path, out, monkeypatch):
    monkeypatch.setattr("analyzers.spectra.scan", lambda *_, **__: pytest.fail("scanned for nothing"))
    (tmp_path / "in-the-way").write_text("a file")
    (tmp_path / "folder.csv").mkdir()
    code, printed, err = call(capsys, "scan", "minilm", "--out", str(tmp_path / out))
    assert (code, printed) == (2, "")
    assert len(err.splitlines()) == 1


def test_that_a_catalogue_entry_has_no_weights_is_known_without_building_it():
    code = "import sys; from app.cli import main\ntry: main(['scan', 'llama-3-8b'])\nexcept SystemExit: print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_layer_without_any_numbers_but_zeros_has_a_spectrum_without_bars(capsys):
    code, out, err = call(capsys, "spectrum", "minilm", "pooler.dense", "--minus", "minilm")
    assert code == 0, err
    assert "█" not in out
    assert "0 of 384 directions" in out


def test_a_name_that_looks_like_markup_is_a_name(monkeypatch):
    from rich.console import Console

    from app import terminal

    console = Console(force_terminal=True, file=io.StringIO(), width=120)
    monkeypatch.setattr(terminal, "err", console)
    with terminal.progress_bar("Scanning models/[/draft]/model") as progress:
        progress(Progress(1, 2, "1 of 2 [/layers]"))
    assert "models/[/draft]/model" in console.file.getvalue()


def test_one_part_of_a_fused_projection_is_drawn(capsys, tiny_gpt2):
    code, out, err = call(capsys, "spectrum", str(tiny_gpt2), "h.1.attn.c_attn[key]")
    assert code == 0, err
    assert "transformer.h.1.attn.c_attn[key] (key, 32 x 32)" in out
    code, _, err = call(capsys, "spectrum", str(tiny_gpt2), "h.1.attn.c_attn[gate]")
    assert code == 2
    assert "its parts are query, key, value" in err


def test_the_spectrum_of_a_difference_and_its_values_as_safetensors(capsys, tmp_path):
    from safetensors.numpy import load_file

    target = tmp_path / "values.safetensors"
    found = call_json(capsys, "scan", "minilm-sre", "--minus", "minilm", "--out", str(target))
    values = load_file(target)
    assert len(values) == len(found["layers"]) == 37
    layer = next(layer for layer in found["layers"] if layer["name"] == "encoder.layer.0.output.dense")
    assert values[layer["name"]][0] == pytest.approx(layer["sigma_max"])
    assert layer["sigma_max"] < 1


def test_memory_gives_the_documented_keys(capsys):
    found = call_json(capsys, "memory", "roberta-large", "--rank", "16", "--batch", "8", "--sequence", "128")
    assert {"peak_allocated_gib", "peak_reserved_gib", "interval_gib", "breakdown_gib"} <= found.keys()
    low, high = found["interval_gib"]
    assert low < found["peak_reserved_gib"] < high
    assert found["peak_allocated_gib"] <= found["peak_reserved_gib"]
    assert sum(found["breakdown_gib"].values()) == pytest.approx(found["peak_allocated_gib"], rel=1e-6)


def test_convert_verify_export_and_merge(capsys, tmp_path, tiny_bert):
    """The whole way round on a small model: a LoRA in, a LoRA-XS checked, a LoRA and a plain checkpoint out."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    lora, adapter, base = tmp_path / "lora", tmp_path / "xs", ("--model", str(tiny_bert))
    config = LoraConfig(r=4, target_modules=["query"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(tiny_bert), config).save_pretrained(lora)
    report = call_json(capsys, "convert", str(lora), *base, "--energy", "0.9", "--out", str(adapter))
    assert all(module["kept"] >= 0.9 and module["best"] >= module["kept"] for module in report["modules"])
    assert call_json(capsys, "verify", str(adapter), *base)["ok"]
    assert "2 of 2 modules" in call(capsys, "verify", str(adapter), *base)[1]
    assert call_json(capsys, "export", str(adapter), *base, "--out", str(tmp_path / "out"))["file_bytes"] > 0
    merged = call_json(capsys, "merge", str(adapter), *base, "--out", str(tmp_path / "merged"))
    assert merged["worst_rounding"] < 1e-3
    assert sorted(merged["changed"]) == [f"encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1)]
    assert merged["unmoved"] == merged["left_out"] == merged["absent"] == []
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert call(capsys, "merge", str(adapter), *base, "--out", str(tmp_path / "merged"))[0] == 2


def test_converting_a_fine_tune_says_what_stays_behind(capsys, tmp_path, tiny_bert):
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight += 0.01 * torch.eye(32)
        model.embeddings.LayerNorm.weight += 0.5
    model.save_pretrained(tmp_path / "tuned")
    command = ("convert", str(tmp_path / "tuned"), "--model", str(tiny_bert), "--rank", "32")
    report = call_json(capsys, *command)
    assert [(one["name"], one["kind"]) for one in report["left_out"]] == [("embeddings.LayerNorm.weight", "norm")]
    assert report["left_out"][0]["moved"] == pytest.approx(0.5, rel=1e-6)
    assert report["kept"] == pytest.approx(1)
    assert report["kept_of_everything"] == pytest.approx(0.01**2 / (0.01**2 + 0.5**2), rel=1e-3)
    said = " ".join(" ".join(call(capsys, *command)[1:]).split())
    assert "not in the adapter: 1 norm (embeddings.LayerNorm.weight by 50 % of its norm)" in said
