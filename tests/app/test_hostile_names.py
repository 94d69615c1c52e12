"""Names that somebody else chose, with marks that each place would act on: shown as text on the page, in figures, files and terminals."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analyzers.spreadsheet import csv
from app import text
from tests.app.hostile import IMAGE
from tests.app.pages import go, page

HOSTILE = (
    IMAGE,
    "[a link](http://evil.example)",
    "$E=mc^2$",
    ":red[danger]",
    ":smile:",
    ":material/home:",
    "<img src=http://evil.example/b.png>",
    "http://evil.example",
    "www.evil.example",
    "me@evil.example",
    "**bold** and *slanted*",
    "`code` and ``more``",
    "~~gone~~",
    "# heading",
    "a\n\n# heading",
    "a|b",
    "&lt;b&gt;",
    "a -> b",
    "\\[x\\]",
    "_x_",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_what_it_is_given(name):
    """Read by a Markdown parser of its own: nothing but text and code is left, and together they say the name."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"linkify": False}).enable(["strikethrough", "table"])
    for around in ("{}", "Reading {} now", "- {}: a line", "**{}**"):
        found = parser.parse(around.format(text.markdown(name)))
        inside = [token for block in found for token in block.children or []]
        kinds = {token.type for token in inside} - {"strong_open", "strong_close"}
        assert kinds <= {"text", "code_inline"}, (kinds, around)
        assert {block.type for block in found} <= {"paragraph_open", "inline", "paragraph_close"} | {
            f"{kind}_{end}" for kind in ("bullet_list", "list_item") for end in ("open", "close")
        }
        assert text.plain(name) in "".join(token.content for token in inside)
        # What Streamlit looks for in the text that the parser leaves: addresses, shortcodes, directives, maths, arrows.
        left = "".join(token.content for token in inside if token.type == "text").replace("a line", "")
        assert not re.search(r"https?:|www\.|@|:[a-z]|\$|->|--", left)


@pytest.mark.parametrize(
    "name", ["encoder.layer.0.attention.output.dense", "model.layers.3.mlp.down_proj", "my run (2), α/r = 1", "50 %"]
)
def test_usual_names_stay_as_they_are(name):
    assert text.markdown(name) == text.figure(name) == text.plain(name) == name


@pytest.mark.parametrize("sign", ["\x1b[31m", "\x1b]0;title\x07", "\u202e", "\u200b", "\x9b31m", "\r", "\udcff", "\U000e0041"])
def test_what_cannot_be_seen_is_written_out(sign):
    for shown in (text.plain(f"a{sign}b"), text.markdown(f"a{sign}b"), text.figure(f"a{sign}b")):
        assert sign not in shown
        assert re.search(r"a\\+[ux0-9a-zA-Z\\\[;]", shown)


def test_a_terminal_is_told_no_codes(monkeypatch):
    from app import terminal

    for stream in ("out", "err"):
        monkeypatch.setattr(terminal, stream, Console(file=io.StringIO(), force_terminal=False, width=200, emoji=False))
    name = "\x1b]8;;http://evil.example\x07[red]:smile: \u202eright"
    terminal.print_table(name, (name,), [(name,)], note=name)
    terminal.print_text(name)
    terminal.say(name)
    with terminal.progress_bar(name):
        pass
    said = terminal.out.file.getvalue() + terminal.err.file.getvalue()
    assert said.count("[red]:smile:") == 6
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def test_no_cell_of_a_csv_is_a_formula():
    cells = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\n=1", " =1", "＝1", "a=1", "layer.0"]
    read = pd.read_csv(io.StringIO(csv(pd.DataFrame({"=name": cells, "value": np.arange(len(cells)) - 5.0}))))
    assert read["'=name"].tolist() == [f"'{cell}" for cell in cells[:-2]] + cells[-2:]
    assert csv(pd.DataFrame({"name": ["a\r=1", "\r=1"]})) == 'name\n"a\n=1"\n"\'\n=1"\n'
    assert read["value"].tolist() == [*map(float, range(-5, 5))]  # numbers stay numbers


