"""CSV files with something wrong in them: refused in one sentence, or read as an independent reader of CSV reads them."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

from analyzers.compare.tasks import open_task
from loraxs_core.errors import SettingsError
from tests.fuzz import mutated_bytes, one_sentence, some, survived

LABELS = (
    "inf", "-Infinity", "1e999", "0x1", "0b1", "0o7", "1_000", "１", "١", "½", "∞", "1,5", "50%", "nan", "NaN", "", "NA", "-", "none", "TRUE",
    "1.0", "01", "+1", "-0", "1e3", "1E+2", "1.", ".5", "1e-400", "9007199254740992", "9007199254740993", "1" * 400, " 1", "1\u00a0",
    "=1+1", "\x1b[31m", "a\nb", '"', "x" * 200_000, "negativ", "1e99999", "0x", "1 2", "-inf", "1__0", "0e0",
)  # fmt: skip
MISSING = {"", "na", "n/a", "<na>", "#n/a", "none", "null", "nil", "-", "?", "missing", "nan"}


def bases() -> list[list[dict]]:
    """Rows of five kinds of file: numbers for pairs, words, classes by number with splits, whole numbers, text with every mark."""
    words = [{"text": f"film {n}, said to be {'good' if n % 2 else 'bad'}", "label": ("bad", "good")[n % 2]} for n in range(60)]
    prices = [{"text": f"item {n}", "text_b": f"shop {n % 7}", "label": f"{n * 0.37:.3f}"} for n in range(60)]
    parts = ["train"] * 40 + ["validation"] * 12 + ["test"] * 12
    classes = [{"text": f"text {n}", "label": str(n % 3), "split": part} for n, part in enumerate(parts)]
    whole = [{"text": f"count {n}", "label": str(1000 + n)} for n in range(70)]
    marks = [
        {"text": f'a "quoted" line\nand another, é€𝄞 {n}', "label": ("ja", "nein", "weiß nicht")[n % 3]} for n in range(60)
    ]
    return [words, prices, classes, whole, marks]


def as_csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def damaged(number: int) -> bytes:
    draw = random.Random(number)
    rows = draw.choice(bases())
    if draw.random() < 0.4:
        return mutated_bytes(as_csv(rows), draw)
    junk = draw.choice(LABELS)
    for _ in range(draw.choice((1, 1, 3, 20, 60))):
        row = draw.choice(rows)
        row["label" if draw.random() < 0.8 else draw.choice(list(row))] = junk if draw.random() < 0.7 else draw.choice(LABELS)
    return as_csv(rows)


def expected(content: bytes) -> list[tuple]:
    """(text, pair, label) of every row, by a small reader of RFC 4180 of this test's own."""
    text = content.decode("utf-8-sig")
    rows, row, cell, quoted, at = [], [], "", False, 0
    while at < len(text):
        one = text[at]
        if quoted:
            if one == '"' and text[at + 1 : at + 2] == '"':
                cell, at = cell + '"', at + 1
            elif one == '"':
                quoted = False
            else:
                cell += one
        elif one == '"' and not cell:
            quoted = True
        elif one == ",":
            row, cell = [*row, cell], ""
        elif one in "\r\n":
            if one == "\r" and text[at + 1 : at + 2] == "\n":
                at += 1
            rows, row, cell = [*rows, [*row, cell]], [], ""
        else:
            cell += one
        at += 1
    if cell or row:
        rows.append([*row, cell])
    head, *body = [row for row in rows if row != [""]]
    named = [dict(zip(head, row, strict=True)) for row in body]
    return [(row["text"].strip(), row["text_b"].strip() if "text_b" in head else None, row["label"].strip()) for row in named]


def number(label: str) -> Fraction | None:
    """The number that a label stands for, by the grammar of decimals alone."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", label) or math.isinf(float(label)):
        return None
    return Fraction(label)


def a_damaged_csv(which: int, folder: str) -> str:
    file = Path(folder) / f"{which}.csv"
    content = damaged(which)
    file.write_bytes(content)
    try:
        task = open_task(f"csv:{file}")
    except SettingsError as error:
        one_sentence(error, SettingsError)
        return "refused"
    finally:
        file.unlink()
    examples = [example for part in vars(task.read()).values() for example in part]
    rows = expected(content)
    numbers = [number(label) for *_, label in rows]
    mostly = sum(one is not None for one in numbers) > len(rows) / 2
    left_out = [row for row in rows if row[2].lower() in (MISSING if mostly else {"nan"})]
    rows = [row for row in rows if row not in left_out]
    assert len(examples) == len(rows)
    assert (f"{len(left_out):,} of" in task.remark) == bool(left_out), task.remark
    for label in {label for *_, label in rows}:
        assert number(label) is not None or not re.fullmatch(
            r"[+-]?(inf|infinity|nan|[0-9.,_]+(e[+-]?[0-9]+)?|0[xob].+)", label, re.I
        ), label
    if task.kind == "regression":
        right = Counter((text, pair, float(label)) for text, pair, label in rows)
        assert Counter((one.text, one.pair, one.label) for one in examples) == right
        assert all(math.isfinite(one.label) for one in examples)
    else:
        every = all(number(label) is not None for *_, label in rows)
        same = {label: str(int(number(label))) if every else label for *_, label in rows}
        assert set(task.classes) == set(same.values())
        assert len(task.classes) <= 50
        right = Counter((text, pair, same[label]) for text, pair, label in rows)
        assert Counter((one.text, one.pair, task.classes[one.label]) for one in examples) == right
    return task.kind


@some(quick=40)
def test_a_damaged_csv_is_refused_or_read_for_what_it_says(numbers, tmp_path):
    found = survived(a_damaged_csv, numbers, str(tmp_path))
    assert min(found["refused"], found["regression"], found["classification"]) > 2, found
