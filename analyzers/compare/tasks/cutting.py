"""How rows become training, validation and test split where nobody has cut them: the same rows whatever the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from analyzers.compare.tasks.base import Example, Splits
from analyzers.compare.tasks.folders import SPLIT_NAMES
from loraxs_core.errors import SettingsError

SPLITS = ("train", "validation", "test")
TENTHS = {3: "validation", 8: "test"}  # of every ten: the rest is trained on
ONLY_ONE = dict.fromkeys((3,), "validation") | dict.fromkeys((1, 5, 7, 9), "test")  # of a test split that is all there is
HELD_OUT = {3: "validation"}  # of a training split whose test split is elsewhere


def cut(examples: Sequence[Example], by_label: bool, tenths: Mapping[int, str] = TENTHS) -> dict[str, tuple[Example, ...]]:
    """`examples` in parts, ten by ten as `tenths` says, the rest ``train``; by_label: each class in equal shares."""
    shuffled = np.random.default_rng(0).permutation(len(examples))
    turns = np.empty(len(examples), dtype=int)
    if by_label:
        # Rank of each row among its own class, spread evenly: every tenth row of each class is scored on.
        place: Counter = Counter()
        for index in shuffled:
            turns[index] = place[examples[index].label]
            place[examples[index].label] += 1
    else:
        turns[shuffled] = np.arange(len(examples))
    parts: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for index in shuffled:
        parts[tenths.get(int(turns[index]) % 10, "train")].append(examples[index])
    return {name: tuple(part) for name, part in parts.items()}


def completed(parts: Mapping[str, Sequence[Example]], by_label: bool, what: str) -> Splits:
    """`Splits` from whichever parts a source has, keyed by `SPLITS`; other keys go into `Splits.more`.

    A test split that is missing (or is not labelled) is the validation split; a validation split that is missing, or serves as test
    split, is a tenth of the training split. One part alone is cut. what: the source, for the remark. Where nothing is called ``train``,
    ``train_sft`` and ``test_sft`` serve, the first that go together. Raises SettingsError where nothing does.
    """
    parts, left = _familiar(parts, what)
    there = {name: tuple(part) for name, part in parts.items() if name in SPLITS and part}
    more = {name: tuple(part) for name, part in parts.items() if name not in SPLITS and part}
    if list(there) == ["train"]:
        return Splits.of(cut(there["train"], by_label), more, left)
    if "train" not in there:
        kept = there.get("test") or there["validation"]
        found = cut(kept, by_label, ONLY_ONE)
        remark = (
            f"Of {what} only an evaluation split is on this machine: {len(found['train']):,} of its rows are trained on and "
            f"{len(found['test']):,} scored on, so the score compares methods with one another and not with published figures. {left}"
        ).strip()
        return Splits.of(found, more, remark)
    remark = left
    if "test" not in there:
        there["test"] = there.pop("validation")
        remark = f"Scored on the validation split of {what}; a tenth of its training split is chosen on. {left}".strip()
    if "validation" not in there:
        held = cut(there["train"], by_label, HELD_OUT)
        there |= {"train": held["train"], "validation": held["validation"]}
    return Splits.of(there, more, remark)


def _familiar(parts: Mapping[str, Sequence[Example]], what: str) -> tuple[dict[str, Sequence[Example]], str]:
    """(`parts`, those called after `SPLITS` under these names, a sentence on what is left out)."""
    known = {name: part for name, part in parts.items() if part}
    families: dict[str, dict[str, str]] = {}
    for name in known:
        word, _, rest = name.replace("-", "_").partition("_")
        if rest and word.lower() in SPLIT_NAMES:
            families.setdefault(rest, {}).setdefault(SPLIT_NAMES[word.lower()], name)
    if any(name in known for name in SPLITS):
        # As MNLI's: of several validation splits the first is the one, and others are scored beside it.
        for family in families.values():
            for word, name in family.items():
                if word != "train" and "train" in known and not {"validation", "test"} & set(known):
                    known[word] = known.pop(name)
        return known, ""
    chosen = next((family for family in families.values() if "train" in family), None)
    if chosen is None:
        raise SettingsError(
            f"None of the splits of {what} ({', '.join(parts) or 'none'}) is called train, validation or test; give files that are."
        )
    used = {word: known.pop(name) for word, name in chosen.items()}
    left = f", and {', '.join(known)} left out" if known else ""
    return used, f"Of {what} the splits {' and '.join(chosen.values())} are used{left}."
