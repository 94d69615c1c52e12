"""The scan of real checkpoints: right, cached, resumable, cancellable, and honest about what it cannot read."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import load_file, save_file

from analyzers.spectra import METRICS, Spectra, cached, scan
from analyzers.spectra.engines import job as engine
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import CheckpointError, NonFiniteWeights, RunError, SettingsError, WeightsMissing
from loraxs_core.progress import Cancellation


def counted(monkeypatch) -> list[str]:
    """The names of the layers computed from now on."""
    computed: list[str] = []
    original = engine.spectrum

    def count(matrix, **options):
        computed.append(options["name"])
        return original(matrix, **options)

    monkeypatch.setattr(engine, "spectrum", count)
    return computed


def write_model(folder, matrices: dict[str, np.ndarray]) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"{name}.weight": matrix for name, matrix in matrices.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def layered(folder, layers: int = 3, seed: int = 0) -> Checkpoint:
    generator = np.random.default_rng(seed)
    return write_model(
        folder,
        {f"model.layers.{i}.self_attn.q_proj": generator.standard_normal((24, 16)).astype(np.float32) for i in range(layers)},
    )


def test_every_layer_of_minilm_equals_float64_lapack(minilm, own_folders):
    spectra = scan(minilm)
    assert list(spectra.layers) == [weight.name for weight in minilm.linear]
    assert len(spectra.layers) >= 36
    for name, layer in spectra.layers.items():
        truth = scipy.linalg.svdvals(minilm.read(minilm.weight(name)).astype(np.float64))
        assert np.abs(layer.singular_values - truth).max() <= 1e-9 * truth[0], name


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_every_architecture_is_scanned_whole(model, request, own_folders):
    checkpoint = Checkpoint.open(request.getfixturevalue(model))
    spectra = scan(checkpoint, jobs=2)
    frame = spectra.frame()
    assert set(frame["name"]) == {weight.name for weight in checkpoint.linear}
    for weight in checkpoint.linear:
        truth = np.linalg.svd(checkpoint.read(weight).astype(np.float64), compute_uv=False)
        assert spectra[weight.name].singular_values == pytest.approx(truth, abs=1e-9 * truth[0])


def test_the_second_scan_computes_nothing_and_agrees(tmp_path, own_folders, monkeypatch):
    checkpoint = layered(tmp_path / "model")
    assert cached(checkpoint) is None
    first = scan(checkpoint)
    assert not first.from_cache
    computed = counted(monkeypatch)
    again = Checkpoint.open(tmp_path / "model")
    second = scan(again)
    assert second.from_cache
    assert computed == []
    assert second.frame().equals(first.frame())
    assert cached(again).frame().equals(first.frame())


def test_a_cached_layer_has_the_role_of_today(tmp_path, own_folders):
    checkpoint = layered(tmp_path / "model", layers=1)
    (known,) = checkpoint.weights
    scan(checkpoint, weights=[dataclasses.replace(known, role="other")])  # as a version that did not know the name
    again = scan(checkpoint)
    assert again.from_cache
    assert again[known.name].weight == known
    assert again.frame()["role"].tolist() == ["attention.query"]


def test_without_the_cache_nothing_is_written_or_read(tmp_path, own_folders, monkeypatch):
    checkpoint = layered(tmp_path / "model")
    scan(checkpoint, cache=False)
    assert cached(checkpoint) is None
    scan(checkpoint)
    computed = counted(monkeypatch)
    scan(checkpoint, cache=False)
    assert len(computed) == 3


def test_a_changed_file_is_scanned_again(tmp_path, own_folders):
    old = scan(layered(tmp_path / "model", seed=0))
    layered(tmp_path / "model", seed=1)
    file = tmp_path / "model" / "model.safetensors"
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))  # some clocks of files tick every 10 ms
    changed = Checkpoint.open(tmp_path / "model")
    assert cached(changed) is None
    new = scan(changed)
    assert not new.from_cache
    assert not new.frame()["sigma_max"].equals(old.frame()["sigma_max"])


def test_a_checkpoint_that_changed_since_it_was_opened_is_refused(tmp_path, own_folders):
    checkpoint = layered(tmp_path / "model", seed=0)
    scan(checkpoint)
    layered(tmp_path / "model", seed=1)
    os.utime(tmp_path / "model" / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        scan(checkpoint)
    assert cached(checkpoint) is None


def test_an_interrupted_scan_resumes_where_it_was(tmp_path, own_folders, monkeypatch):
    checkpoint = layered(tmp_path / "model", layers=6)
    reports = []
    monkeypatch.setattr(importlib.import_module("analyzers.spectra.scan"), "TICK_SECONDS", 0)  # progress at every layer
    with pytest.raises(Cancellation):
        # Told also while nothing is done yet: what counts is the third layer, not the third report.
        scan(
            checkpoint,
            jobs=1,
            progress=reports.append,
            cancelled=lambda: any(report.message.startswith("3 of 6 layers") for report in reports),
        )
    assert len(list((own_folders / "cache").rglob("*.kept"))) == 3
    computed = counted(monkeypatch)
    spectra = scan(checkpoint, jobs=1)
    assert len(computed) == 3
    assert len(spectra.layers) == 6
    assert spectra.frame().equals(scan(checkpoint, cache=False).frame())


KILLED = """
import importlib, os, signal, sys
from analyzers.spectra import scan
from loraxs_core.checkpoint import Checkpoint
importlib.import_module("analyzers.spectra.scan").TICK_SECONDS = 0  # progress at every layer
def progress(report):
    if report.message.startswith("3 of"):
        os.kill(os.getpid(), signal.SIGKILL)
