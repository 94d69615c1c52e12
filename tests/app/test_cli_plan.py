"""`loraxs plan` on the command line: pins, exclusions, budgets, the difference of two plans."""

from __future__ import annotations

import pytest

from tests.app.test_cli import call, call_json


def test_two_plans_as_a_difference(capsys, minilm, tmp_path):
    from analyzers.ranks import Budget, make_plan

    first = make_plan(minilm, "uniform", budget=Budget.like_rank(4)).save(tmp_path / "a.json")
    second = make_plan(minilm, "role", budget=Budget.like_rank(4), exclude=("attention.value",)).save(tmp_path / "b.json")
    found = call_json(capsys, "plan", "diff", str(first), str(second))
    change = {row["name"]: (row["rank_before"], row["rank_after"]) for row in found["layers"]}
    assert change["encoder.layer.2.attention.self.value"] == (4, 0)
    assert sum(row["trainable_change"] for row in found["layers"]) == found["trainable_after"] - found["trainable_before"]
    code, out, err = call(capsys, "plan", "diff", str(first), str(first))
    assert code == 0
    assert "same rank" in out + err
    larger = make_plan(minilm, "uniform", budget=Budget.like_rank(6)).save(tmp_path / "c.json")
    out = "".join(call(capsys, "plan", "diff", str(first), str(larger))[1:])
    assert "480 trained numbers more in some layers, 0 fewer in others" in " ".join(out.split())
    code, _, err = call(capsys, "plan", "diff", str(first))
    assert code == 2
    assert "diff A.json B.json" in err


def test_a_plan_with_pins_exclusions_and_multiples(capsys, minilm):
    asked = (
        "--strategy",
        "uniform",
        "--like-rank",
        "16",
        "--pin",
        "mlp.down=24",
        "--exclude",
        "attention.value",
        "--multiple-of",
        "4",
    )
    found = call_json(capsys, "plan", "minilm", *asked)
    assert {rank for name, rank in found["ranks"].items() if name.endswith("self.query")} <= {4, 8, 12, 16, 20, 24}
    assert found["ranks"]["encoder.layer.1.output.dense"] == 24
    assert not any("value" in name for name in found["ranks"])
    code, _, err = call(capsys, "plan", "minilm", "--pin", "mlp.down")
    assert code == 2
    assert err == "loraxs: A pin is MODULE=RANK, such as mlp.down=8, not 'mlp.down'.\n"


def test_the_options_of_a_plan_are_spelled_back():
    from analyzers.plans import Budget, PlanSettings
    from app.options.plan import words

    asked = PlanSettings(
        budget=Budget.gain_kept(80), pins={"mlp.down": 8}, exclude=("value", "key"), same="role", may_leave_out=True
    )
    said = words(asked)
    for part in ("--gain-kept 80", "--pin mlp.down=8", "--exclude value,key", "--same role", "--may-leave-out"):
        assert part in said


def test_plan_stays_within_its_budget_and_serves_the_other_verbs(capsys, tmp_path):
    saved = tmp_path / "plan.json"
    found = call_json(capsys, "plan", "minilm", "--strategy", "role", "--like-rank", "16", "--out", str(saved))
    assert 0.95 * found["budget"] <= found["trainable"] <= found["budget"] == 24 * 16**2
    assert sum(rank**2 for rank in found["ranks"].values()) == found["trainable"]
    size = call_json(capsys, "size", "minilm", "--method", "lora-xs", "--plan", str(saved))
    assert size["trainable"] == found["trainable"]
    assert size["file_bytes"] == found["file_bytes"]
    layers = call_json(capsys, "scan", "minilm", "--plan", str(saved))["layers"]
    planned = [layer for layer in layers if layer["name"] in found["ranks"]]
    assert all(0 < layer["energy_at_rank"] < 1 for layer in planned)


def test_the_plan_of_a_scan_is_read_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("analyzers.spectra.scan", lambda *_, **__: pytest.fail("scanned for nothing"))
    code, _, err = call(capsys, "scan", "minilm", "--plan", str(tmp_path / "absent.json"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "absent.json" in err
