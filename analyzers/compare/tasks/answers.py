"""Whether two final answers of MATH are the same: by the rules of lm-evaluation-harness's hendrycks_math, once both are written alike.

Those rules know fractions, roots, degrees, units after a space and spaces. Answers are first freed of what they do not know: words in
``\\text``, thin spaces, thousands separators, a percent sign without a backslash, a full stop. Two plain numbers are compared as numbers.
"""

from __future__ import annotations

import re
from fractions import Fraction

CLOSING = "The answer is:"  # MetaMathQA's last words
_SPACES = re.compile(r"\\[,;: ]|\\quad|~")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*(?:cm|mm|km|m|ft|feet|foot|inch|inches|in|mph|units?|square units?|degrees?|dollars?|cents?|hours?|minutes?|seconds?|"
                   r"days?|years?|pounds?|meters?|miles?|kg|g|students|people|ways)\.?(?:\^\{?[23]\}?)?$")  # fmt: skip
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_FRACTION = re.compile(r"([+-]?)\\frac\{(-?\d+)\}\{(-?\d+)\}|([+-]?\d+)/(\d+)")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


def same_answer(written: str, solution: str) -> bool:
    """Whether what a model wrote ends in the answer that `solution` ends in. Needs lm-evaluation-harness."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    found, right = last_answer(written), last_answer(solution)
    if not found:
        return False
    if is_equiv(found, right) or is_equiv(_tidied(found), _tidied(right)):
        return True
    one, other = _number(_tidied(found)), _number(_tidied(right))
    return one is not None and one == other


def last_answer(text: str) -> str:
    """What is boxed last, or what follows MetaMathQA's closing words on their line; all of a text that has neither. Empty for a box that is not
    closed."""
    if "\\boxed" in text or "\\fbox" in text:
        return _boxed(text)
    _, closing, after = text.rpartition(CLOSING)
    answer = next(iter(after.strip().splitlines()), "") if closing else after
    return answer.strip().rstrip(".").strip().strip("$").strip()


def _boxed(text: str) -> str:
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):  # \boxed 5, as TeX allows
        return re.split(r"[$\s.,]", rest, maxsplit=1)[0]
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:place]
    return ""


def _tidied(answer: str) -> str:
    answer = (
        _SPACES.sub(" ", answer.replace("{,}", ",").replace("\\!", "").replace("\\$", "").replace("$", ""))
        .replace("\\%", "")
        .rstrip(". ")
    )
    answer = answer.replace("\\degree", "").replace("cfrac", "frac").removesuffix("%").strip()
    answer = _UNIT.sub("", _WORDS.sub(r"\1", answer).strip()).strip()
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    return " ".join(answer.split())


def _number(answer: str) -> Fraction | None:
    """The number that a whole answer is: a decimal, or a fraction of whole numbers."""
    from lm_eval.tasks.hendrycks_math.utils import strip_string

    try:
        plain = strip_string(answer)
    except (AssertionError, IndexError, ValueError):
        plain = answer
    if _DECIMAL.fullmatch(plain):
        return Fraction(plain)
    found = _FRACTION.fullmatch(plain)
    if found is None:
        return None
    sign, top, bottom, whole, under = found.groups()
    above, below = int(top or whole), int(bottom or under)
    return None if below == 0 else Fraction(above, below) * (-1 if sign == "-" else 1)
