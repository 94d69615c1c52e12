"""The door for the user's own data on the Compare page: found, previewed, columns chosen, and the command that reads the same."""

from __future__ import annotations

import json

import pytest

from analyzers.compare import SweepSettings, keep_data, preview
from app.panels import own_data
from app.remembered import remember
from loraxs_core.errors import SettingsError
from tests.app.pages import healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")
ROWS = [
    {"id": f"row {index}", "review": f"film number {index} was long", "stars": "good" if index % 2 else "bad"}
    for index in range(60)
]


@pytest.fixture
def film(tmp_path):
    file = tmp_path / "film.csv"
    file.write_text("id,review,stars\n" + "".join(",".join(row.values()) + "\n" for row in ROWS))
    return file


def test_a_bare_path_is_previewed_with_columns_inferred_and_its_metric(tiny_bert, film):
    test = healthy(page(tiny_bert, "compare", task=str(film)))
    rows = next(table.value for table in test.dataframe if "review" in table.value)
    assert rows["review"][0] == "film number 0 was long"
    assert test.selectbox(key="data-text").value == "review"
    assert test.selectbox(key="data-label").value == "stars"
    said = texts(test)
    assert "60 rows" in said
    assert "scored by **accuracy**" in said
    command = next(code.value for code in test.code if "loraxs compare" in code.value)
    assert f"--task data:{film}" in command
    assert "--text review --label stars" in command
    assert not test.button(key="start").disabled


def test_other_columns_can_be_chosen_and_another_file_takes_its_own(tiny_bert, film, tmp_path):
    other = tmp_path / "pairs.jsonl"
    other.write_text("".join(json.dumps({"text": f"a {n}", "label": n % 2}) + "\n" for n in range(40)))
    remember(**{"own-data": [f"data:{other}"]})  # as one that was read before
    test = healthy(page(tiny_bert, "compare", task=str(film)))
    test.selectbox(key="data-text").set_value("id").run()
    assert "--text id --label stars" in healthy(test).code[0].value
    test.selectbox(key="task").set_value(f"data:{other}").run()
    assert healthy(test).selectbox(key="data-text").value == "text"
    assert "--text" not in test.code[0].value, "columns called after their roles need no words"


def test_conversations_are_seen_as_such(tiny_llama, tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    file = tmp_path / "chat.jsonl"
    file.write_text((json.dumps({"conversations": turns}) + "\n") * 30)
    test = healthy(page(tiny_llama, "compare", task=str(file)))
    assert test.selectbox(key="data-messages").value == "conversations"
    assert "--messages conversations" in test.code[0].value
    assert "perplexity" in texts(test)


def test_an_error_is_one_sentence_and_the_form_stays(tiny_bert, tmp_path):
    (tmp_path / "few.csv").write_text("text,label\na,1\n")
    test = page(tiny_bert, "compare", task=str(tmp_path / "few.csv"), steps=7)
    assert not test.exception
    assert "has 1 row;" in texts(test)
    assert test.number_input(key="steps").value == 7
    assert test.button(key="start").disabled
    test = page(tiny_bert, "compare", task="/no/such/file.csv", steps=7)
    assert "/no/such/file.csv" in test.error[0].value
    assert "\n" not in test.error[0].value
    assert test.number_input(key="steps").value == 7


def test_a_dropped_file_becomes_the_task_and_a_bad_one_is_a_sentence(tiny_bert, film):
    test = healthy(page(tiny_bert, "compare"))
    test.file_uploader(key="data-file").upload("film.csv", film.read_bytes(), "text/csv").run()
    task = healthy(test).session_state["task"]
    assert task.startswith("data:")
    assert task.endswith("film.csv")
    assert f"film.csv  ·  {task}" in test.selectbox(key="task").options  # a list cuts the end
    assert test.selectbox(key="data-label").value == "stars"
    test.file_uploader(key="data-file").upload("none.csv", b"", "text/csv").run()
    assert "none.csv is empty" in test.error[0].value
    assert test.session_state["task"] == task


def test_what_is_dropped_is_kept_once_under_its_content(film):
    first = keep_data("C:\\films\\my film.csv", film.read_bytes())
    assert first == keep_data("my film.csv", film.read_bytes())
    assert first.read_bytes() == film.read_bytes()
    assert first.name == "my-film.csv"
    first.write_text("spoilt")
    assert keep_data("my film.csv", film.read_bytes()).read_bytes() == film.read_bytes()
    assert keep_data("a.jsonl.gz", b"x").name == "a.jsonl.gz"
    with pytest.raises(SettingsError, match=r"notes\.docx is none of the kinds"):
        keep_data("notes.docx", b"x")


def test_settings_take_a_bare_path_and_go_back_into_the_form(tiny_bert, film):
    settings = SweepSettings(str(tiny_bert), str(film), columns={"text": "review", "label": "stars"})
    assert settings.task == f"data:{film}"
    values = own_data.values(str(film), settings.columns)
    test = healthy(page(tiny_bert, "compare", task=settings.task, **values))
    assert test.selectbox(key="data-form").value == "labelled"
    assert "--text review --label stars" in test.code[0].value


def test_what_is_proposed_makes_a_task(film):
    form, columns = preview(str(film)).proposed
    assert (form.name, columns) == ("labelled", {"text": "review", "label": "stars"})
    assert preview(str(film), columns).metric == "accuracy"