scan(Checkpoint.open(sys.argv[1]), jobs=1, progress=progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_scan_killed_outright_leaves_whole_files_and_resumes(tmp_path, own_folders, monkeypatch):
    checkpoint = layered(tmp_path / "model", layers=8)
    outcome = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model")], env=os.environ, check=False)
    assert outcome.returncode == -9
    computed = counted(monkeypatch)
    spectra = scan(checkpoint)
    assert 1 <= len(computed) <= 5
    assert spectra.frame().equals(scan(checkpoint, cache=False).frame())


def test_a_damaged_cache_file_is_computed_again(tmp_path, own_folders, monkeypatch):
    checkpoint = layered(tmp_path / "model")
    first = scan(checkpoint)
    files = sorted((own_folders / "cache").rglob("*.kept"))
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-5])
    files[1].write_bytes(b"")
    computed = counted(monkeypatch)
    assert scan(checkpoint).frame().equals(first.frame())
    assert len(computed) == 2


def test_cancelling_returns_at_once_even_inside_a_long_matrix(tmp_path, own_folders, monkeypatch):
    release = threading.Event()
    checkpoint = layered(tmp_path / "model")

    def slow(matrix, **options):
        release.wait(20)
        raise Cancellation

    monkeypatch.setattr(engine, "spectrum", slow)
    started = time.monotonic()
    with pytest.raises(Cancellation):
        scan(checkpoint, cancelled=lambda: time.monotonic() - started > 0.2)
    assert time.monotonic() - started < 5
    release.set()


def test_progress_grows_to_the_end_and_says_how_much_is_done(tmp_path, own_folders):
    reports = []
    scan(layered(tmp_path / "model", layers=5), progress=reports.append)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert reports[-1].message.startswith("5 of 5 layers")
    again = []
    scan(Checkpoint.open(tmp_path / "model"), progress=again.append)
    assert again[-1].fraction == 1.0
    assert "cache" in again[-1].message


def test_progress_of_many_small_layers_is_that_of_finished_ones(tmp_path, own_folders):
    """Told ten times a second, not a layer; workers do not run ahead of what is kept."""
    reports, layers, jobs = [], 400, 2
    started = time.monotonic()
    scan(layered(tmp_path / "model", layers=layers), progress=reports.append, jobs=jobs)
    assert len(reports) <= (time.monotonic() - started) / engine.TICK_SECONDS + 1
    finished = [int(report.message.split(" of ")[0]) for report in reports]
    assert finished[-1] == layers
    for report, count in zip(reports, finished, strict=True):
        assert count / layers <= report.fraction <= (count + 3 * jobs + 1) / layers


