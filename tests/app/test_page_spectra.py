"""Spectra: before the scan, after it, and when it failed."""

from __future__ import annotations

import pytest

from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_before_the_scan_there_is_a_button_and_what_it_will_do(tiny_bert):
    test = healthy(page(tiny_bert, "spectra"))
    assert "has not been scanned" in test.info[0].value
    assert test.button(key="scan").label == "Scan"


def test_an_architecture_has_no_spectrum_and_says_so():
    test = healthy(page("roberta-large", "spectra"))
    assert "no spectrum" in test.info[0].value


def test_shows_every_layer_and_words(scanned):
    test = healthy(page(scanned, "spectra"))
    table = test.dataframe[0].value
    assert len(table) == len(Checkpoint.open(scanned).linear)
    assert {"stable_rank", "effective_rank", "rank_90", "sigma_max"} <= set(table)
    assert "keeps 90 % of its energy in" in texts(test)
    assert len(test.get("plotly_chart")) >= 3


def test_a_click_on_the_map_shows_that_layer(scanned):
    name = "encoder.layer.1.output.dense"
    selection = {"points": [{"customdata": [name]}], "point_indices": [0], "box": [], "lasso": []}
    test = healthy(page(scanned, "spectra", map={"selection": selection}))
    assert name in test.multiselect(key="layers").value


def test_an_overlay_that_was_not_scanned_is_one_sentence(scanned, tiny_llama):
    test = page(scanned, "spectra", overlay=str(tiny_llama))
    assert not test.exception
    assert "scan it" in test.error[0].value
    assert "All layers" in texts(test)  # the rest of the page is still there


def test_a_scan_that_failed_says_why(tmp_path, tiny_bert):
    import shutil

    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(tiny_bert, tmp_path / "nan")
    tensors = load_file(broken / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    from app import jobs

    key = Checkpoint.open(broken).fingerprint
    jobs.start("scan", str(broken), key)
    while jobs.status("scan", key).is_running:
        pass
    test = page(broken, "spectra")
    assert "encoder.layer.0.output.dense" in test.error[0].value
    assert test.button(key="scan")
