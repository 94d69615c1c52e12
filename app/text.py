"""Foreign words as text: names of models, tensors, plans and runs, cells of files, messages with any of them inside.

Whoever made a model or a file chose those words, so they may hold what the place they are shown in would act on: Markdown, LaTeX, an
image's address, HTML, escape codes of a terminal, marks that turn the direction of writing. One function a kind
of place, used where words go into it. Words without such marks come back as they are.
"""

from __future__ import annotations

import itertools
import re

from loraxs_core.unseen import written_out

# What Streamlit's Markdown acts on, wherever it stands in a word: emphasis, code, links, HTML, entities, maths, directives and
# shortcodes (`:red[`, `:smile:`, `:material/…:`), addresses, tables, strikethrough, escapes, arrows and dashes that it redraws.
_ACTIVE = re.compile(
    r"[*`\[\]~$|\\]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|<[A-Za-z/!?-]|&#?\w+;|:[A-Za-z+_-]|//|www\.|@|->|--",
    re.IGNORECASE,
)
_ACTIVE_FIRST = re.compile(r"[#>+=-]|\d+[.)]$")  # at the beginning of a line: headings, quotations, lists


def plain(value: object, *, lines: bool = False) -> str:
    """`value` with every unseen character written out, as ``\\u001b`` or ``\\u202e``. lines: line ends and tabs stay what they are.

    >>> plain("a\\x1b[31mb")
    'a\\\\u001b[31mb'
    """
    return written_out(str(value), "\n\t" if lines else "")


def markdown(value: object) -> str:
    """`value` for Markdown: words with a mark that Streamlit's Markdown would act on become code, which nothing acts on.

    A backslash would not do: addresses and shortcodes are looked for in the text that is left when the escapes are gone.

    >>> markdown("encoder.layer.0.output_dense")
    'encoder.layer.0.output_dense'
    >>> markdown("see [the page](http://x.example) now")
    'see `[the page](http://x.example)` now'
    """
    words = plain(value).split(" ")
    active = [bool(_ACTIVE.search(word)) for word in words]
    active[0] |= bool(_ACTIVE_FIRST.match(words[0]))
    # What lies between two marks belongs to them: the words of a link, of emphasis, of a formula.
    for position in range(1, len(words) - 1):
        if not active[position] and _open(words[:position]) and any(active[position:]):
            active[position] = True
    runs = itertools.groupby(zip(active, words, strict=True), key=lambda pair: pair[0])
    joined = ((is_active, " ".join(word for _, word in run)) for is_active, run in runs)
    return " ".join(_code(run) if is_active else run for is_active, run in joined)


def figure(value: object) -> str:
    """`value` for a title, label or hover text of plotly, which reads some HTML, ``%{…}`` and LaTeX.

    >>> figure("<b>x</b> %{y}")
    '&lt;b&gt;x&lt;/b&gt; %&#123;y}'
    """
    text = plain(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("%{", "%&#123;").replace("$", "&#36;")


def _open(words: list[str]) -> bool:
    """Whether a bracket or a backtick of `words` waits for its other half."""
    text = " ".join(words)
    return text.count("[") > text.count("]") or text.count("`") % 2 == 1


def _code(text: str) -> str:
    """A code span that holds exactly `text`."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
