"""Numbers as people read them, each with its unit. For the terminal and the page alike; no maths."""

from __future__ import annotations

from analyzers import words
from analyzers.units import GIB, MIB


def bytes_text(value: float | None) -> str:
    """Bytes in decimal units, as disks and object stores are sold: ``98.3 kB``, ``1.20 TB``."""
    return _scaled(value, (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def memory_unit(most: float) -> tuple[str, int]:
    """Name and bytes of the one binary unit of figures that stand side by side, by the largest of them (bytes): MiB below a GiB.

    >>> memory_unit(300 * 2**20), memory_unit(2**30)
    (('MiB', 1048576), ('GiB', 1073741824))
    """
    return ("MiB", MIB) if most < GIB else ("GiB", GIB)


def gib_text(value: float | None) -> str:
    """Bytes in binary units, as GPU memory is counted: ``16.4 GiB``, ``131 MiB``."""
    return "—" if value is None else words.gib_text(value)


def memory_text(value: float, most: float) -> str:
    """Bytes in the unit of the largest figure beside it, `most`.

    >>> memory_text(900 * 2**20, 2**30 * 3), memory_text(274.3 * 2**20, 2**20 * 300)
    ('0.88 GiB', '274 MiB')
    """
    name, size = memory_unit(most)
    shown = value / size
    return f"{shown:.{0 if size == MIB else 2 if shown < 10 else 1}f} {name}"


def count_text(value: float | None) -> str:
    """A count with its thousands: ``60,000``; from ten million on ``3.67 M``, ``8.03 B``."""
    if value is None:
        return "—"
    if value < 10_000_000:
        return f"{value:,.0f}"
    return _scaled(value, (("T", 1e12), ("B", 1e9), ("M", 1e6)), "").strip()


def money_text(value: float | None, currency: str = "$") -> str:
    """An amount of money: ``$0.0023``, ``$3,312``."""
    if value is None:
        return "—"
    if value == 0 or abs(value) >= 100:
        return f"{currency}{value:,.0f}"
    return f"{currency}{value:,.2f}" if abs(value) >= 0.1 else f"{currency}{value:.2g}"


def percent_text(fraction: float | None, *, digits: int = 1) -> str:
    """A fraction as a percentage: ``94.2 %``."""
    return "—" if fraction is None or fraction != fraction else f"{100 * fraction:.{digits}f} %"


def shape_text(shape: tuple[int, ...] | list[int]) -> str:
    """``384 x 1536`` (out x in)."""
    return " x ".join(str(side) for side in shape)


def _scaled(value: float | None, scales: tuple[tuple[str, float], ...], unit: str) -> str:
    if value is None:
        return "—"
    for name, size in scales:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}" if abs(value) < 1000 * size else f"{value / size:,.0f} {name}"
    return f"{value:,.0f} {unit}"
