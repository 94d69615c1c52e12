"""Names that somebody else chose, with marks that each place would act on: shown as text on the page, in figures, files and terminals."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from analyzers.spreadsheet import csv
from app import text
from tests.app.pages import go, page

IMAGE = "![x](http://evil.example/a.png)"
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


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory):
    """A small BERT with names of that kind: its folder, and a tensor of its own."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "![x](data:,) :red[model] $x$"
    BertModel(
        BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    ).save_pretrained(folder)
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    tensors = {
        f"=cmd|{IMAGE}\x1b[31m\u202e <b>x</b> %{{y}} $x$ :red[y].weight": values,
        "[a](http://evil.example).weight": 2 * values,
    }
    save_file(tensors, folder / "extra.safetensors")
    names = dict.fromkeys(tensors, "extra.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        names |= dict.fromkeys(file.keys(), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


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


MARKS = "![x](data:,) :red[y] $x$ \x1b[31m\u202e <b>b</b>"


@pytest.fixture
def hostile_run(tiny_bert, fresh_page):
    """A run whose folder, model, plan, failure, last word and log hold such marks."""
    from analyzers.compare import RunFolder, SweepSettings
    from analyzers.ranks import Budget, make_plan
    from loraxs_core.checkpoint import Checkpoint
    from loraxs_core.paths import data_dir

    folder = data_dir("runs") / MARKS.replace("/", "!")
    model = tiny_bert.parent / MARKS.replace("/", "!")
    if not model.exists():
        model.symlink_to(tiny_bert)
    plan = make_plan(Checkpoint.open(tiny_bert), "uniform", budget=Budget.like_rank(2))
    settings = SweepSettings(str(model), methods=("lora-xs", "lora"), plans={MARKS: plan, "x" * 250: plan}, steps=2)
    run = RunFolder(RunFolder.create(settings).path.rename(folder))  # a name that only somebody else gives
    config = json.loads(run.config_path.read_text())
    config["settings"]["model"] = str(model)  # as it was typed, not where the link leads
    run.config_path.write_text(json.dumps(config))
    with run.working() as writer:
        for trial in run.settings.trials():
            (run.path / "trials" / trial.id).mkdir(parents=True)
            writer.metric({**trial.about, "kind": "train", "step": 1, "epoch": 0.5, "value": 1.0})
            writer.failure(trial, f"It failed: {MARKS}.")
        writer.log(MARKS)
        writer.last_word(state="failed", error=f"None succeeded: {MARKS}.", message=MARKS)
    return run


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


def finish(run, metric="accuracy") -> None:
    """Gives every trial of `run` that the first plan is of a record, so that there is something to report."""
    numbers = dict.fromkeys(
        ("adapter_bytes", "file_bytes", "seconds", "train_seconds", "svd_seconds", "svd_share", "peak_memory_bytes"), 1.0
    )
    with run.working() as writer:
        for trial in run.settings.trials():
            folder = run.trial_folder(trial.id)
            folder.mkdir(parents=True, exist_ok=True)
            writer.metric({**trial.about, "kind": "train", "step": 1, "epoch": 0.5, "value": 1.0})
            record = {**trial.about, **numbers, "rank": trial.rank, "metric": metric, "score": 0.5, "validation_score": 0.5,
                      "adapter_parameters": 9, "head_parameters": 3, "state": "done", "error": None}  # fmt: skip
            (folder / "result.json").write_text(json.dumps(record))
        writer.last_word(state="done")


def made_of(html: str) -> list[tuple]:
    """The tags of a page with their attributes, in order."""
    from html.parser import HTMLParser

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, attrs))

    reader = Tags()
    reader.feed(html)
    return reader.found


@pytest.fixture
def reported(hostile_model, hostile_run):
    """Sessions of a model, a plan and a run with names of that kind, and of the same with harmless names."""
    import dataclasses

    from analyzers.compare import RunFolder, SweepSettings
    from analyzers.ranks import Budget, make_plan
    from analyzers.spectra import scan
    from app.session_report import Session
    from loraxs_core.checkpoint import Checkpoint
    from loraxs_core.paths import data_dir

    checkpoint = Checkpoint.open(hostile_model)
    spectra = scan(checkpoint)
    plan = make_plan(checkpoint, "uniform", budget=Budget.like_rank(2))
    finish(hostile_run)
    sessions = []
    for name in (MARKS, "plain"):
        if name == "plain":
            plans = {"plain": plan, "other": plan}
            settings = dataclasses.replace(hostile_run.settings, model="plain", plans=plans)
            run = RunFolder.create(SweepSettings(**vars(settings)), data_dir("runs") / "plain")
            finish(run)
        else:
            run = hostile_run
        words = {"strategy": name, "evidence": f"{name}.", "notes": (name,), "model": name, "requested": name}
        own = checkpoint if name == MARKS else dataclasses.replace(checkpoint, name=name)
        sessions.append(Session(own, spectra, dataclasses.replace(plan, **words), run))
    return sessions


