"""What is typed is in the address or comes back with the next session; what was not typed follows the model."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from app.remembered import remember, remembered
from tests.app.pages import MAIN, go, healthy, page

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_what_is_typed_comes_back_on_every_page_of_the_next_session(tiny_bert):
    test = page(tiny_bert, "compare")
    test.number_input(key="steps").set_value(70).run()
    go(test, "plan").number_input(key="like-rank").set_value(5).run()
    assert go(test, "compare").number_input(key="steps").value == 70
    again = page(tiny_bert, "compare")
    assert again.number_input(key="steps").value == 70
    assert go(again, "plan").number_input(key="like-rank").value == 5
    assert "min-rank" not in remembered("forms", dict)["Plan"]  # nobody typed it


def test_values_of_another_version_do_not_shut_the_page(tiny_bert):
    remember(forms={"Plan": {"like-rank": {"value": 10**9, "words": "1", "shown": False}}})
    test = healthy(page(tiny_bert, "plan"))
    assert test.number_input(key="like-rank").value == 16
    assert healthy(page(tiny_bert, "plan")).number_input(key="like-rank").value == 16  # tomorrow as well


def test_a_rank_typed_for_a_larger_model_is_dropped(tiny_bert, minilm_folder):
    test = page(minilm_folder, "plan")
    test.number_input(key="min-rank").set_value(300).run()
    go(test, "model").text_input(key="folder").set_value(str(tiny_bert))
    test.button(key="FormSubmitter:open-folder-Open").click().run()
    assert go(test, "plan").number_input(key="min-rank").value == 1
    assert not test.exception


def test_what_comes_back_with_a_new_session_is_in_the_address_for_a_reload(tiny_bert):
    entry = {"value": "GPU memory of training", "words": "GPU memory of training", "shown": True}
    first = page(tiny_bert)  # the model of tomorrow, too
    remember(model=str(tiny_bert), forms={"Cost": {"cost-tab": entry}})
    test = AppTest.from_file(str(MAIN), default_timeout=60)
    test._page_hash = first.session_state["pages"]["cost"]._script_hash
    healthy(test.run())
    assert test.query_params["cost-tab"] == "GPU memory of training"


def test_two_tabs_keep_what_is_typed_into_either(tiny_bert):
    first, second = page(tiny_bert, "compare"), page(tiny_bert, "compare")
    first.number_input(key="steps").set_value(70).run()
    second.number_input(key="seeds").set_value(3).run()
    third = page(tiny_bert, "compare")
    assert (third.number_input(key="steps").value, third.number_input(key="seeds").value) == (70, 3)


def test_what_is_typed_before_the_first_run_has_ended_is_no_default(tiny_bert):
    test = page(tiny_bert, "compare")
    test.session_state["forms-defaults"]["steps"] = None  # as a run leaves it that was stopped by the next one
    test.query_params["steps"] = "70"
    test.number_input(key="steps").set_value(70).run()
    assert page(tiny_bert, "compare").number_input(key="steps").value == 70
