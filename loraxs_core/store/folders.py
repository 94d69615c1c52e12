"""Adapter folders into a store and out of it, checked on both ways."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.adapter_folder import ADAPTER_CONFIG, ADAPTER_FILE
from loraxs_core.errors import StoreError, WorkbenchError
from loraxs_core.paths import atomic_folder, user_path
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.store.plans import Plan
from loraxs_core.store.records import Version
from loraxs_core.store.store import AdapterStore
from loraxs_core.store.stored import StoredAdapter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Imported:
    """What became of one folder. version: in the store, None where it was refused. new: whether it was put, False for what the store had as
    the newest version already. why: of a refusal."""

    folder: Path
    name: str
    version: Version | None
    new: bool = False
    why: str = ""


def adapter_folders(folder: str | os.PathLike) -> list[tuple[str, Path]]:
    """(name, folder) of every adapter in `folder`: itself, or those anywhere below it, named by their path from there."""
    root = user_path(folder)
    if not root.is_dir():
        raise StoreError(f"There is no folder {root}.")
    if (root / ADAPTER_CONFIG).is_file():
        return [(root.resolve().name, root)]
    found = [path.parent for path in sorted(root.rglob(ADAPTER_CONFIG))]
    if not found:
        raise StoreError(f"{root} holds no adapter: no {ADAPTER_CONFIG} in it or below it.")
    return [(path.relative_to(root).as_posix(), path) for path in found]


def import_folders(
    store: AdapterStore, folder: str | os.PathLike, *, prefix: str = "", progress: ProgressCallback | None = None
) -> list[Imported]:
    """Puts every adapter found in `folder` (see `adapter_folders`), and reads each back and compares it before it counts.

    prefix: before their names. A folder that is refused does not keep the others out; the result says why.
    """
    from loraxs_core.store.taking import taken

    found = adapter_folders(folder)
    outcomes: dict[str, Imported] = {}
    sources: dict[str, tuple[Path, Plan]] = {}
    report = progress or (lambda _: None)
    begun = Progress(0, len(found))

    def rows() -> Iterator[tuple[str, Plan, dict[str, bytes], bytes]]:
        for done, (name, path) in enumerate(found):
            report(Progress(done, len(found), name, begun.started))
            try:
                plan, shared, row = taken(path)
            except WorkbenchError as error:
                outcomes[name] = Imported(path, prefix + name, None, why=str(error))
                continue
            sources[name] = path, plan
            yield prefix + name, plan, shared, row

    before = {name: _newest(store, prefix + name) for name, _ in found}
    versions = store.put_rows(rows())
    for (name, (path, plan)), version in zip(sources.items(), versions, strict=True):
        back = store.get(version.name, version.version)  # whose row has the checksum of what was read
        if back.plan != plan:
            raise StoreError(f"{version.label} reads back otherwise than {path} holds it; check the disk.")
        outcomes[name] = Imported(path, version.name, version, version != before[name])
    report(Progress(len(found), len(found), "", begun.started))
    return [outcomes[name] for name, _ in found]


def export_folder(store: AdapterStore, name: str, out: str | os.PathLike, *, version: int | None = None) -> Version:
    """Writes an adapter as the folder that PEFT reads, its numbers and its proof byte for byte; read again and compared before it counts.

    The card is made anew. Raises RunError when `out` is there already.
    """
    from loraxs_core.store.taking import taken

    found = store.get(name, version)
    with atomic_folder(out) as temporary:
        write_folder(temporary, found)
        _, _, row = taken(temporary)
        if row != bytes(found.row):
            raise StoreError(f"{found.version.label} reads back otherwise than it was written to {out}; check the disk.")
    return found.version


def write_folder(folder: Path, found: StoredAdapter) -> None:
    """The files of an adapter in `folder`, which is there."""
    from safetensors.torch import save_file

    from loraxs_core.tuner.folder import read_adapter
    from loraxs_core.tuner.saving import finish_folder

    tensors: dict[str, torch.Tensor] = {key: tensor.contiguous() for key, tensor in found.tensors.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(found.plan.config, indent=2, sort_keys=True), encoding="utf-8")
    config = read_adapter(folder).config
    finish_folder(folder, config, config.common_scaling)


def _newest(store: AdapterStore, name: str) -> Version | None:
    try:
        return store.versions(name)[0]
    except StoreError:
        return None
