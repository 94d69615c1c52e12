"""Characters that cannot be seen: controls, escape codes of terminals, marks that turn the writing, halves of characters, line ends."""

from __future__ import annotations

import unicodedata

_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def written_out(text: str, kept: str = "") -> str:
    """`text` with every character that cannot be seen written as ``\\u001b`` or ``\\u202e``; those in `kept` stay what they are.

    >>> written_out("a\\x1b[31mb")
    'a\\\\u001b[31mb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in kept or unicodedata.category(one) not in _CATEGORIES else _name(one) for one in text)


def _name(character: str) -> str:
    code = ord(character)
    return {10: "\\n", 9: "\\t", 13: "\\r"}.get(code) or (f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")