def test_some_weights_by_name(tmp_path, own_folders):
    checkpoint = layered(tmp_path / "model")
    name = "model.layers.1.self_attn.q_proj"
    spectra = scan(checkpoint, weights=[name, checkpoint.weight(name)])
    assert list(spectra.layers) == [name]
    with pytest.raises(CheckpointError, match="no scanned layer named 'model"):
        spectra["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_layer_with_nan_is_named_and_the_others_are_scanned(tmp_path, own_folders, monkeypatch, jobs):
    generator = np.random.default_rng(0)
    matrices = {
        f"model.layers.{index}.mlp.up_proj": generator.standard_normal((12, 8)).astype(np.float32) for index in range(6)
    }
    matrices["model.layers.2.mlp.up_proj"][3, 3] = np.nan
    matrices["model.layers.4.mlp.up_proj"][0, 0] = -np.inf
    checkpoint = write_model(tmp_path / "model", matrices)
    spectra = scan(checkpoint, jobs=jobs)
    bad = ["model.layers.2.mlp.up_proj", "model.layers.4.mlp.up_proj"]
    assert list(spectra.not_finite) == bad
    assert list(spectra.layers) == [name for name in matrices if name not in bad]
    assert len(spectra.frame()) == 4
    with pytest.raises(NonFiniteWeights, match=r"model\.layers\.2\.mlp\.up_proj holds NaN or infinite"):
        spectra["model.layers.2.mlp.up_proj"]
    computed = counted(monkeypatch)  # the second time nothing is read, the layers without a spectrum included
    again = scan(checkpoint)
    assert again.from_cache
    assert not computed
    assert again.not_finite == spectra.not_finite == cached(checkpoint).not_finite
    assert Spectra.load(again.save(tmp_path / "saved")).not_finite == spectra.not_finite


def test_where_no_layer_is_finite_it_is_said_and_what_was_done_stays(tmp_path, own_folders):
    bad = np.ones((8, 8), dtype=np.float32)
    bad[3, 3] = np.nan
    good = np.eye(16, dtype=np.float32)
    checkpoint = write_model(tmp_path / "model", {"model.layers.0.self_attn.q_proj": good, "model.layers.7.mlp.up_proj": bad})
    with pytest.raises(NonFiniteWeights, match=r"model\.layers\.7\.mlp\.up_proj"):
        scan(checkpoint, weights=["model.layers.7.mlp.up_proj"])
    scan(checkpoint, jobs=1)
    kept = scan(checkpoint, weights=["model.layers.0.self_attn.q_proj"])  # the larger one, and so the first
    assert kept.from_cache
    assert kept["model.layers.0.self_attn.q_proj"].singular_values.tolist() == [1.0] * 16


def test_an_architecture_without_weights_says_what_is_missing(own_folders):
    from sample_models import open_model

    with pytest.raises(WeightsMissing, match="roberta-large is an architecture without weights"):
        scan(open_model("roberta-large"))


def test_jobs_below_one_are_refused(tmp_path, own_folders):
    with pytest.raises(SettingsError, match="jobs must be at least 1, not 0"):
        scan(layered(tmp_path / "model"), jobs=0)


def test_the_number_of_jobs_does_not_change_a_bit(tmp_path, own_folders):
    checkpoint = layered(tmp_path / "model", layers=6)
    one, four = (scan(checkpoint, jobs=jobs, cache=False) for jobs in (1, 4))
    for name, layer in one.layers.items():
        assert np.array_equal(layer.singular_values, four[name].singular_values)


def test_frame_has_a_row_a_layer_and_the_planned_rank(tmp_path, own_folders):
    checkpoint = layered(tmp_path / "model", layers=2)
    spectra = scan(checkpoint)
    first, _ = spectra.layers

    frame = spectra.frame(SimpleNamespace(ranks={first: 3}))
    assert frame["shape"].tolist() == ["24x16", "24x16"]
    assert frame["out"].tolist() == [24, 24]
    assert frame["parameters"].tolist() == [384, 384]
    assert frame["rank"].tolist() == [3, 0]
    values = np.square(spectra[first].singular_values)
    assert frame["energy_at_rank"].tolist() == pytest.approx([values[:3].sum() / values.sum(), 0.0])
    assert set(METRICS) <= set(frame.columns)
    assert "energy_at_rank" not in spectra.frame().columns
    assert frame["rank_90"].dtype == np.int64


def test_saved_spectra_come_back_the_same_and_a_full_folder_is_refused(tmp_path, own_folders):
    spectra = scan(layered(tmp_path / "model"))
    folder = spectra.save(tmp_path / "saved")
    assert set(load_file(folder / "singular_values.safetensors")) == set(spectra.layers)
    loaded = Spectra.load(folder)
    assert loaded.frame().equals(spectra.frame())
    assert loaded.model == spectra.model
    with pytest.raises(RunError, match="already exists"):
        spectra.save(folder)
    (folder / "spectra.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not hold saved spectra"):
        Spectra.load(folder)


def test_the_scan_process_imports_neither_torch_nor_transformers(tmp_path, own_folders):
    layered(tmp_path / "model")
    code = (
        "import sys; from analyzers.spectra import scan; from loraxs_core.checkpoint import Checkpoint;"
        "scan(Checkpoint.open(sys.argv[1])); heavy = {'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], env=os.environ, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
