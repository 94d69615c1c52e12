"""The picture of docs/architecture.md: the rooms as boxes, an arrow for every pair of which one imports the other.

    python -m benchmarks.architecture

Drawn from the source's own imports (`tests.test_imports`), so it cannot say what the code does not.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from tests.test_imports import arrows

TARGET = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"
# Room -> (row from the top, column of 12, width in columns).
PLACES = {
    "app": (0, 0, 12),
    "analyzers.compare": (1, 0, 6),
    "analyzers.ranks": (1, 7, 5),
    "analyzers.memory": (2, 2, 4),
    "analyzers.storage": (2, 7, 5),
    "analyzers.plans": (3, 1, 5),
    "analyzers.methods": (4, 2, 4),
    "analyzers.spectra": (4, 7, 5),
    "sample_models": (5, 0, 2),
    "loraxs_core": (6, 0, 12),
}
COLUMN, ROW, HEIGHT, MARGIN = 66, 74, 36, 12


def rooms() -> set[tuple[str, str]]:
    """(room, a room that it imports), by the longest name of `PLACES` that a module's begins with."""
    found = set()
    for module, targets in arrows().items():
        for target in targets:
            pair = _room(module), _room(target)
            if None not in pair and pair[0] != pair[1]:
                found.add(pair)
    return found


def _room(module: str) -> str | None:
    return next((room for room in PLACES if module == room or module.startswith(f"{room}.")), None)


def draw() -> str:
    """The picture as SVG, readable on a light and on a dark page."""
    width = 12 * COLUMN + 2 * MARGIN
    height = (max(row for row, _, _ in PLACES.values()) * ROW) + HEIGHT + 2 * MARGIN
    pairs = rooms()
    lines = []
    for source, target in sorted(pairs):
        # An arrow that a longer way says already is left out, so that the picture stays one.
        if any((source, middle) in pairs and (middle, target) in pairs for middle in PLACES):
            continue
        x1, y1, x2, y2 = _ends(source, target)
        lines.append(f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" marker-end="url(#tip)"/>')
    boxes = []
    for room in PLACES:
        x, y, wide = _box(room)
        boxes.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{HEIGHT}" rx="6"/>')
        boxes.append(f'<text x="{x + wide / 2:.0f}" y="{y + 23}">{escape(room.replace(".", "/"))}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>The rooms, and which way they import one another</title>",
            "<style>rect{fill:#7A8794;fill-opacity:.12;stroke:#7A8794}text{font:14px sans-serif;text-anchor:middle;fill:#5B6773}"
            "line{stroke:#0072B2;stroke-width:1.5}@media(prefers-color-scheme:dark){text{fill:#C6CFD8}}</style>",
            '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
            '<path d="M0,0 L7,3 L0,6 z" fill="#0072B2"/></marker></defs>',
            *lines,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _box(room: str) -> tuple[int, int, int]:
    row, column, wide = PLACES[room]
    return MARGIN + column * COLUMN, MARGIN + row * ROW, wide * COLUMN


def _ends(source: str, target: str) -> tuple[float, float, float, float]:
    """Where an arrow begins and ends: straight down where the boxes overlap, from side to side elsewhere."""
    (x1, y1, wide1), (x2, y2, wide2) = _box(source), _box(target)
    if y1 == y2:
        start, end = (x1, x2 + wide2 + 5) if x1 > x2 else (x1 + wide1, x2 - 5)
        return start, y1 + HEIGHT / 2, end, y1 + HEIGHT / 2
    low, high = max(x1, x2), min(x1 + wide1, x2 + wide2)
    if low < high:
        # Arrows between the same rows are spread by the room's place in the list, so that none hides another.
        middle = low + (high - low) * (1 + list(PLACES).index(source)) / (len(PLACES) + 1)
        return middle, y1 + HEIGHT, middle, y2 - 5
    return x1 + wide1 / 2, y1 + HEIGHT, (x2 + 20 if x1 < x2 else x2 + wide2 - 20), y2 - 5


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(f"Drawn: {TARGET}")
