"""Tables that other programs wrote: CSV as spreadsheets export it, and files that make no task."""

from __future__ import annotations

import gzip

import pytest

from analyzers.compare.tasks import open_task
from analyzers.compare.tasks.tables import read_table
from loraxs_core.errors import SettingsError
from tests.analyzers.compare_helpers import labelled, written


@pytest.fixture(autouse=True)
def _own(own_folders):
    """No test leaves anything in the user's cache."""


def test_csv_files_of_others(tmp_path):
    """A byte order mark, quoted line ends, a field of a megabyte, gzip, names with brackets."""
    body = "text,label\r\n" + "".join(f'"line {n}\nand, another",{n % 2}\r\n' for n in range(60)) + f'"{"x" * 1_000_000}",1\r\n'
    content = b"\xef\xbb\xbf" + body.encode()
    (tmp_path / "own [1].csv").write_bytes(content)
    (tmp_path / "own.csv.gz").write_bytes(gzip.compress(content))
    tasks = [open_task(f"data:{tmp_path / name}") for name in ("own [1].csv", "own.csv.gz")]
    assert len({task.read().train for task in tasks}) == 1
    assert (
        max(len(example.text) for part in vars(tasks[0].read()).values() if isinstance(part, tuple) for example in part)
        == 1_000_000
    )
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(content)[:-40])
    with pytest.raises(SettingsError, match=r"Cannot read .*cut\.csv\.gz"):
        open_task(f"data:{tmp_path / 'cut.csv.gz'}")
    brackets = written(tmp_path / "rows [a*].jsonl", labelled(60))
    assert len(read_table(str(brackets)).parts[""]) == 60
    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + brackets.read_bytes())
    assert len(open_task(f"data:{marked}").read().train) == 48


def spreadsheet(separator, label=lambda n: str(n % 2), head="text{0}label", end="\n", rest=""):
    rows = (f'"Film {n}, well; yes"{separator}{label(n)}{rest}{end}' for n in range(60))
    return head.format(separator) + rest + end + "".join(rows)


@pytest.mark.parametrize(
    ("name", "text", "kind", "remark"),
    [
        ("own.csv", "\ufeff" + spreadsheet(";", end="\r\n"), "classification", ""),
        ("own.csv", "sep=;\r\n" + spreadsheet(";", end="\r\n"), "classification", ""),
        ("own.csv", spreadsheet("\t"), "classification", ""),
        ("own.tsv", spreadsheet("\t"), "classification", ""),
        ("own.csv", spreadsheet("|"), "classification", ""),
        ("own.csv", spreadsheet(",", head=" text {0} label"), "classification", ""),
        ("own.csv", spreadsheet(",", rest=",,"), "classification", ""),
        ("own.csv", "\n\n" + spreadsheet(",", end="\n\n"), "classification", ""),
        ("own.csv", spreadsheet(";", lambda n: f"{n % 5},{n % 7}"), "regression", "The comma in labels such as 0,0 is read as the decimal point."),
        ("own.csv", spreadsheet(",", head="text{0}sentiment"), "causal", "--label sentiment makes “sentiment” its label."),
    ],
)  # fmt: skip
def test_spreadsheets_as_they_are_exported(tmp_path, name, text, kind, remark):
    (tmp_path / name).write_bytes(text.encode())
    task = open_task(f"data:{tmp_path / name}")
    assert task.kind == kind
    assert remark in task.remark
    splits = task.read()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 60
    assert {example.text.partition(" ")[2].partition(",")[2] for example in splits.train} == {" well; yes"}
    if kind == "regression":
        assert {round(example.label % 1, 3) for example in splits.train} == {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("own.csv", "", r"own\.csv is empty\."),
        ("own.jsonl", "", r"own\.jsonl is empty\."),
        ("own.csv", "text,label\na,1\n", "has 1 row; a comparison needs"),
        ("own.csv", ",,label\n" + "a,b,1\n" * 40, "several columns without a name"),
        ("own.csv", "text,label\n" + "a,\n" + "b,good\n" * 40, "is empty; label the row or leave it out"),
        ("own.csv.zip", "PK", "unpack it first"),
        ("own.csv", spreadsheet(",", lambda n: f'"{n % 5},5"'), "write it as a plain number"),
    ],
)
def test_files_that_make_no_task_are_one_sentence(tmp_path, capfd, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=sentence) as raised:
        open_task(f"data:{tmp_path / name}")
    assert "\n" not in str(raised.value)
    assert not capfd.readouterr().err
