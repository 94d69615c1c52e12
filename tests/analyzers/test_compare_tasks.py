"""Tasks: real STS-B and SST-2, the user's own CSV file, and the metrics."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from analyzers.compare.tasks import TASKS, open_task, scores
from loraxs_core.errors import RunError, SettingsError
from tests.analyzers.compare_helpers import sentiment_csv


@pytest.fixture(scope="module")
def stsb():
    return TASKS["stsb"].read(None, None)


def test_stsb_is_the_whole_benchmark(stsb):
    assert [len(part) for part in (stsb.train, stsb.validation, stsb.test)] == [5749, 1500, 1379]
    first = stsb.train[0]
    assert (first.text, first.pair, first.label) == ("A plane is taking off.", "An air plane is taking off.", 5.0)
    labels = np.array([example.label for example in stsb.train])
    assert labels.min() == 0
    assert labels.max() == 5
    assert abs(labels.mean() - 2.701) < 0.001  # as published for the training split


def test_stsb_texts_of_test_are_not_trained_on(stsb):
    seen = {(example.text, example.pair) for example in stsb.train}
    shared = [example for example in stsb.test if (example.text, example.pair) in seen]
    assert len(shared) <= len(stsb.test) // 100


def test_stsb_refuses_a_file_that_is_not_it(tmp_path):
    (tmp_path / "sts-train.csv").write_text("a\tb\n")
    with pytest.raises(RunError, match="row 1"):
        TASKS["stsb"].read(str(tmp_path), None)
    (tmp_path / "sts-train.csv").write_text("g\tf\ty\ti\t3.0\tone\ttwo\n")
    with pytest.raises(RunError, match="1 pairs instead of 5,749"):
        TASKS["stsb"].read(str(tmp_path), None)


def test_sst2_from_shared_data(shared_data):
    splits = TASKS["sst2"].read(str(shared_data / "glue" / "sst2"), None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [60614, 6735, 872]
    assert {example.label for example in splits.test} == {0, 1}


def test_sst2_says_where_it_looked(tmp_path):
    with pytest.raises(SettingsError, match=r"SST-2 is not on this machine: put train\.tsv"):
        TASKS["sst2"].read(str(tmp_path), None)


def test_an_unknown_task_lists_those_there_are():
    with pytest.raises(SettingsError, match=r"Unknown task 'wikitext'; there are .*stsb.*csv:PATH"):
        open_task("wikitext")


def test_csv_classification_splits_each_class_alike(tmp_path):
    path = sentiment_csv(tmp_path / "film.csv", 200)
    task = open_task(f"csv:{path}")
    splits = task.read(None, None)
    assert (task.kind, task.classes, task.outputs, task.metric) == ("classification", ("negative", "positive"), 2, "accuracy")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [160, 20, 20]
    assert Counter(example.label for example in splits.test) == {0: 10, 1: 10}
    texts = [example.text for part in (splits.train, splits.validation, splits.test) for example in part]
    assert len(texts) == 200
    assert open_task(f"csv:{path}").read(None, None) == splits  # the same rows every time


def test_csv_numbers_with_fractions_are_regression(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("text,text_b,label\n" + "".join(f"item {n},shop {n},{n * 1.5}\n" for n in range(40)))
    task = open_task(f"csv:{path}")
    assert (task.kind, task.outputs, task.pairs, task.metric) == ("regression", 1, True, "pearson")


def test_csv_whole_numbers_are_the_same_class_however_they_are_written(tmp_path):
    rows = "\n".join(f"text {index},{('0', '1', '1.0', '01')[index % 4]}" for index in range(80))
    (tmp_path / "own.csv").write_text(f"text,label\n{rows}\n")
    task = open_task(f"csv:{tmp_path / 'own.csv'}")
    assert task.classes == ("0", "1")


def test_csv_own_split_is_kept(tmp_path):
    path = tmp_path / "own.csv"
    names = ["train"] * 20 + ["validation"] * 8 + ["test"] * 6
    path.write_text("text,label,split\n" + "".join(f"t{n},{n % 2},{name}\n" for n, name in enumerate(names)))
    splits = open_task(f"csv:{path}").read(None, None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 8, 6]
    assert splits.test[0].text == "t28"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sentence,label\n" + "a,b\n" * 40, r"no column 'text' \(its first line gives sentence, label\)"),
        ("text,label\n" + "a,1\nb,0\n" * 5, "has 10 rows"),
        ("text,label\n" + "a,1\n" * 40, "there is nothing to learn"),
        ("text,label\n" + "a,1\n" * 20 + ",0\n" * 20, "line 22: the field 'text' is empty"),
        ("text,label\n" + "a,1\n" * 20 + "b,0,9\n" * 20, "line 22: expected 2 fields"),
        ("text,label\n" + "".join(f"t,c{n}\n" for n in range(60)), "60 different labels"),
        ("text,label,split\n" + "a,1,train\nb,0,later\n" * 20, "line 3: split is 'later'"),
        ('text,label\n"a,1\n' + "b,0\n" * 40, "not a well-formed CSV"),
        ("", r"bad\.csv is empty\."),
        ("text,label,label\n" + "a,1,0\nb,0,1\n" * 20, "two columns called 'label'"),
    ],
)
def test_csv_bad_input_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(SettingsError, match=sentence) as raised:
        open_task(f"csv:{path}")
    assert "\n" not in str(raised.value)


def test_csv_missing_and_not_text(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        open_task(f"csv:{tmp_path / 'none.csv'}")
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        open_task(f"csv:{tmp_path / 'latin.csv'}")


def test_scores_against_hand_computed_values():
    found = scores("regression", np.array([[1.0], [2.0], [3.0], [5.0]]), np.array([1.0, 3.0, 2.0, 4.0]))
    assert found["pearson"] == pytest.approx(5.5 / np.sqrt(8.75 * 5))  # sums of products about the means
    assert found["spearman"] == pytest.approx(0.8)
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 4.0]])
    found = scores("classification", logits, np.array([0, 1, 1, 1]))
    assert found["accuracy"] == 0.75
    assert found["matthews"] == pytest.approx((1 * 2 - 0 * 1) / np.sqrt(2 * 3 * 1 * 2))


def test_scores_of_a_diverged_model_are_undefined_not_zero():
    assert np.isnan(scores("regression", np.ones((4, 1)), np.arange(4.0))["pearson"])
    assert np.isnan(scores("regression", np.array([[1.0], [np.nan], [2.0]]), np.arange(3.0))["pearson"])
    assert np.isnan(scores("classification", np.full((3, 2), np.inf), np.array([0, 1, 1]))["accuracy"])


def labelled(path, labels) -> str:
    path.write_text("text,label\n" + "".join(f"item {n},{label}\n" for n, label in enumerate(labels)))
    return f"csv:{path}"


@pytest.mark.parametrize("mark", ["", "nan", "NaN", "NA", "n/a", "null", "None", "?"])
def test_rows_without_a_number_are_left_out_and_counted(tmp_path, mark):
    numbers = [f"{n * 1.5}" for n in range(57)]
    task = open_task(labelled(tmp_path / "prices.csv", [*numbers[:20], mark, *numbers[20:], mark, mark]))
    assert task.kind == "regression"
    assert task.remark == "3 of 60 rows of prices.csv have no label and are left out."
    assert sum(len(part) for part in vars(task.read()).values()) == 57


def test_a_missing_label_is_no_class(tmp_path):
    task = open_task(labelled(tmp_path / "own.csv", ["0", "1"] * 30 + ["nan", ""]))
    assert (task.classes, task.remark[:7]) == (("0", "1"), "2 of 62")
    task = open_task(labelled(tmp_path / "own.csv", ["good", "bad"] * 30 + ["nan", "NaN"]))
    assert task.classes == ("bad", "good")
    task = open_task(labelled(tmp_path / "own.csv", ["favor", "against", "none"] * 20))
    assert task.classes == ("against", "favor", "none"), "a word that may be meant"
    assert task.remark == ""


@pytest.mark.parametrize("label", ["inf", "-Infinity", "1e999", "-1e999", "0x1", "0b1", "0o7"])
@pytest.mark.parametrize("others", [("0", "1"), ("good", "bad"), ("1.5", "2.5")])
def test_a_number_that_is_none_does_not_become_a_class(tmp_path, label, others):
    with pytest.raises(SettingsError, match=f"line 32: the label '{label}' is no number that can be predicted") as raised:
        open_task(labelled(tmp_path / "own.csv", [*others * 15, label, *others * 15]))
    assert "\n" not in str(raised.value)


def test_a_word_among_numbers_is_a_slip_and_many_are_a_class(tmp_path):
    with pytest.raises(SettingsError, match="line 62: the label 'abc' stands among numbers"):
        open_task(labelled(tmp_path / "own.csv", ["0", "1"] * 30 + ["abc"]))
    with pytest.raises(SettingsError, match="stands among numbers"):
        open_task(labelled(tmp_path / "own.csv", ["0.5", "1.5"] * 20 + ["abc"] * 20))
    assert open_task(labelled(tmp_path / "own.csv", ["0", "1", "unknown"] * 20)).classes == ("0", "1", "unknown")


def test_mostly_missing_labels_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"29 of the 60 rows .* have no label"):
        open_task(labelled(tmp_path / "own.csv", ["1.5"] * 31 + ["nan"] * 29))


def test_a_pipe_is_no_csv_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SettingsError, match="no plain file"):
        open_task(f"csv:{tmp_path / 'pipe.csv'}")


def test_the_mean_loss_is_torchs():
    import torch
    from torch.nn import functional

    from analyzers.compare.tasks import mean_loss

    generator = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(9, 3, generator=generator), torch.randint(0, 3, (9,), generator=generator)
    assert mean_loss("classification", logits.numpy(), classes.numpy()) == pytest.approx(
        float(functional.cross_entropy(logits.double(), classes))
    )
    numbers = torch.randn(9, generator=generator)
    assert mean_loss("regression", logits[:, :1].numpy(), numbers.numpy()) == pytest.approx(
        float(functional.mse_loss(logits[:, 0].double(), numbers.double()))
    )
    assert mean_loss("causal", np.array([[6.0, 2.0], [1.0, 5.0]]), np.zeros(2)) == pytest.approx(1.0)
