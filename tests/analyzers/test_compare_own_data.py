"""Data of the user's own: every kind of file through one door, columns by name, what is inferred, what is refused."""

from __future__ import annotations

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from analyzers.compare import SweepSettings, preview
from analyzers.compare.tasks import open_task
from loraxs_core.errors import SettingsError

ROWS = [{"review": f"film number {index}", "stars": index % 3} for index in range(60)]


@pytest.fixture(autouse=True)
def _own(own_folders):
    """No test leaves anything in the user's cache."""


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parts(task):
    splits = task.read()
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


def test_the_same_rows_are_the_same_task_in_every_kind_of_file(tmp_path):
    jsonl = written(tmp_path / "film.jsonl", ROWS)
    (tmp_path / "film.json").write_text(json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "film.parquet")
    (tmp_path / "film.csv").write_text("review,stars\n" + "".join(f"{row['review']},{row['stars']}\n" for row in ROWS))
    columns = {"text": "review", "label": "stars"}
    sources = [jsonl, *(str(tmp_path / f"film.{end}") for end in ("json", "parquet", "csv"))]
    tasks = [open_task(f"data:{source}", columns) for source in sources]
    assert {(task.kind, task.classes, task.metric) for task in tasks} == {("classification", ("0", "1", "2"), "accuracy")}
    assert len({task.read().train for task in tasks}) == 1
    assert parts(tasks[0]) == [48, 6, 6]


def test_a_folder_of_files_called_after_their_splits(tmp_path):
    for name, count in {"train": 40, "dev": 6, "test": 8}.items():
        written(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}", "label": f"c{n % 2}"} for n in range(count)])
    assert parts(open_task(f"data:{tmp_path}")) == [40, 6, 8]
    (tmp_path / "test.jsonl").unlink()
    task = open_task(f"data:{tmp_path}")
    assert parts(task)[1:] == [4, 6], "scored on the validation split, a tenth of the training split is chosen on"
    assert "Scored on the validation split" in task.remark


def test_a_saved_dataset_names_its_classes_and_an_unlabelled_test_split_is_not_scored(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})

    def part(name, labels):
        rows = [{"text": f"{name} {n}", "label": label} for n, label in enumerate(labels)]
        return Dataset.from_list(rows, features=features)

    saved = DatasetDict(
        train=part("t", [0, 1] * 20), validation=part("v", [0, 1] * 5), test=part("x", [-1] * 10)
    )  # fmt: skip
    saved.save_to_disk(tmp_path / "rte")
    task = open_task(f"data:{tmp_path / 'rte'}")
    assert task.classes == ("no", "yes")
    assert "The test split has no labels and is not scored." in task.remark
    assert {example.text[0] for example in task.read().test} == {"v"}


def test_decoders_on_own_data_train_at_the_rates_of_language_modelling(tmp_path):
    from analyzers.compare import RunFolder, SweepSettings
    from analyzers.methods import METHODS
    from tests.analyzers.compare_helpers import tiny_decoder

    source = tmp_path / "talk.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"one {n}", "completion": "two"}) + "\n" for n in range(40)))
    settings = SweepSettings(str(tiny_decoder(tmp_path / "model")), f"data:{source}", methods=("lora", "lora-xs"), rank=4)
    run = RunFolder.create(settings, tmp_path / "run")
    rates = {trial.method: trial.learning_rate for trial in run.settings.trials()}
    assert rates == {name: METHODS[name].rate(causal=True).value for name in ("lora", "lora-xs")}
    source.unlink()  # what a run was made of may go; its trials stay the same
    assert RunFolder(run.path).settings.trials() == run.settings.trials()


def test_decoders_read_prompts_conversations_and_plain_text(tmp_path):
    pairs = written(tmp_path / "pairs.jsonl", [{"prompt": f"{n} + 1 =", "completion": f"{n + 1}"} for n in range(40)])
    task = open_task(f"data:{pairs}")
    assert (task.kind, task.metric) == ("causal", "perplexity")
    assert {example.answer for example in task.read().train} <= {str(n) for n in range(1, 41)}
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "bye"}]
    chat = written(tmp_path / "chat.jsonl", [{"messages": turns}] * 30)
    example = open_task(f"data:{chat}").read().train[0]
    assert [turn["role"] for turn in example.messages] == ["user", "assistant"], "what follows the last answer is not learnt"
    (tmp_path / "book.txt").write_text("\n\n".join(f"Paragraph {n}\nof a book." for n in range(20)))
    splits = open_task(f"data:{tmp_path / 'book.txt'}").read()
    assert [example.text.split()[1] for example in splits.test] == ["18", "19"], "a text is cut where it stands"


