"""The tasks of the evidence: some that pretrained features already solve, some that need the model changed.

The probes are made from text at hand (the sentences of STS-B), so that no download is needed. Word order, halves, odd word and tense are
after SentEval's bigram shift, coordination inversion, semantic odd man out and tense (Conneau et al. 2018, arXiv 1805.01070), agreement
after Linzen et al. 2016 (arXiv 1611.01368).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from analyzers.compare.tasks import CLASSIFICATION, Example, Splits, Task, open_task
from analyzers.compare.tasks import stsb as stsb_file
from analyzers.compare.tasks.cutting import ONLY_ONE, cut
from analyzers.compare.tasks.published import SHARED as VARIABLE
from loraxs_core.errors import SettingsError

SHARED = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[3] / "shared" / "data")
MOST_PAIR_WORDS = 8
MOST_ROWS = 1000  # trained on: a set with more has its whole training split, beside the validation split that is scored
MOST_WORDS = 7  # of a probe's sentence: short texts are what makes many seeds affordable
PAST = {
    "is": "was", "are": "were", "has": "had", "does": "did", "makes": "made", "gives": "gave", "takes": "took", "comes": "came",
    "goes": "went", "becomes": "became", "finds": "found", "keeps": "kept", "feels": "felt", "gets": "got", "says": "said",
    "knows": "knew", "seems": "seemed", "plays": "played", "works": "worked", "offers": "offered", "looks": "looked", "turns": "turned",
}  # fmt: skip
NUMBERS = {"is": "are", "was": "were", "has": "have"}  # singular -> plural
MOST_WORDS_AGREEING = 10  # there are few sentences with a verb in the plural


def _splits(make: Callable[[list[str], np.random.Generator], list[Example]]) -> Callable[..., Splits]:
    """A probe over all sentences of STS-B: 70 % of them trained on, 10 % chosen on, 20 % scored on, no sentence in two parts."""

    def read(data: str | None = None, progress: object = None) -> Splits:
        source = _stsb(data)
        pairs = [example for part in (source.train, source.validation, source.test) for example in part]
        texts = [text for example in pairs for text in (example.text, example.pair) if text]
        sentences = list({" ".join(text.lower().split()): text for text in texts}.values())
        order = np.random.default_rng(0).permutation(len(sentences))
        first, second = int(0.7 * len(order)), int(0.8 * len(order))
        parts = (order[:first], order[first:second], order[second:])
        return Splits(
            *(
                tuple(make([sentences[index] for index in part], np.random.default_rng(number)))
                for number, part in enumerate(parts)
            )
        )

    return read


def swapped(sentences: Iterable[str], random: np.random.Generator) -> list[Example]:
    """Each sentence of 4 to 7 words once, every second with two different adjacent words swapped (label 1)."""
    examples = []
    for text in dict.fromkeys(sentences):
        words = text.split()
        if not 4 <= len(words) <= MOST_WORDS:
            continue
        places = [index for index in range(len(words) - 1) if words[index] != words[index + 1]]
        swap = len(examples) % 2
        if swap and places:
            at = int(random.choice(places))
            words[at], words[at + 1] = words[at + 1], words[at]
        examples.append(Example(" ".join(words), swap if places else 0))
    return examples


def replaced(sentences: Iterable[str], random: np.random.Generator) -> list[Example]:
    """Each sentence of 4 to 7 words once, every second with one word in the place of which stands a word of another such sentence
    (label 1); words come and go as often as they are there, so that no word gives the label away."""
    kept = [text.split() for text in dict.fromkeys(sentences) if 4 <= len(text.split()) <= MOST_WORDS]
    examples = []
    for number, words in enumerate(kept):
        put = number % 2
        if put:
            at, other = int(random.integers(len(words))), kept[int(random.integers(len(kept)))]
            new = str(random.choice(other))
            put = int(new != words[at])
            words = [*words[:at], new, *words[at + 1 :]]
        examples.append(Example(" ".join(words), put))
    return examples


def shortened(sentences: Iterable[str], random: np.random.Generator) -> list[Example]:
    """Sentences as they are and, every second, without one of its inner words (label 1); 4 to 7 words are left of either kind."""
    examples = []
    for text in dict.fromkeys(sentences):
        words, out = text.split(), len(examples) % 2
        if not 4 + out <= len(words) <= MOST_WORDS + out:
            continue
        if out:
            del words[int(random.integers(1, len(words) - 1))]
        examples.append(Example(" ".join(words), out))
    return examples


def inverted(sentences: Iterable[str], random: np.random.Generator) -> list[Example]:
    """Each sentence of 4 to 7 words once, without the mark at its end, every second with its halves exchanged (label 1)."""
    examples = []
    for text in dict.fromkeys(sentences):
        words, exchanged = text.rstrip(" .!?;:,").split(), len(examples) % 2
        if not 4 <= len(words) <= MOST_WORDS:
            continue
        if exchanged:
            half = len(words) // 2
            words = words[half:] + words[:half]
        examples.append(Example(" ".join(words), exchanged))
    return examples


def disagreeing(sentences: Iterable[str], random: np.random.Generator) -> list[Example]:
    """Sentences of 4 to 10 words with one verb of `NUMBERS`, every second with the verb in the other number (label 1); as many with a
    singular as with a plural subject, so that the verb alone does not give the label away."""
    found: dict[bool, list[tuple[list[str], int]]] = {False: [], True: []}
    other = {**NUMBERS, **{plural: singular for singular, plural in NUMBERS.items()}}
    for text in dict.fromkeys(sentences):
        words = text.split()
        places = [index for index, word in enumerate(words) if word in other]
        if len(places) == 1 and 4 <= len(words) <= MOST_WORDS_AGREEING:
            found[words[places[0]] in NUMBERS].append((words, places[0]))
    examples = []
    for number, pair in enumerate(zip(*found.values(), strict=False)):
        for words, at in pair:
            if number % 2:
                words[at] = other[words[at]]
            examples.append(Example(" ".join(words), number % 2))
    return examples


def tensed(sentences: Iterable[str], random: np.random.Generator) -> list[Example]:
    """Sentences of up to 7 words with one verb of `PAST`, left in the present or put into the past (label 1), half each."""
    examples = []
    for text in dict.fromkeys(sentences):
        words = text.split()
        found = [index for index, word in enumerate(words) if word in PAST]
        if len(found) != 1 or not 4 <= len(words) <= MOST_WORDS:
            continue
        past = len(examples) % 2
        if past:
            words[found[0]] = PAST[words[found[0]]]
        examples.append(Example(" ".join(words), past))
    return examples


def _questions(name: str, answers: tuple[str, ...]) -> Callable[..., Splits]:
    """Records of instruction and answer, as in LLM-Adapters' commonsense files: the last tenth of train.json is chosen on."""

    def part(path: Path) -> list[Example]:
        records = json.loads(path.read_text(encoding="utf-8"))
        cleaned = [
            (re.sub(r"\s*Answer format:.*$", "", record["instruction"].split(": ", 1)[1], flags=re.DOTALL), record["answer"])
            for record in records
        ]
        return [Example(text, answers.index(answer)) for text, answer in cleaned if answer in answers]

    def read(data: str | None = None, progress: object = None) -> Splits:
        folder = Path(data) if data else SHARED / "commonsense" / name
        if not (folder / "train.json").is_file():
            raise SettingsError(f"{name} is not on this machine: put train.json and test.json into {folder}.")
        train = part(folder / "train.json")
        cut = len(train) - len(train) // 10
        return Splits(tuple(train[:cut]), tuple(train[cut:]), tuple(part(folder / "test.json")))

    return read


