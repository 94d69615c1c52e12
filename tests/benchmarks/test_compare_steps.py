"""The benchmark of training steps takes them by turns, at the ranks that are asked for."""

from __future__ import annotations

import sys

from benchmarks import compare_steps
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model


def test_methods_step_by_turns_at_each_rank(tmp_path, monkeypatch, capsys, own_folders):
    model, data = tiny_model(tmp_path / "bert"), sentiment_csv(tmp_path / "film.csv", 60)
    asked = ["--model", str(model), "--task", f"csv:{data}", "--methods", "head-only,lora,lora-xs", "--ranks", "2,4"]
    monkeypatch.setattr(sys, "argv", ["compare_steps", *asked, "--steps", "2", "--batch", "4"])
    compare_steps.main()
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| L")]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [
        ["LoRA", "2"],
        ["LoRA-XS", "2"],
        ["LoRA", "4"],
        ["LoRA-XS", "4"],
    ]
    assert all(float(row[2]) > 0 for row in rows)
