"""The GPU measurements, run at toy size on the CPU: every kind of item gives figures, a dead one is noted, tables say what is empty."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.gpu import worker
from benchmarks.gpu.__main__ import _note_death
from benchmarks.gpu.items import ROOMS, SIZES, items
from benchmarks.gpu.models import Workshop, checkpoint
from benchmarks.gpu.tables import print_tables, read, settings_of
from loraxs_core.architecture import meta_model

CHOSEN = (
    "memory-toy-bf16-lora-xs-2x16-kept-plain",
    "memory-toy-bf16-lora-2x16-kept-trainer",
    "memory-toy-autocast-vera-2x16-checkpointed-plain",
    "tuner-step-toy-bf16-lora-xs-eager",
    "tuner-step-toy-bf16-lora-eager",
    "tuner-start-toy",
    "tuner-reload-toy",
    "tuner-mixed-batch-toy",
    "spectra-layer-toy",
)


def by_id(size: str = "toy") -> dict:
    return {item.id: item for item in items(size)}


@pytest.mark.parametrize("size", SIZES)
def test_names_are_files_and_every_room_has_items(size):
    listed = items(size)
    assert len({item.id for item in listed}) == len(listed)
    assert {item.room for item in listed} == set(ROOMS)
    assert all(item.id.replace("-", "").replace(".", "").replace("_", "").isalnum() for item in listed)
    for item in listed:
        if item.room == "memory":
            settings_of(item.arguments)  # the estimator takes every one of them


def test_every_kind_of_measurement_gives_figures_on_a_cpu(tmp_path, capsys):
    workshop = Workshop("cpu")
    for name in CHOSEN:
        item = by_id()[name]
        result = worker._measured(workshop, item)
        assert "result" in result, result
        worker.record(tmp_path, item, result)
    found = read(tmp_path, "toy")
    assert set(found) == set(CHOSEN)
    memory = found["memory-toy-bf16-lora-xs-2x16-kept-plain"]["result"]
    assert memory["trained"] == 2 * 7 * 4 * 4
    assert memory["optimizer_state"] == pytest.approx(
        2 * 4 * memory["trained"], rel=0.1
    )  # two moments in float32, step counters
    assert memory["peak_allocated"] is None  # nothing stands in for a card
    assert found["tuner-reload-toy"]["result"]["worst_error_of_dw"] < 1e-6
    assert (
        found["tuner-step-toy-bf16-lora-xs-eager"]["result"]["kept"] < found["tuner-step-toy-bf16-lora-eager"]["result"]["kept"]
    )
    assert found["spectra-layer-toy"]["result"]["ways"]["device"]["error"] < 1e-9
    assert print_tables(tmp_path, "toy") == 0
    said = capsys.readouterr().out
    assert "Still empty: GPU memory; A race on the card." in said
    assert "toy bf16 lora-xs eager" in said


def test_the_memory_table_stands_beside_the_estimate(tmp_path, capsys):
    """As a card would fill it in: the figures are made up here, the estimate is asked for the very settings."""
    item = by_id()[CHOSEN[0]]
    measured = {"peak_allocated": 3 << 20, "peak_reserved": 4 << 20, "card": 1 << 29, "weights": 1 << 20, "trained": 224}
    worker.record(tmp_path, item, {"result": measured})
    assert print_tables(tmp_path, "toy") == 0
    said = capsys.readouterr().out
    assert "## GPU memory" in said
    assert "toy-bf16-lora-xs-2x16-kept-plain" in said
    assert "GPU memory;" not in said


def test_the_estimator_sees_the_model_that_is_measured():
    sizes = {name: tuple(parameter.shape) for name, parameter in Workshop("cpu").model("toy", "bf16").named_parameters()}
    assert {
        name: tuple(parameter.shape) for name, parameter in meta_model(checkpoint("toy"), "CAUSAL_LM").named_parameters()
    } == sizes


def test_a_measurement_that_kills_its_process_is_noted_and_left_out(tmp_path):
    item = by_id()[CHOSEN[0]]
    worker.write(tmp_path / worker.RUNNING, {"id": item.id})
    assert _note_death(tmp_path, "toy", -9)
    assert not (tmp_path / worker.RUNNING).exists()
    assert read(tmp_path, "toy")[item.id]["failed"] == "the process died with code -9"
    assert not _note_death(tmp_path, "toy", -9)


def test_without_a_card_it_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    asked = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert asked.returncode == 2
    assert "no CUDA device" in asked.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_stops_in_time_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", "toy", "--device", "cpu", "--only", "spectra,memory"]
    first = subprocess.run([*command, "--minutes", "0.5", "--out", str(tmp_path)], capture_output=True, text=True, timeout=240)
    done = {file.name for file in tmp_path.glob("*-*.json")}
    assert first.returncode == 0, first.stderr
    assert done
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    again = subprocess.run([*command, "--minutes", "0.5", "--out", str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert len(list(tmp_path.glob("*-*.json"))) >= len(done)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in done} == stamps
    assert json.loads((tmp_path / "machine.json").read_text())["device"] == "cpu"