def markdown_of(test) -> list[str]:
    """Every text of the page that Streamlit reads as Markdown: bodies, labels, tooltips, metric values."""
    found: list[str] = []

    def walk(message) -> None:
        for field, value in message.ListFields():
            values = value if field.is_repeated else [value]
            for one in values:
                if field.type == field.TYPE_MESSAGE:
                    if not field.message_type.GetOptions().map_entry:
                        walk(one)
                elif field.type == field.TYPE_STRING and field.name in ("body", "label", "help", "delta", "text", "tooltip"):
                    found.append(one)

    for element in test.main:
        if getattr(element, "proto", None) is not None:
            walk(element.proto)
    return found


@pytest.mark.parametrize("name", ["model", "spectra", "plan", "cost", "adapters"])
def test_the_page_shows_them_as_text(fresh_page, hostile_model, name):
    from analyzers.spectra import scan
    from loraxs_core.checkpoint import Checkpoint

    scan(Checkpoint.open(hostile_model))
    test = page(hostile_model)
    test = test if name == "model" else go(test, name)
    assert not test.exception
    said = markdown_of(test)
    assert any("$x$" in one for one in said), said  # the names are there
    for one in said:
        bare = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", one)  # what is not code
        assert "![" not in bare, one
        assert "](http" not in bare, one
        assert ":red[" not in bare, one
        assert "$x$" not in bare, one
        assert "\x1b" not in one, one
        assert "\u202e" not in one, one


def test_the_compare_page_shows_a_run_as_text(tiny_bert, hostile_run):
    test = page(tiny_bert, "compare")
    assert not test.exception, test.exception[0].message
    said = markdown_of(test)
    assert any("$x$" in one for one in said), said
    for one in said:
        bare = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", one)
        assert not any(mark in bare for mark in ("![", "](data", ":red[", "$x$", "\x1b", "\u202e")), one


def test_the_command_lists_a_run_as_text(hostile_run, capsys):
    from tests.app.test_cli import call

    for words in (["runs"], ["runs", str(hostile_run.path)]):
        code, out, err = call(capsys, *words)
        assert code == 0, err
        assert "\\u001b" in out + err
        assert not {"\x1b", "\u202e"} & set(out + err)


def test_long_names_fit_into_a_folder(tiny_bert, tmp_path, own_folders):
    """A file system takes 255 bytes; a label of 250 letters of three bytes each is one that somebody can give."""
    from analyzers.compare import RunFolder, SweepSettings
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.checkpoint import Checkpoint

    plan = make_plan(Checkpoint.open(tiny_bert), "uniform", budget=Budget.like_rank(2))
    long = tmp_path / ("m" * 250)
    long.symlink_to(tiny_bert)
    csv_file = tmp_path / ("表" * 80 + ".csv")
    csv_file.write_text("text,label\n" + "a,good\nb,bad\n" * 30)
    labels = {"表" * 240: plan, "表" * 239 + "x": plan, "a-b": plan}
    run = RunFolder.create(SweepSettings(str(long), f"csv:{csv_file}", methods=("lora-xs",), plans=labels))
    folders = [run.trial_folder(trial.id) for trial in run.settings.trials()]
    assert len(set(folders)) == 3
    for folder in folders:
        folder.mkdir(parents=True)
    assert folders[2].name == f"lora-xs_a-b_lr{run.settings.trials()[2].learning_rate:g}_seed0"


@pytest.mark.parametrize("name", ["CON", "nul", "a\u202eb", "ends.", "COM1.x"])
def test_a_run_is_not_called_like_a_device(tiny_bert, tmp_path, name):
    from analyzers.compare import RunFolder, SweepSettings
    from loraxs_core.errors import SettingsError

    with pytest.raises(SettingsError, match="choose another name"):
        RunFolder.create(SweepSettings(str(tiny_bert), methods=("lora",)), tmp_path / name)
    assert not (tmp_path / name).exists()