def _stsb(data: str | None = None, progress: object = None) -> Splits:
    near = SHARED / "glue" / "stsb"
    return stsb_file.read(data or (str(near) if near.is_dir() else None), None)


def _short_pairs(data: str | None = None, progress: object = None) -> Splits:
    """STS-B where both sentences have at most 8 words: what many seeds can afford on a CPU."""
    source = _stsb(data)
    parts = (source.train, source.validation, source.test)
    return Splits(
        *(
            tuple(one for one in part if max(len(one.text.split()), len((one.pair or "").split())) <= MOST_PAIR_WORDS)
            for part in parts
        )
    )


def _few_pairs(name: str) -> Callable[..., Splits]:
    """The rows of GLUE's validation split, which PyPI has as well, and no more, wherever the set comes from: half of them trained on, a
    tenth chosen on, four tenths scored on, so that trials of two machines are trials of the same data."""

    def read(data: str | None = None, progress: object = None) -> Splits:
        source = open_task(name).read(data, None)
        rows = source.test if len(source.train) > MOST_ROWS else (*source.train, *source.validation, *source.test)
        return Splits.of(cut(sorted(rows, key=lambda row: (row.text, row.pair or "", row.label)), True, ONLY_ONE))

    return read


def _probe(name: str, label: str, summary: str, classes: tuple[str, ...], read: Callable[..., Splits]) -> Task:
    return Task(name, label, summary, CLASSIFICATION, "accuracy", classes=classes, read=read)


