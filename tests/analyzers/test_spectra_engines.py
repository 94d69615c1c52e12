"""The engines give one answer: threads, an accelerator's code on PyTorch's CPU, and a Ray cluster that loses a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analyzers.spectra import scan
from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.engines import Job, Task, accelerator
from analyzers.spectra.layer import NotFinite
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import NonFiniteWeights, SettingsError


def write_model(folder, layers: int, size: int = 32) -> Checkpoint:
    generator = np.random.default_rng(0)
    folder.mkdir()
    tensors = {}
    for index in range(layers):
        tensors[f"model.layers.{index}.self_attn.q_proj.weight"] = generator.standard_normal((size, size)).astype(np.float32)
        tensors[f"model.layers.{index}.mlp.up_proj.weight"] = generator.standard_normal((2 * size, size)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


@pytest.mark.parametrize("accuracy", [Accuracy(), Accuracy(fast=True), Accuracy(top=5)], ids=lambda accuracy: accuracy.key)
def test_the_accelerator_engine_agrees_with_threads(tmp_path, own_folders, accuracy, monkeypatch):
    checkpoint = write_model(tmp_path / "model", 4)
    expected = scan(checkpoint, fast=accuracy.fast, top=accuracy.top, cache=False)
    monkeypatch.setattr(accelerator, "BATCH_BYTES", 8 * 4 * 32 * 32 * 3)  # three of the small ones at a time
    tasks = [Task(weight) for weight in checkpoint.linear]
    assert [len(batch) for batch in accelerator.batches(tasks)] == [3, 1, 2, 2]
    found = {layer.weight.name: layer for layer in accelerator.run(Job(checkpoint, tasks, accuracy, 1, "cpu")) if layer}
    assert found.keys() == expected.layers.keys()
    for name, layer in found.items():
        other = expected[name]
        assert layer.singular_values.shape == other.singular_values.shape
        tolerance = (layer.error + other.error + 1e-14) * other.singular_values[0]
        assert np.abs(layer.singular_values - other.singular_values).max() <= tolerance


def test_a_layer_with_nan_costs_its_batch_no_other_layer(tmp_path, own_folders):
    checkpoint = write_model(tmp_path / "model", 4)
    expected = scan(checkpoint, cache=False)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][5, 5] = np.inf
    (tmp_path / "damaged").mkdir()
    save_file(tensors, tmp_path / "damaged" / "model.safetensors")
    damaged = Checkpoint.open(tmp_path / "damaged")
    job = Job(damaged, [Task(weight) for weight in damaged.linear], Accuracy(), 1, "cpu")
    found = {result.weight.name: result for result in accelerator.run(job) if result}
    assert found.keys() == expected.layers.keys()
    assert isinstance(found.pop("model.layers.2.mlp.up_proj"), NotFinite)
    for name, layer in found.items():
        np.testing.assert_allclose(layer.singular_values, expected[name].singular_values, rtol=1e-8)


def test_a_device_that_is_not_there_is_a_clear_error(tmp_path, own_folders):
    with pytest.raises(SettingsError, match="device 'nowhere'"):
        scan(write_model(tmp_path / "model", 1), device="nowhere")


def test_settings_that_make_no_sense_are_refused(tmp_path, own_folders):
    checkpoint = write_model(tmp_path / "model", 1)
    with pytest.raises(SettingsError, match="Unknown engine 'spark'"):
        scan(checkpoint, engine="spark")
    with pytest.raises(SettingsError, match="top must be at least 1, not 0"):
        scan(checkpoint, top=0)
    with pytest.raises(SettingsError, match="ray engine scans on CPUs"):
        scan(checkpoint, engine="ray", device="cuda")


def test_without_ray_the_error_says_how_to_get_it(tmp_path, own_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install 'loraxs-workbench\[cluster\]'"):
        scan(write_model(tmp_path / "model", 1), engine="ray")


def test_better_cached_spectra_serve_lesser_questions_and_not_the_other_way(tmp_path, own_folders):
    checkpoint = write_model(tmp_path / "model", 2)
    assert not scan(checkpoint, top=4).from_cache
    assert scan(checkpoint, top=4).from_cache
    assert not scan(checkpoint, top=5).from_cache
    assert not scan(checkpoint, fast=True).from_cache
    assert scan(checkpoint, top=6).from_cache
    exact = scan(checkpoint)
    assert not exact.from_cache
    again = scan(checkpoint, fast=True)
    assert again.from_cache
    assert again.frame().equals(exact.frame())
    few = scan(checkpoint, top=3)
    assert few.from_cache
    for name, layer in few.layers.items():
        assert np.array_equal(layer.singular_values, exact[name].singular_values[:3])
        assert layer.energy == exact[name].energy


def test_parts_of_fused_projections_are_scanned_beside_the_whole(tiny_gpt2, own_folders):
    checkpoint = Checkpoint.open(tiny_gpt2)
    spectra = scan(checkpoint, parts=True)
    whole = "transformer.h.0.attn.c_attn"
    assert whole in spectra.layers
    matrix = checkpoint.read(checkpoint.weight(whole)).astype(np.float64)
    for index, part in enumerate(("query", "key", "value")):
        truth = np.linalg.svd(matrix[32 * index : 32 * index + 32], compute_uv=False)
        assert spectra[f"{whole}[{part}]"].singular_values == pytest.approx(truth, abs=1e-9 * truth[0])
    assert f"{whole}[query]" not in scan(checkpoint).layers


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A real Ray cluster of two nodes with one CPU each on this machine."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_ray_cluster_that_loses_a_worker_gives_the_same_answer(tmp_path, own_folders, cluster):
    checkpoint = write_model(tmp_path / "model", 12, size=500)
    expected = scan(checkpoint, cache=False)
    killed = []

    def kill_a_worker(report) -> None:
        if killed or report.fraction < 0.1:
            return
        listed = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        processes = [line.split(maxsplit=2) for line in listed.splitlines()]
        own = {pid for pid, _, args in processes if "/raylet " in args and f"--gcs-address={cluster.address}" in args}
        workers = [int(pid) for pid, parent, args in processes if parent in own and "ray::_scan_layer" in args]
        if workers:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    spectra = scan(checkpoint, engine="ray", progress=kill_a_worker)
    assert killed, "no worker was running when it should have been killed"
    assert spectra.layers.keys() == expected.layers.keys()
    for name, layer in spectra.layers.items():
        assert np.array_equal(layer.singular_values, expected[name].singular_values)
    assert scan(checkpoint).from_cache


def test_without_a_cluster_one_is_started_here(tmp_path, own_folders, monkeypatch):
    ray = pytest.importorskip("ray")
    init = ray.init

    def alone(*, address=None, **options):
        """As on a machine on which nobody else runs a cluster, such as these tests in another checkout."""
        if address == "auto":
            raise ConnectionError
        return init(**options)

    monkeypatch.setattr(ray, "init", alone)
    checkpoint = write_model(tmp_path / "model", 2)
    try:
        spectra = scan(checkpoint, engine="ray", cache=False, jobs=1)
        assert ray.cluster_resources()["CPU"] == 1
    finally:
        ray.shutdown()
    assert spectra.frame().equals(scan(checkpoint, cache=False).frame())


def test_errors_of_a_ray_worker_come_back_as_they_are(tmp_path, own_folders, cluster):
    bad = np.full((40, 40), np.nan, dtype=np.float32)
    (tmp_path / "model").mkdir()
    save_file({"model.layers.3.mlp.up_proj.weight": bad}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(NonFiniteWeights, match=r"model\.layers\.3\.mlp\.up_proj holds NaN"):
        scan(Checkpoint.open(tmp_path / "model"), engine="ray", cache=False)


def test_the_update_of_a_fine_tune_and_of_an_adapter_are_scanned_like_any_model(tmp_path, own_folders):
    from loraxs_core.deltas import difference, open_adapter

    base, tuned = write_model(tmp_path / "base", 2), tmp_path / "tuned"
    generator = np.random.default_rng(7)
    change = {
        name: 0.01 * generator.standard_normal(entry.shape)
        for name, file in base.files.items()
        for entry in [file.entries[name]]
    }
    tuned.mkdir()
    save_file(
        {name: (base.files[name].read(name) + delta).astype(np.float32) for name, delta in change.items()},
        tuned / "model.safetensors",
    )
    update = scan(difference(Checkpoint.open(tuned), base))
    for name, delta in change.items():
        truth = np.linalg.svd(delta, compute_uv=False)
        assert update[name.removesuffix(".weight")].singular_values == pytest.approx(truth, abs=1e-6)
    assert scan(difference(Checkpoint.open(tuned), base)).from_cache

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    up, down = generator.standard_normal((40, 4)).astype(np.float32), generator.standard_normal((4, 30)).astype(np.float32)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    (layer,) = scan(open_adapter(adapter)).layers.values()
    truth = np.linalg.svd(2.0 * up.astype(np.float64) @ down, compute_uv=False)
    assert layer.singular_values == pytest.approx(truth, abs=1e-6 * truth[0])
    assert layer.metrics["rank_99"] <= 4


def test_threads_do_not_outlive_a_scan(tmp_path, own_folders):
    before = threading.active_count()
    scan(write_model(tmp_path / "model", 3), jobs=3, cache=False)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(2)
    assert threading.active_count() <= before


def test_three_lines_of_python(tmp_path, own_folders):
    write_model(tmp_path / "model", 1)
    code = textwrap.dedent(
        """
        from analyzers.spectra import scan
        from sample_models import open_model
        print(scan(open_model(r"{folder}")).frame()[["name", "rank_90"]].to_string())
        """
    ).format(folder=tmp_path / "model")
    outcome = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "model.layers.0.mlp.up_proj" in outcome.stdout
