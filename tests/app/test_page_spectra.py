"""Spectra: before the scan, after it, and when it failed."""

from __future__ import annotations

import contextlib
import json

import pytest

from analyzers.ranks import Budget, make_plan
from app import state
from app.remembered import remember
from loraxs_core.background import State, Status
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import ended, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_before_the_scan_there_is_a_button_and_what_it_will_do(tiny_bert):
    test = healthy(page(tiny_bert, "spectra"))
    assert "has not been scanned" in test.info[0].value
    assert test.button(key="scan").label == "Scan"


def test_a_look_that_was_interrupted_does_not_hide_the_spectra_of_later(monkeypatch):
    """A rerun may end what called `_spectra` as soon as it has answered; that there was nothing must not be kept."""
    found = iter([None, "spectra"])
    monkeypatch.setattr("analyzers.spectra.cached", lambda *_, **__: next(found))
    with contextlib.suppress(Exception):
        state._spectra("interrupted", False, None)
    assert state._spectra("interrupted", False, None) == "spectra"


def test_a_scan_that_ends_while_the_page_is_drawn_is_followed_to_its_end(scanned, monkeypatch):
    looks, spectra = [], state.spectra
    monkeypatch.setattr("app.state.spectra", lambda *given, **named: spectra(*given, **named) if looks else looks.append(1))
    monkeypatch.setattr("app.jobs.status", lambda *_: Status(state=State.DONE if looks else State.RUNNING))
    assert "All layers" in texts(healthy(page(scanned, "spectra")))


def test_an_architecture_has_no_spectrum_and_says_so():
    test = healthy(page("roberta-large", "spectra"))
    assert "no spectrum" in test.info[0].value


def test_shows_every_layer_and_words(scanned):
    test = healthy(page(scanned, "spectra"))
    table = test.dataframe[0].value
    assert len(table) == len(Checkpoint.open(scanned).linear)
    assert {"stable_rank", "effective_rank", "rank_90", "sigma_max"} <= set(table)
    assert "keeps 90 % of its energy in" in texts(test)
    assert [chart.key for chart in test.get("plotly_chart")] == ["map", "spectrum"]  # and no figure that nobody looks at


@pytest.mark.parametrize(
    ("tab", "key"), [("Cumulative energy", "cumulative"), ("Density and noise", "density"), ("Singular values", "spectrum")]
)
def test_each_tab_makes_its_own_figure(scanned, tab, key):
    test = healthy(page(scanned, "spectra", **{"spectrum-tab": tab, "by-depth": True}))
    assert [chart.key for chart in test.get("plotly_chart")] == ["map", key, "depth"]


def test_a_click_on_the_map_shows_that_layer(scanned):
    name = "encoder.layer.1.attention.self.query"
    selection = {"points": [{"customdata": [name]}], "point_indices": [0], "box": [], "lasso": []}
    assert name not in healthy(page(scanned, "spectra")).multiselect(key="layers").value
    remember(forms={})  # another person: in a browser the list is there before anything can be clicked
    test = healthy(page(scanned, "spectra", map={"selection": selection}))
    assert name in test.multiselect(key="layers").value


def test_an_overlay_that_was_not_scanned_is_one_sentence(scanned, tiny_llama):
    test = page(scanned, "spectra", overlay=str(tiny_llama))
    assert not test.exception
    assert "scan it" in test.error[0].value
    assert "All layers" in texts(test)  # the rest of the page is still there


def test_two_models_stand_on_one_map(scanned, tiny_llama):
    test = healthy(page(scanned, "spectra", beside=str(scanned)))
    alone = json.loads(healthy(page(scanned, "spectra", beside=None)).get("plotly_chart")[0].proto.spec)
    both = json.loads(test.get("plotly_chart")[0].proto.spec)
    rows, twice = (spec["layout"]["yaxis"]["ticktext"] for spec in (alone, both))
    assert sorted(twice) == sorted(f"{scanned.name} · {row}" for row in rows)  # here of the same name, so in the same rows
    missing = page(scanned, "spectra", beside=str(tiny_llama))
    assert "scan it" in missing.error[0].value
    assert "All layers" in texts(missing)


def test_a_scan_that_failed_says_why(tmp_path, tiny_bert):
    import shutil

    from app import jobs

    model = shutil.copytree(tiny_bert, tmp_path / "unplugged")
    key = Checkpoint.open(model).fingerprint
    jobs.start("scan", str(tmp_path / "unplugged" / "elsewhere"), key)  # as if the disk were gone when the scan opened it
    ended("scan", key)
    test = page(model, "spectra")
    assert "unplugged" in test.error[0].value
    assert test.button(key="scan")


