"""How much of what is scored was there to be learnt by heart: texts that stand in training and test split alike.

Two counts, as GPT-3's authors looked for contamination (Brown et al. 2020, arXiv 2005.14165, appendix C): texts that are the same
but for case, spaces and punctuation; and texts that share 13 words in a row with a training text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORDS = 13
FORM = 10  # test texts: words in a row that more of them share are the form they are asked in, as those authors have it
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """examples: of the test split. same: those whose whole text is trained on (or chosen on) as well. shared: those that share 13
    words in a row with a training text, the former among them."""

    examples: int
    same: int
    shared: int

    @property
    def sentence(self) -> str:
        """What the counts say, in one sentence; empty where there is no overlap."""
        if not self.shared:
            return ""
        return (
            f"{self.same:,} of the {self.examples:,} test texts are trained on word for word, and {self.shared:,} share {WORDS} words in "
            "a row with a training text: what is known by heart counts as known."
        )


def overlap_of(test: Sequence[str], train: Iterable[str]) -> Overlap:
    """Compares every text of `test` with those of `train`."""
    wanted = [_words(text) for text in test]
    whole = dict.fromkeys(wanted, False)
    often = Counter(run for words in wanted for run in set(_runs(words)))
    runs = {run: False for run, texts in often.items() if texts <= FORM}
    for text in train:
        words = _words(text)
        if words in whole:
            whole[words] = True
        for run in _runs(words):
            if run in runs:
                runs[run] = True
    same = [whole[words] for words in wanted]
    shared = [one or any(runs.get(run, False) for run in _runs(words)) for one, words in zip(same, wanted, strict=True)]
    return Overlap(len(test), sum(same), sum(shared))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: Sequence[str]) -> Iterable[int]:
    """Each 13 words in a row, by its hash: of 64 bits, so that of a billion runs hardly two are taken for one."""
    return (hash(tuple(words[start : start + WORDS])) for start in range(len(words) - WORDS + 1))
