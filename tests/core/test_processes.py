"""Processes that end with the one they work for, and what is said of those that ended without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraxs_core import processes
from loraxs_core.errors import RunError
from loraxs_core.processes import how_ended, identity
from loraxs_core.ray_cluster import join_or_start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
ROOT = Path(__file__).resolve().parents[2]

BUSY = """
import json, subprocess, sys
from loraxs_core.processes import end_with
child = subprocess.Popen(["sleep", "60"])
end_with(json.loads(sys.argv[1]))
print(child.pid, flush=True)
while True:  # an import, a kernel: nothing that looks whether it is still wanted
    sum(range(10_000))
"""


def test_a_process_ends_with_the_one_it_works_for_whatever_it_is_doing():
    parent = subprocess.Popen(["sleep", "60"])
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY, json.dumps(identity(parent.pid))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    grandchild = int(child.stdout.readline())
    assert child.poll() is None
    parent.kill()
    parent.wait()
    assert child.wait(60) == 1
    assert processes.process_started(grandchild) is None, "nothing that it started outlives it"


def test_a_piece_that_waits_for_work_ends_with_its_sweep(tmp_path):
    parent = subprocess.Popen(["sleep", "60"])
    command = [sys.executable, "-m", "analyzers.compare.piece", str(tmp_path), "-", json.dumps(identity(parent.pid))]
    piece = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)  # which stays open: nothing else tells it
    parent.kill()
    parent.wait()
    assert piece.wait(60) == 1


def test_how_a_process_ended_is_said_as_far_as_it_can_be_told(monkeypatch):
    monkeypatch.setattr(processes, "memory_kills", lambda: 3)
    assert how_ended(7, 3) == "with exit code 7"
    assert how_ended(-signal.SIGSEGV, 3) == "by SIGSEGV"
    assert (
        how_ended(-signal.SIGKILL, 3)
        == "by SIGKILL, which is what the system does for want of memory, and what a person may do"
    )
    assert how_ended(-signal.SIGKILL, None).startswith("by SIGKILL, which")
    assert (
        how_ended(-signal.SIGKILL, 2)
        == "by SIGKILL; the system has ended a process for want of memory since it began, which may be why"
    )


def test_a_ray_cluster_that_does_not_come_up_is_a_sentence():
    def init(address=None, **options) -> None:
        raise (
            ConnectionError("none runs")
            if address
            else Exception("The current node timed out during startup. This could be.\nMore.")
        )

    with pytest.raises(RunError, match=r"joined nor started: The current node timed out .* This could be; try again") as raised:
        join_or_start(SimpleNamespace(is_initialized=lambda: False, init=init), 2)
    assert "\n" not in str(raised.value)
