"""What a base model is called where others can find it: its hub id and revision, never a path of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The hub's cache: <cache>/models--owner--name/snapshots/<commit>/
_SNAPSHOT = re.compile(r"(?:^|[/\\])models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{7,64})(?:[/\\]|$)")


@dataclass(frozen=True)
class BaseName:
    """id: on the hub, None for a model that is only on a machine. revision: commit or branch, None where not known. folder: where its
    files are here, None where not known."""

    id: str | None
    revision: str | None = None
    folder: Path | None = None

    @property
    def licence(self) -> str | None:
        """The ``license`` that the model's own card states (``apache-2.0``); None without a card beside the weights."""
        return _licence(self.folder) if self.folder else None


def base_name(given: str | Path | None, revision: str | None = None) -> BaseName:
    """The name of the model that was `given` to from_pretrained: a hub id, or a folder, of which one in the hub's cache has both an id
    and the commit as its revision. What is a folder here, or cannot be a hub id, has no name elsewhere."""
    text = str(given or "")
    if match := _SNAPSHOT.search(text):
        folder = Path(text)
        return BaseName(match["id"].replace("--", "/"), match["commit"], folder if folder.is_dir() else None)
    if not text or not _may_be_id(text):
        folder = Path(text) if text else None
        return BaseName(None, None, folder if folder and _is_folder(folder) else None)
    return BaseName(text, revision, _cached(text, revision))


def _may_be_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "\\" in text or _is_folder(Path(text)):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _is_folder(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is no path either
        return False


def _cached(repo_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo_id, "README.md", revision=revision)
    except (OSError, ValueError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def _licence(folder: Path) -> str | None:
    from huggingface_hub import metadata_load

    try:
        stated = (metadata_load(folder / "README.md") or {}).get("license")
    except Exception:  # no card, or front matter that YAML refuses: then nothing is known
        return None
    return stated if isinstance(stated, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", stated) else None