ALPACA = [{"instruction": f"Double {n}", "input": "" if n % 2 else "in words", "output": "x"} for n in range(40)]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
ASKED = {"role": "user", "content": "Rain?"}


def test_instructions_as_alpaca_has_them_keep_their_input(tmp_path):
    source = written(tmp_path / "alpaca.jsonl", ALPACA)
    form, columns = preview(source).proposed
    assert (form.name, columns) == ("prompts", {"prompt": "instruction", "completion": "output", "context": "input"})
    splits = open_task(f"data:{source}", columns).read()
    texts = {example.text for part in (splits.train, splits.validation, splits.test) for example in part}
    assert {"Double 2\n\nin words", "Double 3"} <= texts
    with pytest.raises(SettingsError, match=r"Perhaps --prompt instruction --completion output --context input\.$"):
        open_task(f"data:{source}")


@pytest.mark.parametrize(
    ("row", "turns", "learnt"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["user a", "assistant b"], 0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]},
         ["user a", "assistant b"], 0),
        ({"prompt": [ASKED, {"role": "assistant", "content": "No."}, ASKED], "completion": [{"role": "assistant", "content": "b"}]},
         ["user Rain?", "assistant No.", "user Rain?", "assistant b"], 3),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, ["user a", "assistant b"], 1),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "3 mm"},
                       {"role": "assistant", "content": "Yes."}]},
         ["user Rain?", "assistant ", "tool 3 mm", "assistant Yes."], 0),
    ],
    ids=["ShareGPT", "content in parts", "TRL's conversational prompts", "a text and a turn", "calls of tools"],
)  # fmt: skip
def test_conversations_as_others_write_them(tmp_path, row, turns, learnt):
    source = written(tmp_path / "chat.jsonl", [row] * 30)
    _, columns = preview(source).proposed
    example = open_task(f"data:{source}", columns).read().train[0]
    assert [f"{turn['role']} {turn['content']}" for turn in example.messages] == turns
    assert example.learnt_from == learnt
    called = [turn["tool_calls"] for turn in example.messages if "tool_calls" in turn]
    assert called == [turn["tool_calls"] for turn in row.get("messages", ()) if "tool_calls" in turn]


