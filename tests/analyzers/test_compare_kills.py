"""kill -9 at every write of a sweep: what is resumed ends with the same scores, and nothing half-written is left."""

from __future__ import annotations

import os

import pytest

from analyzers.compare import RunFolder, SweepSettings, run_sweep
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model
from tests.kills import killed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


def sweep(folder: str) -> None:
    run_sweep(RunFolder(folder))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    place = tmp_path_factory.mktemp("kills")
    model, task = str(tiny_model(place / "model")), f"csv:{sentiment_csv(place / 'film.csv', 60)}"
    return SweepSettings(
        model,
        task,
        methods=("head-only", "lora-xs"),
        rank=4,
        steps=3,
        batch=8,
        sequence=16,
        evaluations=1,
        device="cpu",
        threads=1,
    )


@pytest.fixture(scope="module")
def unbroken(settings, tmp_path_factory):
    run = RunFolder.create(settings, tmp_path_factory.mktemp("unbroken") / "run")
    assert not killed(sweep, run.path, None)
    return told(run)


def told(run: RunFolder) -> list[tuple]:
    frame, curves = run.results(), run.metrics()
    points = curves[["trial", "kind", "step", "value"]].sort_values(["trial", "step", "kind"])
    scores = [
        *frame[["trial", "score", "validation_score", "test_loss", "adapter_parameters"]].itertuples(index=False, name=None)
    ]
    return [*scores, *points.itertuples(index=False, name=None)]


def ended_well(run: RunFolder, unbroken: list[tuple]) -> None:
    assert run.status().state == "done", run.log()
    assert told(run) == unbroken
    left = {path.name for path in run.path.rglob(".*")}
    assert left <= {".lock"}, "nothing half-written is left"
    assert not list(run.path.rglob("checkpoint.safetensors"))


@pytest.mark.parametrize("at", [1, 12, 23])
def test_a_kill_at_a_write_is_resumed_to_the_same_scores(at, settings, unbroken, tmp_path):
    run = RunFolder.create(settings, tmp_path / "run")
    assert killed(sweep, run.path, at)
    assert run.status().state in ("new", "crashed")
    assert not killed(sweep, run.path, None)
    ended_well(run, unbroken)


@pytest.mark.slow
def test_kills_again_and_again_come_to_the_same_end(settings, unbroken, tmp_path):
    run, times = RunFolder.create(settings, tmp_path / "run"), 0
    while killed(sweep, run.path, 15):
        times += 1
        assert times < 40, "every process gets further than the one before"
    assert times > 1
    ended_well(run, unbroken)


@pytest.mark.slow
def test_a_kill_at_any_write_is_resumed_to_the_same_scores(settings, unbroken, tmp_path):
    at = 1
    while True:
        run = RunFolder.create(settings, tmp_path / str(at))
        if not killed(sweep, run.path, at):
            break
        assert not killed(sweep, run.path, None)
        ended_well(run, unbroken)
        at += 1
    assert at > 30
    print(f"killed at each of {at - 1} writes")


def test_what_the_process_was_lost_with_comes_last(settings, tmp_path):
    """Where a trial takes the process with it each time, the others are done all the same."""
    from types import SimpleNamespace

    from analyzers.compare.left import BEGUN, Left
    from analyzers.compare.opened import Opened
    from analyzers.compare.work import pieces

    run, said = RunFolder.create(settings, tmp_path / "run"), []
    works = pieces(settings, Opened.of(settings).splits)
    begun = works[0].folder(run) / BEGUN
    begun.parent.mkdir(parents=True)
    begun.touch()
    left = Left(run, SimpleNamespace(log=said.append), SimpleNamespace(), works, lambda: False)
    assert left.waiting == [works[1], works[0]]
    assert said == ["Head only, seed 0 comes last: the process that did it before was lost."]
    assert not begun.exists()