def changed_copy(folder, target, change):
    """A copy of a checkpoint with one tensor after another passed through `change` (name, numbers)."""
    import shutil

    from safetensors.numpy import load_file, save_file

    copy = shutil.copytree(folder, target)
    tensors = {name: change(name, numbers) for name, numbers in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_the_update_of_a_fine_tune_is_scanned_and_shown_with_the_command_that_gives_it(tiny_bert, tmp_path):
    from app import jobs
    from loraxs_core.deltas import difference

    kept = "encoder.layer.1.output.dense"
    tuned = changed_copy(
        tiny_bert, tmp_path / "tuned", lambda name, numbers: numbers if name.startswith(kept) else 1.25 * numbers
    )
    test = page(tuned, "spectra", minus=tiny_bert)
    assert f"{tuned} minus {tiny_bert} has not been scanned" in healthy(test).info[0].value
    assert test.query_params["minus"] == str(tiny_bert)

    key = difference(Checkpoint.open(tuned), Checkpoint.open(tiny_bert)).fingerprint
    test.button(key="scan").click().run()
    while jobs.status("scan", key).is_running:
        pass
    healthy(test.run())
    table = test.dataframe[0].value.set_index("name")
    assert table.loc[kept, "sigma_max"] == 0
    assert (table.drop(index=kept)["sigma_max"] > 0).all()
    assert "Nothing but zeros:** layer 1 output.dense" in texts(test)
    shown = "\n".join(code.value for code in test.code)
    assert f"--minus {tiny_bert}" in shown
    assert f"minus='{tiny_bert}'" in shown


def test_a_base_that_has_nothing_in_common_is_one_sentence_and_the_choice_stays(tiny_bert, tiny_llama):
    test = page(tiny_bert, "spectra", minus=tiny_llama)
    assert not test.exception
    assert "no layer of the same name and shape in common" in test.error[0].value
    assert test.selectbox(key=f"minus-{tiny_bert}").value == str(tiny_llama)


def test_fused_projections_are_shown_in_parts_when_asked(fresh_page, tiny_gpt2):
    from analyzers.spectra import scan

    scan(Checkpoint.open(tiny_gpt2), parts=True)
    test = healthy(page(tiny_gpt2, "spectra"))
    whole = len(test.dataframe[0].value)
    test.toggle(key=f"parts-{tiny_gpt2}").set_value(True).run()
    names = healthy(test).dataframe[0].value["name"].tolist()
    assert len(names) == whole + 3 * 2
    assert "transformer.h.0.attn.c_attn[query]" in names
    assert "--parts" in "\n".join(code.value for code in test.code)


def test_a_fast_scan_is_said_on_screen_and_in_the_command(fresh_page, tmp_path):
    import json

    import numpy as np
    from safetensors.numpy import save_file

    from analyzers.spectra import scan

    (tmp_path / "wide").mkdir()
    wide = np.random.default_rng(0).standard_normal((700, 1500)).astype(np.float32)
    save_file({"encoder.layer.0.output.dense.weight": wide}, tmp_path / "wide" / "model.safetensors")
    (tmp_path / "wide" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    error = scan(Checkpoint.open(tmp_path / "wide"), fast=True).error
    assert error > 1e-8
    test = healthy(page(tmp_path / "wide", "spectra"))
    assert f"within {error:.0e} of the largest" in texts(test)
    assert "--fast" in "\n".join(code.value for code in test.code)


def test_with_a_plan_the_command_and_the_code_give_the_planned_ranks_too(scanned):
    plan = make_plan(Checkpoint.open(scanned), "role", budget=Budget.like_rank(4))
    plan.save(state._plan_file("abc"))
    test = healthy(page(scanned, "spectra", plan="abc"))
    command, python = test.code[0].value, test.code[1].value
    assert f"--plan {state._plan_file('abc')}" in command
    names = {}
    exec(compile(python.replace("print(spectra.frame", "shown = (spectra.frame"), "snippet", "exec"), names)
    assert names["shown"]["rank"].tolist() == test.dataframe[0].value["rank"].tolist()


def test_the_table_is_downloaded_as_the_command_writes_it(scanned, tmp_path, monkeypatch):
    from analyzers.spectra import cached
    from app import components
    from app.tables import write_table

    given = {}
    monkeypatch.setattr(components, "download_csv", lambda frame, name, **options: given.update({name: frame}))
    healthy(page(scanned, "spectra"))
    for name, frame in {"page.csv": given["layers.csv"], "command.csv": cached(Checkpoint.open(scanned)).frame()}.items():
        write_table(frame, tmp_path / name)
    assert (tmp_path / "page.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()


def test_a_cancelled_scan_says_that_what_it_did_is_kept(tiny_bert):
    from app import jobs

    key = Checkpoint.open(tiny_bert).fingerprint
    jobs.start("scan", str(tiny_bert), key)
    jobs.cancel("scan", key)
    ended("scan", key)
    said = texts(healthy(page(tiny_bert, "spectra")))
    assert "was cancelled" in said
    assert "are kept" in said


def test_a_damaged_layer_is_named_and_the_others_are_shown(fresh_page, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    from analyzers.spectra import scan

    weights = {f"model.layers.{index}.mlp.up_proj.weight": np.eye(8, dtype=np.float32) for index in range(3)}
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = np.nan
    (tmp_path / "model").mkdir()
    save_file(weights, tmp_path / "model" / "model.safetensors")
    scan(Checkpoint.open(tmp_path / "model"))
    test = page(tmp_path / "model", "spectra")
    assert not test.exception
    assert "no spectrum, in 1 of 3 weights: layer 1 mlp.up_proj." in test.error[0].value
    assert len(test.dataframe[0].value) == 2