ANSWERS = ("answer1", "answer2", "answer3", "answer4")
ADAPTING, ALIGNED = "needs adaptation", "aligned with pretraining"
WORD_ORDER = _probe(
    "wordorder",
    "Word order",
    "Were two adjacent words of a short sentence swapped?",
    ("as written", "swapped"),
    _splits(swapped),
)
HALVES = _probe(
    "halves", "Halves", "Were the halves of a short sentence exchanged?", ("as written", "exchanged"), _splits(inverted)
)
AGREEMENT = _probe(
    "agreement",
    "Agreement",
    "Is the one verb of a sentence in the wrong number?",
    ("as written", "wrong number"),
    _splits(disagreeing),
)
ODD_WORD = _probe(
    "oddword",
    "Odd word",
    "Does one word of a short sentence come from another one?",
    ("as written", "replaced"),
    _splits(replaced),
)
LEFT_OUT = _probe(
    "leftout",
    "Left-out word",
    "Was a word inside a short sentence left out?",
    ("as written", "left out"),
    _splits(shortened),
)
TENSE = _probe(
    "tense", "Tense", "Was the one verb of a short sentence put into the past?", ("present", "past"), _splits(tensed)
)
BOOLQ = _probe(
    "boolq", "BoolQ", "Is the answer yes? (question alone)", ("false", "true"), _questions("boolq", ("false", "true"))
)
ARC_EASY = _probe("arc-easy", "ARC-e", "Which of four answers is right?", ANSWERS, _questions("arc-easy", ANSWERS))
STSB = Task(**{**vars(open_task("stsb")), "label": "STS-B, short sentences", "read": _short_pairs})
SST2 = open_task("sst2")
MRPC, RTE = (
    Task(
        **{
            **vars(open_task(name)),
            "label": f"{open_task(name).label} ({rows} pairs, 48 tokens a text)",
            "read": _few_pairs(name),
        }
    )
    for name, rows in (("mrpc", 408), ("rte", 277))
)  # Setup.sequence cuts the texts: one of MRPC's, a third of RTE's first ones
# Name -> (task, what kind it is taken for; whether it needed adaptation is measured: uniform against the head alone).
TASKS: dict[str, tuple[Task, str]] = {
    "wordorder": (WORD_ORDER, ADAPTING),
    "halves": (HALVES, ADAPTING),
    "agreement": (AGREEMENT, ADAPTING),
    "oddword": (ODD_WORD, ADAPTING),
    "leftout": (LEFT_OUT, ADAPTING),
    "tense": (TENSE, ALIGNED),  # the head alone gets 99 % of it right
    "stsb": (STSB, ALIGNED),
    "sst2": (SST2, ALIGNED),
    "mrpc": (MRPC, ADAPTING),
    "rte": (RTE, ADAPTING),
    "boolq": (BOOLQ, ADAPTING),
    "arc-easy": (ARC_EASY, ADAPTING),
}
