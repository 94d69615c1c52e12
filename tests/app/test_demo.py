"""The demo on the real MiniLM and real STS-B: its files, its report, its promise."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from app.demo import run_demo
from app.report import Section, Table, write_report
from loraxs_core.errors import RunError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A shortened demo: few steps, few test pairs."""
    seen = []
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = run_demo(folder, seen.append, steps=4, batch=8, validation_examples=32, test_examples=48)
    return result, seen


def test_the_demo_writes_its_four_files(demo):
    from analyzers.ranks import RankPlan

    result, _ = demo
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"report.html", "layers.csv", "plan.json", "trials.csv", "run"}
    layers = pd.read_csv(result.folder / "layers.csv")
    assert {"name", "role", "sigma_max", "stable_rank", "effective_rank", "rank_90", "energy_at_rank"} <= set(layers.columns)
    assert len(layers) == 37
    plan = RankPlan.load(result.folder / "plan.json")
    assert plan.strategy == "role"
    assert 0.95 * 24 * 16**2 <= plan.trainable <= 24 * 16**2
    trials = pd.read_csv(result.folder / "trials.csv")
    assert list(trials["method"]) == ["head-only", "lora", "vera", "lora-xs"]
    assert list(trials["state"]) == ["done"] * 4
    assert trials["adapter_parameters"].tolist() == [0, 202_752, 15_360, plan.trainable]


def test_predicted_sizes_are_those_of_the_files_written(demo):
    """The size room counts the adapter alone; the trial's file also holds the head."""
    result, _ = demo
    trials = result.run.results().set_index("method")
    assert result.sizes["lora"].data_bytes == trials.loc["lora", "adapter_bytes"]
    assert result.sizes["vera"].data_bytes == trials.loc["vera", "adapter_bytes"]


def test_progress_only_grows_and_ends(demo):
    _, seen = demo
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    said = " ".join(progress.message for progress in seen)
    for part in ("size and memory of VeRA", "Head only, seed 0 (1 of 4)", "LoRA-XS, role plan", "writing the report"):
        assert part in said


def test_the_report_needs_nothing_from_outside(demo):
    result, _ = demo
    page = result.report.read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)\s*=|@import|url\(""", outside)
    assert "{{" not in outside
    figures = json.loads(re.search(r"const figures = (.*);\n", page).group(1))
    assert len(figures) == 8
    assert page.count("<details><summary>The numbers</summary>") == 8  # for those who do not see them
    assert all(figure["light"]["data"] and figure["dark"]["data"] for figure in figures)
    assert figures[0]["light"]["layout"]["template"] != figures[0]["dark"]["layout"]["template"]
    for label in ("Head only", "LoRA", "VeRA", "LoRA-XS, role plan"):
        assert f"<td>{label}</td>" in page


def test_a_second_call_keeps_the_finished_trials(demo):
    result, _ = demo
    stamps = {path: path.stat().st_mtime_ns for path in result.folder.glob("run/trials/*/result.json")}
    with pytest.raises(RunError, match="holds a finished demo"):
        run_demo(result.folder, steps=4, batch=8, validation_examples=32, test_examples=48)
    again = run_demo(result.folder, steps=4, batch=8, validation_examples=32, test_examples=48, force=True)
    assert again.resumed
    assert not result.resumed
    assert {path: path.stat().st_mtime_ns for path in result.folder.glob("run/trials/*/result.json")} == stamps
    assert list(again.summary["score"]) == list(result.summary["score"])


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is not empty and holds no demo"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_plan_of_ones_own_is_left_alone(tmp_path, minilm):
    from analyzers.ranks import Budget, make_plan

    kept = make_plan(minilm, "uniform", budget=Budget.like_rank(3)).save(tmp_path / "plan.json").read_bytes()
    with pytest.raises(RunError, match="another plan than the demo's"):
        run_demo(tmp_path)
    assert (tmp_path / "plan.json").read_bytes() == kept


def test_report_escapes_what_it_is_given(tmp_path):
    table = Table(["<b>"], [["{{PLOTLY}} & </script>"]])
    path = write_report(
        tmp_path / "r.html",
        title="<i>",
        summary="{{BODY}}",
        facts=[("a", "<")],
        sections=[Section("s", "t", [table])],
        footer="",
    )
    page = path.read_text(encoding="utf-8")
    assert "<title>&lt;i&gt;</title>" in page
    assert "{{PLOTLY}} &amp; &lt;/script&gt;" in page
    assert page.count("<p>{{BODY}}</p>") == 1


@pytest.mark.browser
def test_the_report_opens_offline_in_both_themes(demo):
    from playwright.sync_api import sync_playwright

    from tests.browser.install import find

    path = find()
    if path is None:
        pytest.skip("no Chromium on this machine")
    result, _ = demo
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, offline=True).new_page()
            page.set_default_timeout(60_000)
            problems, requests = [], []
            page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(result.report.as_uri())
            page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 8", timeout=60_000)
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
            page.click("#theme")
            assert page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[scheme]
            assert problems == []
            assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
        browser.close()


@pytest.mark.slow
def test_the_whole_demo_keeps_its_promise(tmp_path):
    """Within 6 minutes on a quiet machine of 2 cores; LoRA above the control."""
    result = run_demo(tmp_path / "demo")
    scores = result.summary.set_index("method")["score"]
    assert scores["lora"] > scores["head-only"] + 0.005
    assert scores["lora-xs"] > scores["head-only"]
    assert scores.between(0.75, 0.95).all()
