"""Model: the inventory of what was opened, and how the chosen model is remembered."""

from __future__ import annotations

import json

import pytest
from streamlit.testing.v1 import AppTest

from analyzers.spectra import scan
from loraxs_core import cache_room
from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import MAIN, ended, healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_shows_the_inventory_at_a_glance(tiny_bert):
    test = healthy(page(tiny_bert))
    metrics = {metric.label: metric.value for metric in test.metric}
    assert metrics["Layers"] == "2"
    assert metrics["of them take adapters"] == "12"
    assert metrics["Stored as"] == "float32"
    roles = test.dataframe[0].value
    assert roles["parameters"].sum() == Checkpoint.open(tiny_bert).parameters
    assert roles["share (%)"].sum() == pytest.approx(100)
    assert "name" not in {column for frame in test.dataframe for column in frame.value}, (
        "the long list is made when it is opened"
    )
    test.session_state["all-matrices"] = True
    listed = next(frame.value for frame in healthy(test.run()).dataframe if "name" in frame.value)
    assert len(listed) == len(Checkpoint.open(tiny_bert).weights)


def test_a_missing_folder_is_one_sentence_and_nothing_is_lost(tiny_bert):
    test = page(tiny_bert)
    test.text_input(key="folder").set_value("/nowhere/at/all")
    test.button(key="FormSubmitter:open-folder-Open").click().run()
    assert (
        "'/nowhere/at/all': no such folder or file is on this machine: / is here, but has no 'nowhere'" in test.error[0].value
    )
    assert "in grey below is still" in texts(test)
    assert test.metric[1].value == "2"  # the model chosen before is still there
    assert test.session_state["model"] == str(tiny_bert)


def test_a_folder_opens_and_stays_after_a_refresh(tiny_bert, tiny_llama):
    test = page(tiny_bert)
    test.text_input(key="folder").set_value(str(tiny_llama))
    test.button(key="FormSubmitter:open-folder-Open").click().run()
    assert healthy(test).subheader[0].value == str(tiny_llama)
    assert test.query_params["model"] == str(tiny_llama)
    again = AppTest.from_file(str(MAIN), default_timeout=60).run()  # a new session without an address
    assert again.session_state["model"] == str(tiny_llama)


def test_a_corrupted_shard_is_one_sentence(tiny_bert, tmp_path):
    import shutil

    broken = shutil.copytree(tiny_bert, tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    test = page(broken)
    assert not test.exception
    assert "model.safetensors" in test.warning[0].value


def test_an_architecture_without_weights_says_what_it_is_good_for():
    test = healthy(page("roberta-large"))
    assert "without weights" in texts(test)
    assert {metric.label: metric.value for metric in test.metric}["Layers"] == "24"


def test_tied_weights_are_explained(tiny_gpt2):
    assert "Tied weights" in texts(healthy(page(tiny_gpt2)))


def test_the_command_that_reproduces_the_view_is_shown(tiny_bert):
    assert f"loraxs inspect {tiny_bert}" in [code.value for code in page(tiny_bert).code]


def test_choosing_from_the_catalogue_lays_the_old_plan_aside(tiny_bert):
    test = page("bert-base")
    test.session_state["plan"] = "abc"
    test.selectbox(key="catalogue-bert-base").set_value("roberta-large").run()
    healthy(test)
    assert test.session_state["model"] == "roberta-large"
    assert test.session_state["plan"] is None


def test_the_last_model_file_may_be_broken(own_folders, tiny_bert):
    from loraxs_core.paths import data_dir

    (data_dir() / "page.json").write_text("[1")
    assert healthy(page(tiny_bert)).session_state["model"] == str(tiny_bert)


def test_choosing_writes_the_last_model(tiny_bert):
    from loraxs_core.paths import data_dir

    test = page("bert-base")
    test.selectbox(key="catalogue-bert-base").set_value("roberta-large").run()
    assert json.loads((data_dir() / "page.json").read_text())["model"] == "roberta-large"


def test_a_hub_model_can_be_fetched_whole_or_as_an_architecture(fresh_page):
    test = healthy(page("someone/unknown"))
    assert "not in the hub's cache" in test.warning[0].value
    assert test.button(key="download").label == "Download someone/unknown"
    test.button(key="download-config").click().run()
    ended("fetch", "someone/unknown")
    test.run()
    assert not test.exception
    assert "cannot be fetched from the hub" in test.error[0].value  # the tests are offline
    assert test.button(key="download-config")


def test_a_config_alone_serves_as_an_architecture(fresh_page, tiny_bert, tmp_path):
    import shutil

    shutil.copy(tiny_bert / "config.json", tmp_path)
    test = healthy(page(tmp_path))
    assert "not its weights" in texts(test)
    metrics = {metric.label: metric.value for metric in test.metric}
    assert metrics["of them take adapters"] == "12"


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 300, "a\x00b"])
@pytest.mark.parametrize("where", ["model", "adapters"])
def test_a_name_that_cannot_be_a_file_s_is_one_sentence_and_nothing_to_download(name, where):
    test = page(name, where)
    assert not test.exception
    assert "There is no model" in [*test.warning, *test.error][0].value
    assert not [button for button in test.button if "ownload" in button.label]


@pytest.mark.parametrize("where", ["model", "spectra", "plan", "cost", "compare"])
def test_a_model_that_cannot_be_opened_is_the_answer_and_another_one_click_away(tmp_path, where):
    test = page(tmp_path / "gone", where)
    assert not test.exception
    if where != "compare":  # which answers about its runs
        assert "cannot be opened" in test.header[0].value
    if where != "model":
        assert "Choose another model" in [link.label for link in test.get("page_link")]


def test_what_is_no_id_of_the_hub_is_not_chosen(tiny_bert):
    test = page(tiny_bert, source="hub")
    test.text_input(key="hub-id").set_value("my model")
    test.button(key="FormSubmitter:open-hub-id-Open or download").click().run()
    assert "owner/name" in test.error[0].value
    assert test.session_state["model"] == str(tiny_bert)


def test_a_path_with_a_space_is_quoted_in_the_command(tiny_bert, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_bert, tmp_path / "my model")
    assert f"loraxs inspect '{folder}'" in [code.value for code in healthy(page(folder)).code]


def test_what_is_kept_is_listed_cleared_and_limited(own_folders, tiny_bert):
    """A corner of the page: what the cache holds by kind, and how to be rid of it."""
    scan(Checkpoint.open(tiny_bert))
    test = page(tiny_bert)
    assert not any(button.key == "kept-clear" for button in test.button)  # nothing is walked before somebody asks
    test.toggle(key="kept").set_value(True).run()
    listed = next(frame.value for frame in healthy(test).dataframe if "last used" in frame.value)
    assert set(listed["kind"]) == {"spectra"}
    assert listed["size (bytes)"].sum() == sum(item.bytes for item in cache_room.items()) > 0
    test.text_input(key="kept-most").set_value("a lot")
    test.button(key="FormSubmitter:kept-limit-Set").click().run()
    assert "'a lot' is no size" in test.error[0].value
    test.text_input(key="kept-most").set_value("5GB")
    test.button(key="FormSubmitter:kept-limit-Set").click().run()
    assert cache_room.limit() == 5 * 10**9
    healthy(test).button(key="kept-clear").click().run()
    assert "Removed" in healthy(test).success[0].value
    assert cache_room.items() == []
