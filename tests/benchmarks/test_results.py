"""The kept proof: the page is what the trials say, its commands are what ran, and what is done is not done again."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.testing import CliRunner

import analyzers.compare
from app import cli
from benchmarks.kept_trials import append, read
from benchmarks.results import page, plots
from benchmarks.results.__main__ import lacking
from benchmarks.results.programme import ENTRIES
from benchmarks.results.tables import Found

STSB = ENTRIES[0]


def records(entry, scores):
    """A made-up trial for every one of `entry` that ``scores(trial)`` has a score of."""
    made = []
    for trial in entry.trials():
        score = scores(trial)
        if score is not None:
            made.append(
                {
                    **entry.about,
                    **trial.about,
                    "rank": trial.rank,
                    "plan": None,
                    "metric": "pearson",
                    "score": score,
                    "validation_score": score,
                    "adapter_parameters": 36 * (trial.rank or 0) ** 2,
                    "head_parameters": 769,
                    "energy_kept": None,
                    "data_remark": None,
                    "remark": None,
                    "cpu_seconds": 30.0,
                    "state": "done",
                }
            )
    return made


def kept(folder, entry, made):
    (folder / f"{entry.name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made), encoding="utf-8")
    return Found.of(entry, folder)


def test_the_page_is_what_the_trials_say():
    found, again = page.collected(), "write it again: python -m benchmarks.results.page"
    assert found
    assert page.text(found) in page.PAGE.read_text(encoding="utf-8"), again
    for name, drawing in plots.drawn(found).items():
        assert (page.IMAGES / name).read_text(encoding="utf-8") == drawing, again


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_commands_run_the_same_trials(entry, monkeypatch):
    asked = []

    class Asked(Exception):
        pass

    def capture(settings, *others):
        asked.append(settings)
        raise Asked

    monkeypatch.setattr(analyzers.compare, "run_sweep", capture)
    monkeypatch.setattr(analyzers.compare.SweepSettings, "check", lambda settings: analyzers.compare.open_task(settings.task))
    for command in entry.commands:
        found = CliRunner().invoke(cli.app, shlex.split(command)[1:])
        assert isinstance(found.exception, Asked), found.output
    ran = {trial.id: trial for sweep in asked for trial in sweep.trials()}
    assert list(ran.values()) == list(entry.trials())


def test_what_is_done_is_not_done_again_and_other_settings_do_not_count(tmp_path):
    made = records(STSB, lambda trial: 0.7)
    assert lacking(STSB, tmp_path) == list(STSB.trials())
    file = tmp_path / f"{STSB.name}.jsonl"
    other = json.dumps({**made[1], "steps": 61})
    file.write_text(f'{json.dumps(made[0])}\n{other}\n{{"trial": "lora', encoding="utf-8")
    assert len(read(file)) == 2
    append(file, made[0])
    assert len(read(file)) == 3
    assert lacking(STSB, tmp_path) == list(STSB.trials())[1:]
    assert len(Found.of(STSB, tmp_path).records) == 1


def test_methods_race_at_their_default_rates_and_ablations_at_their_best(tmp_path):
    """At its further rate LoRA-XS is better: that moves the table of ablations, not that of the methods."""

    def scores(trial):
        base = {"lora": 0.75, "vera": 0.6, "head-only": 0.65}.get(trial.method, 0.7)
        base += 0.001 * (trial.seed == 1) * (trial.method == "lora")
        return base + 0.001 * trial.seed + (0.04 if trial.learning_rate == 0.03 else 0)

    one = kept(tmp_path, STSB, records(STSB, scores))
    race = one.race.summary.set_index("label")
    assert race.loc["LoRA-XS", "learning_rate"] == 0.01
    assert race.loc["LoRA-XS", "score"] == pytest.approx(0.701)
    assert one.race.against["LoRA"]["verdict"] == "LoRA is above LoRA-XS by 0.0489 to 0.0518 (95 %, 3 seeds)."
    apart = one.apart.summary.set_index("label")
    assert set(apart["learning_rate"]) == {0.03}
    assert len(apart) == 9
    assert one.rates == [0.004, 0.01, 0.03]
    text = page.text([one])
    assert "| LoRA | 2,304 | 0.002 | 3 | 0.751 (0.748 to 0.754) | +5.0 (+4.9 to +5.2) | 3 / 0 | 0.00 | 2 |  |" in text
    assert "| Head only | 0 | 0.003 | 3 | 0.651 (0.649 to 0.653) | -5.0 (each seed) | 0 / 3 |  |  |  |" in text
    assert "Not run: minilm_sst2" in text
    assert "Of 11 comparisons with LoRA-XS over two seeds or more, 1 has an interval" in text
    assert "corrected for all 11 of them (Holm), 1 of these stands" in text
    assert "- minilm on STS-B: LoRA is above LoRA-XS by 0.0489 to 0.0518 (95 %, 3 seeds)." in text


def test_what_the_page_sums_up_is_corrected_for_all_that_it_compares(tmp_path):
    """In its table of three one stands; among eleven none does, and the list of eleven says so."""

    def scores(trial):
        gains = {"lora": (0.02, 0.026, 0.023), "vera": (0.01, -0.01, 0.0), "head-only": (0.01, -0.01, 0.001)}
        noise = (0.01, -0.02, 0.005)[trial.seed] * (trial.note != "")
        return 0.7 + gains.get(trial.method, (0.0, 0.0, 0.0))[trial.seed] + noise

    one = kept(tmp_path, STSB, records(STSB, scores))
    assert one.race.against["LoRA"]["p_holm"] < 0.05
    text = page.text([one])
    assert "- LoRA is above LoRA-XS by 0.0155 to 0.0305 (95 %, 3 seeds).\n" in text
    assert "corrected for all 11 of them (Holm), none of these stand" in text
    assert "(95 %, 3 seeds); among all the comparisons here that may be chance (Holm, p = 0.062)" in text


def test_an_entry_with_one_seed_says_so_and_is_not_drawn(tmp_path):
    one = kept(tmp_path, STSB, records(STSB, lambda trial: 0.7 + trial.learning_rate if trial.seed == 0 else None))
    assert "(one seed)" in page.text([one])
    assert "which cannot tell that from chance" in page.text([one])
    assert plots.drawn([one]) == {}