def test_the_report_of_a_session_is_built_alike_whatever_things_are_called(reported):
    """HTML: the same tags with the same attributes as with harmless names. Markdown: no links, images or HTML."""
    from markdown_it import MarkdownIt

    hostile, plain = (session.html() for session in reported)
    assert "Comparison" in hostile
    assert "$x$" in hostile
    assert made_of(hostile) == made_of(plain)
    for mark in ("\x1b", "\u202e"):
        assert mark not in hostile
    parser = MarkdownIt("commonmark", {"linkify": False}).enable(["strikethrough", "table"])
    kinds = []
    for session in reported:
        text = session.markdown()
        assert not {"\x1b", "\u202e"} & set(text)
        found = parser.parse(text)
        inside = [
            token for block in found for token in block.children or [] if token.type not in ("code_inline", "text", "softbreak")
        ]
        assert not inside, [token.content for token in inside][:5]
        kinds.append([block.type for block in found])
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", ["model", "spectra", "plan", "cost", "adapters", "compare"])
def test_every_page_gives_that_report(hostile_model, reported, monkeypatch, name):
    import streamlit as st

    given, button = {}, st.download_button
    monkeypatch.setattr(
        st,
        "download_button",
        lambda *said, **named: given.__setitem__(named.get("key"), named.get("data")) or button(*said, **named),
    )
    test = page(hostile_model, name)
    assert not test.exception, test.exception[0].message
    html, text = given["take-report.html"]().decode(), given["take-report.md"]().decode()
    plain = {tag for tag, _ in made_of(reported[1].html())}
    assert {tag for tag, _ in made_of(html)} <= plain
    assert "$x$" in html
    assert not {"\x1b", "\u202e"} & set(html + text)
    assert "![x](data:" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


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


def test_figures_and_the_report_show_them_as_text(tmp_path):
    from app import charts
    from app.report import Figure, Section, Table, write_report

    name = "<b>x</b><a href='http://evil.example'>y</a> %{y} $x$</script><!--<script>"
    frame = pd.DataFrame(
        {"name": [name], "role": ["other"], "layer": [0], "shape": ["1 x 1"], "rank": [3], "method": ["lora"], "label": [name]}
    )
    drawn = [
        charts.layer_map(frame.assign(sigma_max=1.0), "sigma_max"),
        charts.rank_bars(frame),
        charts.rank_comparison(frame.assign(plan=name)),
        charts.spectrum({name: np.array([2.0, 1.0])}, {name: 1}, overlay={name: np.array([2.0, 1.0])}, overlay_label=name),
        charts.cumulative_energy({name: np.array([2.0, 1.0])}, {name: 1}),
        charts.density(np.array([2.0, 1.0]), (np.array([1.0]), np.array([1.0])), label=name),
        charts.accuracy_against_parameters(frame.assign(parameters=5, score=0.5, low=0.4, high=0.6)),
        charts.storage_bars(frame.assign(bytes=5)),
        charts.training_curves(
            pd.DataFrame(
                {
                    "trial": ["a"],
                    "method": ["lora"],
                    "label": [name],
                    "seed": [0],
                    "learning_rate": [1.0],
                    "kind": ["eval"],
                    "step": [1],
                    "value": [1.0],
                }
            )
        ),
    ]
    for chart in drawn:
        document = chart.to_dict()
        for trace in document["data"]:
            trace.pop("customdata", None) if "<b>x</b>" in str(trace.get("customdata", [[""]])[0][0]) else None
        assert "<b>x" not in str(document)
        assert "%{y} $x$" not in str(document)
        assert "&lt;b&gt;x" in str(document)
    path = write_report(
        tmp_path / "r.html", title=name, summary=name, facts=[(name, name)], footer=name,
        sections=[Section(name, name, [Table([name], [[name]], name), Figure(lambda dark: drawn[1], name)])],
    )  # fmt: skip
    page_text = path.read_text(encoding="utf-8")
    assert "<b>x" not in page_text
    assert page_text.count("<script") == page_text.count("</script>")
    assert "<!--<script" not in page_text
