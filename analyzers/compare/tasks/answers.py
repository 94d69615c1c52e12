"""Whether two final answers of MATH are the same: by the rules of lm-evaluation-harness's hendrycks_math, once both are written alike.

Those rules know fractions, roots, degrees, units after a space and spaces. Answers are first freed of what they do not know: words in
``\\text``, thin spaces, thousands separators, a percent sign without a backslash, a full stop, braces around one letter, ``x \\in``, a slash
for a fraction, the brackets of a choice. Two plain numbers are compared as numbers.
"""

from __future__ import annotations

import re
from fractions import Fraction

# The last words of MetaMathQA ("The answer is: 5"), of the worked examples of Minerva ("The final answer is $5$. I hope it is correct.")
# and of who says it plainly.
CLOSING = re.compile(r"\banswer is\b:?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<!\\)[.!](?=\s|$)")
_MATHS = re.compile(r"\$((?:\\.|[^$\\])+)\$")
_SPACES = re.compile(r"\\[,;: ]|\\quad|~")
_NO_SPACE = re.compile(r"\s*\\!\s*")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}])(?:\s+[mg]|\s*(?:cm|mm|km|ft|feet|foot|inch|inches|in|mph|units?|square units?|degrees?|dollars?|cents?|hours?|minutes?|"
                   r"seconds?|days?|years?|pounds?|meters?|miles?|kg|students|people|ways))\.?(?:\^\{?[23]\}?)?$")  # fmt: skip
_METERS = re.compile(r"(?<=[\d}])\\(?:text|textrm|mbox|mathrm)\{([mg]\.?)\}")  # a letter alone, as in 3m, is a number's name
_BRACED = re.compile(r"([_^])\{(\w)\}")
_ROOT = re.compile(r"(\\sqrt)\s+(?=\w)")
_MEMBER = re.compile(r"^[a-zA-Z]\s*\\in\b\s*")
_CHOICE = re.compile(r"\(([A-Z])\)")
_SLASH = re.compile(r"(-?)((?:\d|[a-z]|\\[a-z]+(?![a-z])(?:\{\w+\})?\s*)+)/(\d+|[a-z])")
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
    """What is boxed last, or what is said last to be the answer, to the end of its sentence or between its dollar signs; all of a text that has
    neither. Empty for a box that is not closed."""
    if "\\boxed" in text or "\\fbox" in text:
        return _boxed(text)
    said = list(CLOSING.finditer(text))
    answer = text.strip()
    if said:
        answer = next(iter(text[said[-1].end() :].strip().splitlines()), "").strip()
        if between := _MATHS.match(answer):
            return between[1].strip()
        answer = _SENTENCE.split(answer, maxsplit=1)[0]
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
        _SPACES.sub(" ", _NO_SPACE.sub("", answer.replace("{,}", ",")).replace("\\$", "").replace("$", ""))
        .replace("\\%", "")
        .rstrip(". ")
    )
    answer = answer.replace("\\degree", "").replace("cfrac", "frac").removesuffix("%").strip()
    answer = _METERS.sub(r" \1", answer)
    answer = _UNIT.sub("", _WORDS.sub(r"\1", answer).strip()).strip()
    answer = _MEMBER.sub("", _BRACED.sub(r"\1\2", _ROOT.sub(r"\1", answer)))
    if choice := _CHOICE.fullmatch(answer):
        answer = choice[1]
    if ratio := _SLASH.fullmatch(answer):
        answer = rf"{ratio[1]}\frac{{{ratio[2]}}}{{{ratio[3]}}}"
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
