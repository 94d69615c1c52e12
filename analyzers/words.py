"""Figures inside the sentences that analyses say: spelled as the terminal and the page spell the same figures beside them."""

from __future__ import annotations

from analyzers.units import GIB, MIB


def gib_text(value: float) -> str:
    """Bytes in binary units, as GPU memory is counted: ``16.4 GiB``, ``131 MiB``.

    >>> gib_text(2**30 * 3 // 2), gib_text(131 * 2**20), gib_text(420_000), gib_text(0)
    ('1.50 GiB', '131 MiB', '410 KiB', '0 MiB')
    """
    if 0 < value < MIB:
        return f"{value / 2**10:.0f} KiB"
    if value < GIB:
        return f"{value / MIB:.0f} MiB"
    return f"{value / GIB:.2f} GiB" if value < 10 * GIB else f"{value / GIB:.1f} GiB"


def whole_percent(fraction: float) -> str:
    """A fraction in whole per cent.

    >>> whole_percent(0.03)
    '3 %'
    """
    return f"{100 * fraction:.0f} %"