@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        (ROWS, {}, r"has no column 'text' \(it has review, stars\); a task needs text and label"),
        (ROWS, {"text": "body"}, r"has no column 'body' for text \(it has review, stars\)"),
        (ROWS, {"text": "review", "sorce": "x"}, "no role 'sorce'"),
        (ROWS[:5], {"text": "review", "label": "stars"}, "has 5 rows"),
        ([*ROWS, {"review": "", "stars": 1}], {"text": "review", "label": "stars"}, "row 61: the field 'review' is empty"),
        ([{"text": "a", "label": None}] * 20 + [{"text": "a", "label": 1.5}] * 40, {}, "20 of the 60 rows"),
        ([{"text": "a", "label": "1e999"}] * 40, {}, "row 1: the label '1e999' is no number"),
        ([{"messages": [{"role": "user", "content": "hi"}]}] * 30, {}, "row 1: no message is the assistant's"),
        ([{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}] * 30, {}, "row 1: a message holds a part of type 'image_url'"),
        ([{"prompt": [ASKED], "completion": [ASKED]}] * 30, {}, "row 1: no message is the assistant's"),
        ([{"prompt": [ASKED], "completion": "b", "context": "c"}] * 30, {}, "row 1: a context goes with a prompt that is text"),
        ([{"text": ["a", "b"], "label": 1}] * 40, {}, "row 1: the field 'text' holds a list; text has to be one text or number"),
        ([{"messages": [{"role": "user", "text": "hi"}]}] * 30, {}, "row 1: each of the messages needs a role and a content"),
    ],
)  # fmt: skip
def test_bad_rows_in_one_sentence(tmp_path, rows, columns, sentence):
    with pytest.raises(SettingsError, match=sentence) as raised:
        open_task(f"data:{written(tmp_path / 'own.jsonl', rows)}", columns)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("cut.jsonl", '{"text": "a", "la', "Cannot read .*cut.jsonl"),
        ("cut.parquet", "no parquet", "Cannot read .*cut.parquet"),
        ("notes.docx", "x", "none of the kinds"),
        ("latin.csv", b"text,label\ncaf\xe9,1\n", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=sentence) as raised:
        open_task(f"data:{tmp_path / name}")
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_what_is_nowhere(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        open_task(f"data:{tmp_path / 'none.jsonl'}")
    with pytest.raises(SettingsError, match=r"Cannot read nobody/has-this: .*; give a file, a folder, or connect"):
        open_task("data:nobody/has-this")
    with pytest.raises(SettingsError, match="STS-B knows its columns"):
        open_task("stsb", {"text": "x"})


def test_a_preview_shows_columns_rows_and_the_metric_that_follows(tmp_path):
    source = written(tmp_path / "film.jsonl", ROWS)
    shown = preview(source)
    assert dict(shown.columns) == {"review": "text", "stars": "number"}
    assert shown.rows[1] == {"review": "film number 1", "stars": "1"}
    assert "no column 'text'" in shown.problem
    shown = preview(source, {"text": "review", "label": "stars"})
    assert (shown.problem, shown.kind, shown.metric_label) == ("", "classification", "accuracy")
    assert dict(shown.roles) == {"text": "review", "label": "stars"}


def test_a_label_of_an_unusual_name_beside_a_text_is_seen(tmp_path):
    rows = [{"review": row["review"], "verdict": ("up", "down")[row["stars"] % 2]} for row in ROWS]
    form, columns = preview(written(tmp_path / "film.jsonl", rows)).proposed
    assert (form.name, columns) == ("labelled", {"text": "review", "label": "verdict"})
    alone = [{"review": row["review"], "id": str(place)} for place, row in enumerate(ROWS)]
    assert preview(written(tmp_path / "alone.jsonl", alone)).proposed[0].name == "text"


def test_a_table_without_words_is_said_to_be_one(tmp_path):
    rows = [{"width": index / 7, "height": index} for index in range(60)]
    columns = {"text": "width", "label": "height"}
    assert (
        "“width”, which is taken for the text, holds numbers alone"
        in preview(written(tmp_path / "a.jsonl", rows), columns).remark
    )
    rows[7]["width"] = "wide"
    assert not preview(written(tmp_path / "b.jsonl", rows), columns).remark


def test_columns_are_kept_in_the_settings(tmp_path):
    source = written(tmp_path / "film.jsonl", ROWS)
    settings = SweepSettings("minilm", f"data:{source}", columns={"text": "review", "label": "stars"})
    again = SweepSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again.check().metric == "accuracy"


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.xz"])
@pytest.mark.parametrize("rows", ["null", 'null\n{"text": "a", "label": 1}', '\n \n null {"text": "a", "label": 1}'])
def test_a_row_that_is_null_is_named_and_ends_no_process(tmp_path, ending, rows):
    """pyarrow ends the process with a segmentation fault where it is the first."""
    import gzip
    import lzma

    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(ending[ending.rindex(".") :], lambda given: given)
    (tmp_path / f"rows{ending}").write_bytes(pack(rows.encode()))
    with pytest.raises(SettingsError, match=r"null in place of a row in line [13]"):
        open_task(f"data:{tmp_path / f'rows{ending}'}").read()
    with pytest.raises(SettingsError, match="null in place of a row"):
        open_task(f"data:{tmp_path}").read()


def test_a_row_that_is_null_among_others_is_no_row_of_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\nnull\n{"text": "b", "label": 0}\n')
    with pytest.raises(SettingsError, match="in line 2"):
        open_task(f"data:{tmp_path / 'rows.jsonl'}").read()
