"""Folders as the hub lays them out and as other people keep them: configurations, shards, splits of other names, hidden labels, odd fields."""

from __future__ import annotations

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from analyzers.compare.tasks import TASKS, open_task
from loraxs_core.errors import SettingsError
from tests.analyzers.compare_helpers import labelled, written

TEXT, WHOLE = Value("string"), Value("int32")
YES_NO, ENTAILS = ClassLabel(names=["False", "True"]), ClassLabel(names=["entailment", "neutral", "contradiction"])


@pytest.fixture(autouse=True)
def _own(own_folders):
    """No test leaves anything in the user's cache."""


def rows(count, features, **columns):
    made = [{name: give(n) for name, give in columns.items()} for n in range(count)]
    return Dataset.from_list(made, features=Features(features))


def glue_parts(name):
    """A configuration of nyu-mll/glue: its columns, its splits, the test split's labels hidden."""
    columns = {
        "cola": (("sentence",), ClassLabel(names=["unacceptable", "acceptable"])),
        "mnli": (("premise", "hypothesis"), ENTAILS),
        "stsb": (("sentence1", "sentence2"), Value("float32")),
        "sst2": (("sentence",), ClassLabel(names=["negative", "positive"])),
    }
    texts, label = columns[name]
    features = {**dict.fromkeys(texts, TEXT), "label": label, "idx": WHOLE}
    splits = (
        ["validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
        if name == "mnli"
        else ["validation", "test"]
    )
    classes = getattr(label, "num_classes", 5)

    def part(split, count):
        def give(n):
            return -1 if split.startswith("test") else n % classes

        made = {text: lambda n, text=text: f"{split} {text} {n}" for text in texts}
        return rows(count, features, **made, label=give, idx=lambda n: n)

    return {"train": part("train", 60), **{split: part(split, 12) for split in splits}}


def boolq_parts():
    features = {"question": TEXT, "passage": TEXT, "idx": WHOLE, "label": YES_NO}

    def part(split, hidden=False):
        return rows(
            40,
            features,
            question=lambda n: f"{split} {n}",
            passage=lambda n: "p",
            idx=lambda n: n,
            label=lambda n: -1 if hidden else n % 2,
        )

    return {"train": part("train"), "validation": part("validation"), "test": part("test", hidden=True)}


def piqa_parts():
    features = {"goal": TEXT, "sol1": TEXT, "sol2": TEXT, "label": ClassLabel(names=["0", "1"])}

    def part(split, hidden=False):
        return rows(
            40,
            features,
            goal=lambda n: f"{split} {n}",
            sol1=lambda n: "a",
            sol2=lambda n: "b",
            label=lambda n: -1 if hidden else n % 2,
        )

    return {"train": part("train"), "validation": part("validation"), "test": part("test", hidden=True)}


def arc_parts():
    features = {"id": TEXT, "question": TEXT, "choices": {"text": List(TEXT), "label": List(TEXT)}, "answerKey": TEXT}

    def part(split):
        choices = {"text": ["ice", "stone"], "label": ["A", "B"]}
        return rows(
            30, features, id=str, question=lambda n: f"{split} {n}", choices=lambda n: choices, answerKey=lambda n: "AB"[n % 2]
        )

    return {name: part(name) for name in ("train", "validation", "test")}


def gsm8k_parts():
    features = {"question": TEXT, "answer": TEXT}
    return {
        name: rows(40, features, question=lambda n, name=name: f"{name} {n}?", answer=lambda n: f"so\n#### {n}")
        for name in ("train", "test")
    }


def repository(root, configurations, kind):
    """`configurations` (name -> splits; "" for the only one) as a repository of the hub has them. kind: ``parquet`` in folders,
    ``card`` (folders that a README.md names), ``refs`` (the hub's own conversion: a folder a split), ``saved`` by `datasets`."""
    root.mkdir(parents=True)
    card = []
    for name, parts in configurations.items():
        folder = root / name if name else root / ("" if kind == "saved" else "data")
        if kind == "saved":
            DatasetDict(parts).save_to_disk(str(folder))
            continue
        for split, part in parts.items():
            inside = folder / split if kind == "refs" else folder
            inside.mkdir(parents=True, exist_ok=True)
            half = len(part) // 2
            for number, shard in enumerate((part.select(range(half)), part.select(range(half, len(part))))):
                stem = f"{number:04d}" if kind == "refs" else f"{split}-{number:05d}-of-00002"
                shard.to_parquet(inside / f"{stem}.parquet")
        paths = [f"  - split: {split}\n    path: {name or 'data'}/{split}-*" for split in parts]
        card.append(f"- config_name: {name or 'default'}\n  data_files:\n" + "\n".join(paths))
    (root / "dataset_infos.json").write_text("{}")
    front = "configs:\n" + "\n".join(card) if kind == "card" else "license: other"
    (root / "README.md").write_text(f"---\n{front}\n---\n# Data\n")
    return str(root)


KINDS = ["parquet", "card", "refs", "saved"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_glue_serves_each_of_its_tasks(tmp_path, kind):
    folder = repository(tmp_path / "glue", {name: glue_parts(name) for name in ("cola", "mnli", "sst2", "stsb")}, kind)
    for name in ("cola", "mnli", "sst2", "stsb"):
        splits = TASKS[name].read(folder, None)
        assert len(splits.train) + len(splits.validation) == 60
        assert len(splits.test) == 12
        assert all(example.text.startswith("validation") for example in splits.test), "labels of the test split are hidden"
        assert all(example.label >= 0 for example in (*splits.train, *splits.test))
    more = TASKS["mnli"].read(folder, None).more
    assert {name: len(part) for name, part in more.items()} == {"mismatched": 12}
    assert {example.text.split()[0] for example in more["mismatched"]} == {"validation_mismatched"}
    assert {example.label for example in TASKS["stsb"].read(folder, None).test} == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_boolq_as_its_makers_publish_it(tmp_path):
    """google/boolq: ``answer``, a truth value, and no test split."""
    for split in ("train", "validation"):
        lines = [{"question": f"{split} {n}", "passage": "p", "answer": n % 2 == 1} for n in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = TASKS["boolq"].read(str(tmp_path), None)
    assert [example.answer for example in splits.test[:2]] == [" no", " yes"]
    assert TASKS["boolq-generation"].read(str(tmp_path), None).test[1].answer == "the correct answer is true"


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_decoders_sets(tmp_path, kind):
    boolq = repository(tmp_path / "super_glue", {"boolq": boolq_parts()}, kind)
    splits = TASKS["boolq"].read(boolq, None)
    assert (splits.test[0].text, splits.test[0].answer) == ("p\nQuestion: validation 0?\nAnswer:", " no")
    assert splits.test[1].answer == " yes"
    assert len(splits.test) == 40, "the test split has no labels and is not scored"
    assert TASKS["boolq-generation"].read(boolq, None).test[1].answer == "the correct answer is true"
    piqa = TASKS["piqa"].read(repository(tmp_path / "piqa", {"": piqa_parts()}, kind), None)
    assert [example.answer for example in piqa.test[:2]] == [" a", " b"]
    assert all(example.text.startswith("Question: validation") for example in piqa.test)
    arc = TASKS["arc-easy"].read(
        repository(tmp_path / "arc", {"ARC-Challenge": boolq_parts(), "ARC-Easy": arc_parts()}, kind), None
    )
    assert [example.answer for example in arc.test[:2]] == [" ice", " stone"]
    assert arc.test[0].text == "Question: test 0\nAnswer:"
    gsm = TASKS["gsm8k"].read(repository(tmp_path / "gsm8k", {"main": gsm8k_parts(), "socratic": gsm8k_parts()}, kind), None)
    assert [len(part) for part in (gsm.train, gsm.validation, gsm.test)] == [36, 4, 40]
    assert gsm.test[3].answer.endswith("#### 3")


def test_a_copy_of_math_holds_every_subject_and_metamath_trains(tmp_path):
    from analyzers.compare.tasks import mathematics

    def part(subject, split):
        features = {"problem": TEXT, "level": TEXT, "type": TEXT, "solution": TEXT}
        given = {
            "problem": lambda n: f"{subject} {split} {n}",
            "level": str,
            "type": str,
            "solution": lambda n: f"$\\boxed{{{n}}}$",
        }
        return rows(10, features, **given)

    subjects = {one: {split: part(one, split) for split in ("train", "test")} for one in mathematics.SUBJECTS}
    splits = TASKS["math"].read(repository(tmp_path / "math", subjects, "parquet"), None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [63, 7, 70]
    assert len({example.text.split()[1] for example in splits.test}) == 7


def test_the_hub_is_read_by_its_own_names(tmp_path, monkeypatch):
    """`datasets` takes a folder of that name for the repository: the way from the hub, without a network."""
    for owner in ("nyu-mll/glue", "openai/gsm8k"):
        parts = (
            {"cola": glue_parts("cola"), "mnli": glue_parts("mnli")}
            if "glue" in owner
            else {"main": gsm8k_parts(), "socratic": gsm8k_parts()}
        )
        repository(tmp_path / owner, parts, "card")
    monkeypatch.chdir(tmp_path)
    from analyzers.compare.tasks import glue

    monkeypatch.setattr(glue, "shared_file", lambda *_: None)
    assert len(TASKS["cola"].read(None, None).test) == 12
    assert list(TASKS["mnli"].read(None, None).more) == ["mismatched"]
    assert len(TASKS["gsm8k"].read(None, None).test) == 40
    task = open_task("data:nyu-mll/glue:cola", {"text": "sentence"})
    assert (task.classes, len(task.read().test)) == (("acceptable", "unacceptable"), 12)


def test_of_several_data_sets_in_a_folder_one_is_named(tmp_path):
    for kind in ("parquet", "card"):
        folder = repository(tmp_path / kind, {name: glue_parts(name) for name in ("cola", "mnli")}, kind)
        with pytest.raises(SettingsError, match=r"holds several data sets, cola, mnli; say which: .*:cola\."):
            open_task(f"data:{folder}", {"text": "sentence"})
        assert "The test split has no labels" in open_task(f"data:{folder}:cola", {"text": "sentence"}).remark
        with pytest.raises(SettingsError, match="has no configuration 'wnli'"):
            open_task(f"data:{folder}:wnli")


def test_a_test_file_without_its_column_of_labels_is_not_scored(tmp_path):
    written(tmp_path / "train.jsonl", labelled(60))
    written(tmp_path / "test.jsonl", [{"text": f"t {n}", "id": n} for n in range(20)])
    task = open_task(f"data:{tmp_path}")
    assert "The test split has no labels and is not scored." in task.remark
    assert [len(part) for part in (task.read().train, task.read().validation, task.read().test)] == [48, 6, 6]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("text,label\n" + "".join(f"NA,{n % 2}\n" for n in range(60)))
    (tmp_path / "csv" / "test.csv").write_text("text,id\n" + "".join(f"t,{n}\n" for n in range(20)))
    task = open_task(f"data:{tmp_path / 'csv'}")
    assert task.read().train[0].text == "NA", "a text is a text, whatever pandas takes for a gap"
    (tmp_path / "csv" / "test.csv").write_text("body,label\n" + "".join(f"t,{n % 2}\n" for n in range(20)))
    with pytest.raises(SettingsError, match="line 2 of test: there is no column 'text' in this split"):
        open_task(f"data:{tmp_path / 'csv'}")


def test_a_part_that_has_no_label_by_its_type_is_left_out_and_counted(tmp_path):
    """As SNLI's sentences on which annotators did not agree: label -1."""
    features = Features({"text": TEXT, "label": ENTAILS})
    made = Dataset.from_list([{"text": f"t {n}", "label": -1 if n % 20 == 3 else n % 3} for n in range(100)], features=features)
    made.to_parquet(tmp_path / "snli.parquet")
    task = open_task(f"data:{tmp_path / 'snli.parquet'}")
    assert task.classes == ("contradiction", "entailment", "neutral")
    assert "5 of 100 rows of snli.parquet have no label and are left out." in task.remark
    null = written(tmp_path / "null.jsonl", [*labelled(60), {"text": "a", "label": None}])
    assert "1 of 61" in open_task(f"data:{null}").remark


@pytest.mark.parametrize(
    ("parts", "counts", "remark"),
    [
        ({"train_sft": 60, "test_sft": 20, "train_gen": 30, "test_gen": 10}, (54, 6, 20), "train_sft and test_sft are used, and train_gen, test_gen left out"),
        ({"train_r1": 60, "dev_r1": 12, "test_r1": 20}, (60, 12, 20), "train_r1 and dev_r1 and test_r1 are used."),
        ({"train": 60, "validation_matched": 12, "validation_mismatched": 14}, (54, 6, 12), "Scored on the validation split"),
        ({"full": 100}, (80, 10, 10), ""),
    ],
    ids=["UltraChat", "ANLI", "MNLI", "one part"],
)  # fmt: skip
def test_splits_of_other_names(tmp_path, parts, counts, remark):
    DatasetDict(
        {name: Dataset.from_list(labelled(count, 1000 * place)) for place, (name, count) in enumerate(parts.items())}
    ).save_to_disk(tmp_path / "data")
    task = open_task(f"data:{tmp_path / 'data'}")
    splits = task.read()
    assert tuple(len(part) for part in (splits.train, splits.validation, splits.test)) == counts
    assert remark in task.remark


def test_splits_that_nobody_knows_are_one_sentence(tmp_path):
    DatasetDict(a=Dataset.from_list(labelled(40)), b=Dataset.from_list(labelled(40))).save_to_disk(tmp_path / "data")
    with pytest.raises(SettingsError, match=r"None of the splits of data \(a, b\) is called train, validation or test"):
        open_task(f"data:{tmp_path / 'data'}")


def test_a_split_column_in_other_words(tmp_path):
    names = ["Training"] * 40 + ["dev"] * 10 + ["TEST"] * 10
    made = [{**row, "split": name} for row, name in zip(labelled(60), names, strict=True)]
    splits = open_task(f"data:{written(tmp_path / 'own.jsonl', made)}").read()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [40, 10, 10]


def test_a_bare_folder_with_its_configuration_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "de").mkdir(parents=True)
    written(tmp_path / "mine" / "de" / "train.jsonl", labelled(60))
    assert open_task("mine:de").name == "data:mine:de"
    with pytest.raises(SettingsError, match="Unknown task 'yours:de'"):
        open_task("yours:de")


def test_text_files_beside_others_are_no_data(tmp_path):
    for name, count in (("training", 60), ("evaluation", 30), ("tst", 30)):
        written(tmp_path / f"{name}.jsonl", labelled(count))
    (tmp_path / "README.txt").write_text("Mine.\n")
    (tmp_path / "labels.txt").write_text("neg\npos\n")
    splits = open_task(f"data:{tmp_path}").read()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [60, 30, 30]


def test_what_changes_in_a_folder_is_read_anew(tmp_path):
    written(tmp_path / "train.jsonl", labelled(60))
    assert len(open_task(f"data:{tmp_path}").read().train) == 48
    written(tmp_path / "train.jsonl", labelled(100))
    assert len(open_task(f"data:{tmp_path}").read().train) == 80


@pytest.mark.parametrize(
    "path",
    ["../other/train-*", "/etc/passwd", "https://example.org/train.parquet", "hf://datasets/a/b/train.jsonl", "~/x.jsonl"],
)
def test_a_card_that_names_files_elsewhere_is_not_followed(tmp_path, path):
    from analyzers.compare.tasks.folders import card_configurations

    written(tmp_path / "own" / "train.jsonl", labelled(60))
    (tmp_path / "own" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {path}\n---\n"
    )
    assert card_configurations(tmp_path / "own") == ()
    assert len(open_task(f"data:{tmp_path / 'own'}").read().train) == 48


def test_nobodys_whole_disk_is_gone_through(tmp_path, monkeypatch):
    from analyzers.compare.tasks import folders

    deep = tmp_path / "a" / "b" / "c" / "d" / "e"
    written(deep / "train.jsonl", labelled(60))
    with pytest.raises(SettingsError, match="holds no"):
        open_task(f"data:{tmp_path}")
    assert len(open_task(f"data:{tmp_path / 'a' / 'b'}").read().train) == 48
    monkeypatch.setattr(folders, "MOST_ENTRIES", 10)
    for number in range(12):
        (tmp_path / f"n{number}").touch()
    with pytest.raises(SettingsError, match="holds more than 10 files; name the folder"):
        open_task(f"data:{tmp_path}")
    with pytest.raises(SettingsError, match=r"^[^\n]+$"):
        open_task("data:/proc")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([True, False], ("false", "true")),
        ([0.0, 1.0], ("0", "1")),
        ([-1, 1], ("-1", "1")),
        (["b", "a"], ("a", "b")),
    ],
)
def test_labels_of_every_type(tmp_path, labels, classes):
    made = [{"text": f"t {n}", "label": labels[n % 2]} for n in range(60)]
    assert open_task(f"data:{written(tmp_path / 'own.jsonl', made)}").classes == classes
    Dataset.from_list(made).to_parquet(tmp_path / "own.parquet")
    assert open_task(f"data:{tmp_path / 'own.parquet'}").classes == classes
