"""What a table of sizes says, in words."""

from __future__ import annotations

from collections.abc import Mapping

from analyzers.methods import MAIN_METHODS
from analyzers.storage.size import AdapterSize

MOST_COMPARED = 4


def what_weighs(sizes: Mapping[str, AdapterSize]) -> str:
    """How LoRA-XS's file compares with each other method's (of many, with the main ones' and the smallest), and whether its
    header decides; for a table without LoRA-XS, which method's file is the smallest. sizes: method -> size of one adapter."""
    own, least = sizes.get("lora-xs"), min(sizes.values(), key=lambda size: size.file_bytes)
    if own is None:
        return f"The smallest file is {least.label}'s: {least.file_bytes:,} bytes."
    others = [other for other in sizes.values() if other is not own]
    if len(others) > MOST_COMPARED:
        others = [other for other in others if other.method in ("full", *MAIN_METHODS) or other is least]
    said = f"The file of LoRA-XS is {own.file_bytes:,} bytes"
    said += f"; {', '.join(_against(own, other) for other in others)}." if others else "."
    share = own.header_bytes / own.file_bytes
    if share > 0.2:
        said += f" {100 * share:.0f} % of it is the header that names the tensors; a larger rank does not change that part."
    return said


def _against(own: AdapterSize, other: AdapterSize) -> str:
    if other.file_bytes >= own.file_bytes:
        return f"{other.label}'s is {_times(other.file_bytes / own.file_bytes)} times as large"
    return f"{other.label}'s is {_times(own.file_bytes / other.file_bytes)} times smaller"


def _times(ratio: float) -> str:
    return f"{ratio:,.1f}" if ratio < 100 else f"{ratio:,.0f}"
