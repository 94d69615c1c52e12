"""A store as files that anything can keep: safetensors shards and a manifest, in a folder or in object storage, through fsspec.

    manifest.json                    what belongs to the backup; written last, so that a backup is whole or the one before
    rows-<checksum>.safetensors      rows, a tensor each, named ``name@version``, in the adapters' own precision
    common-<checksum>.safetensors    plans and what many adapters have in common

A shard is named by the XXH3-128 of its bytes and never changed: a later backup writes the shards of what is new, keeps those whose
adapters are all still there, and removes the others once the new manifest is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from xxhash import xxh3_128_hexdigest

from loraxs_core.errors import StoreDamaged, StoreError
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.store import plans, records
from loraxs_core.store.plans import Plan
from loraxs_core.store.records import Version
from loraxs_core.store.store import AdapterStore, place_plan, place_row, read_plan, read_row, set_counter, shared_bytes, under

if TYPE_CHECKING:
    import torch

MANIFEST, ROWS, COMMON, ENDING = "manifest.json", "rows-", "common-", ".safetensors"
FORMAT = 1
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Backup:
    """What a backup or a restore did. versions: in it. shards: of rows in all. written: of them, new. bytes: that travelled."""

    versions: int
    shards: int
    written: int
    bytes: int


@dataclass(frozen=True)
class _Shard:
    """file: its name. bytes, versions: in it."""

    file: str
    bytes: int
    versions: int


class _Place:
    """The folder or bucket that a backup is in. url: as fsspec takes it. options: for its file system, such as an endpoint."""

    def __init__(self, url: str, options: dict[str, Any]):
        self.url = url
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise StoreError(f"Cannot use {url}: {str(error).rstrip('.')}.") from error

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        try:
            return self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            raise StoreError(f"There is no {name} in {self.url}; it is no whole backup of a store.") from None
        except Exception as error:  # of whichever library reaches that storage
            raise StoreError(f"Cannot read {name} in {self.url}: {_said(error)}.") from error

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all; read again and compared."""
        try:
            if isinstance(self.fs, LocalFileSystem):  # object storage has no folders, and a bucket is not made by accident
                self.fs.makedirs(self.root, exist_ok=True)
            with self.fs.transaction, self.fs.open(self.path(name), "wb") as file:
                file.write(content)
            same = self.fs.cat_file(self.path(name)) == content
        except Exception as error:
            raise StoreError(f"Cannot write {name} to {self.url}: {_said(error)}.") from error
        if not same:
            raise StoreError(f"{name} in {self.url} reads back otherwise than it was written; check the storage.")

    def manifest(self) -> dict | None:
        """What is backed up there, None where nothing is."""
        self.fs.invalidate_cache()
        try:
            if not self.fs.exists(self.path(MANIFEST)):
                return None
        except Exception as error:
            raise StoreError(f"Cannot look into {self.url}: {_said(error)}.") from error
        try:
            said = json.loads(self.read(MANIFEST))
            if said["format"] != FORMAT:
                raise StoreError(f"{self.url} holds a backup of format {said['format']}; this version reads {FORMAT}.")
            said["rows"] = [_Shard(**one) for one in said["rows"]]
            return said
        except (ValueError, KeyError, TypeError):
            raise StoreDamaged(f"{MANIFEST} in {self.url} is damaged; take another backup.") from None

    def names(self) -> list[str]:
        self.fs.invalidate_cache()
        return [path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False)]

    def remove(self, name: str) -> None:
        self.fs.rm_file(self.path(name))


def backup(
    store: AdapterStore,
    url: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    options: dict[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> Backup:
    """Brings the backup of `store` in `url` up to date, or makes it. What is put meanwhile may be in it or not.

    url: a folder, or s3://bucket/prefix, or whatever fsspec reaches. options: for that file system. Every row's checksum is checked on
    the way, and every shard read back. Killed at any moment it leaves the backup before, or this one. Raises StoreDamaged naming an adapter that is
    damaged, StoreError for a place that cannot be written or holds the backup of another store.
    """
    place = _Place(url, options or {})
    before = place.manifest()
    if before is not None and before["store"] != store.id:
        raise StoreError(f"{url} holds the backup of another store; give another place.")
    wanted = {one.label: one for one in store.entries()}
    kept: list[_Shard] = []
    for shard in before["rows"] if before else ():
        held = _labels(place, shard)
        if held and all(label in wanted for label in held):
            kept.append(shard)
            for label in held:
                del wanted[label]
    report = progress or (lambda _: None)
    total = sum(one.size for one in wanted.values())
    begun = Progress(0, max(1, total))
    written, sent = [], 0
    for chosen in _divided(list(wanted.values()), shard_bytes):
        shard = _write_rows(place, store, chosen)
        written.append(shard)
        sent += shard.bytes
        report(Progress(min(sent, begun.total), begun.total, shard.file, begun.started))
    common = _common(store)
    name = f"{COMMON}{xxh3_128_hexdigest(common)}{ENDING}"
    if before is None or before["common"] != name:
        place.write(name, common)
        sent += len(common)
    shards = [*kept, *written]
    said = {"format": FORMAT, "store": store.id, "common": name, "rows": [asdict(one) for one in shards]}
    place.write(MANIFEST, json.dumps(said, indent=1).encode())
    belongs = {name, MANIFEST, *(one.file for one in shards)}
    for other in place.names():  # of earlier backups, or of one that was killed
        if other not in belongs and other.startswith((ROWS, COMMON)) and other.endswith(ENDING):
            place.remove(other)
    return Backup(sum(one.versions for one in shards), len(shards), len(written), sent)


def restore(
    url: str, folder: str | os.PathLike, *, options: dict[str, Any] | None = None, progress: ProgressCallback | None = None
) -> tuple[AdapterStore, Backup]:
    """A new store in `folder` with all that the backup in `url` holds, versions numbered as they were; every row is checked.

    Raises StoreError where there is no backup or the folder is taken, StoreDamaged naming the shard that is not what was written.
    """
    place = _Place(url, options or {})
    said = place.manifest()
    if said is None:
        raise StoreError(f"There is no backup of a store in {url}: it has no {MANIFEST}.")
    store = AdapterStore.create(folder)
    numbers = _restore_common(store, _checked(place, said["common"]))
    report = progress or (lambda _: None)
    begun = Progress(0, max(1, sum(one.bytes for one in said["rows"])))
    done = versions = highest = 0
    for shard in said["rows"]:
        rows = _rows_of(shard.file, _checked(place, shard.file), numbers)
        with store.files.writing() as view:
            for version, row in rows:
                place_row(view, version, row)
                highest = max(highest, version.version)
            set_counter(view, "version", highest)
        done, versions = done + shard.bytes, versions + len(rows)
        report(Progress(done, begun.total, shard.file, begun.started))
    return store, Backup(versions, len(said["rows"]), len(said["rows"]), done)


def _divided(versions: list[Version], most: int) -> Iterator[list[Version]]:
    """In the order they were put, so that a shard is of one time, up to `most` bytes together."""
    chosen: list[Version] = []
    size = 0
    for one in sorted(versions, key=lambda one: one.version):
        if chosen and size + one.size > most:
            yield chosen
            chosen, size = [], 0
        chosen.append(one)
        size += one.size
    if chosen:
        yield chosen


def _write_rows(place: _Place, store: AdapterStore, versions: list[Version]) -> _Shard:
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    said = {}
    with store.files.reading() as view:
        for one in versions:
            if view.txn.get(records.key_of(one.name, one.version)) is None:
                continue  # deleted meanwhile
            tensors[one.label] = _as_tensor(read_row(view, one), store.plan_of(view, one))
            said[one.label] = [one.plan, one.created, one.checksum.hex()]
    content = save(tensors, metadata={"format": "pt", "records": json.dumps(said, ensure_ascii=False)})
    name = f"{ROWS}{xxh3_128_hexdigest(content)}{ENDING}"
    place.write(name, content)
    return _Shard(name, len(content), len(tensors))


def _as_tensor(row: bytearray, plan: Plan) -> torch.Tensor:
    """A row in the precision of its numbers, or as bytes where they have more than one."""
    import torch

    kinds = {part.dtype for part in plan.parts}
    return torch.frombuffer(row, dtype=getattr(torch, kinds.pop()) if len(kinds) == 1 else torch.uint8)


def _labels(place: _Place, shard: _Shard) -> list[str]:
    """Whose rows are in a shard, by its header; none where the shard is not what it was or is not there."""
    try:
        size = int.from_bytes(place.fs.cat_file(place.path(shard.file), start=0, end=8), "little")
        if place.fs.size(place.path(shard.file)) != shard.bytes or size > shard.bytes:
            return []
        header = json.loads(place.fs.cat_file(place.path(shard.file), start=8, end=8 + size))
        return list(json.loads(header["__metadata__"]["records"]))
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        return []
    except Exception as error:
        raise StoreError(f"Cannot read {shard.file} in {place.url}: {_said(error)}.") from error


def _common(store: AdapterStore) -> bytes:
    """Plans and shared parts as a safetensors file of bytes: ``plan-<number>``, ``shared-<checksum>``."""
    import torch
    from safetensors.torch import save

    found = {}
    with store.files.reading() as view:
        for key, _ in under(view, records.PLANS):
            number = int.from_bytes(key[1:], "big")
            plan = read_plan(view, number)
            found[f"plan-{number}"] = plan.to_json().encode()
            for digest in (plan.template_digest, *(digest for *_, digest in plan.shared)):
                found[f"shared-{digest}"] = shared_bytes(view, digest)
    return save({name: torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8) for name, content in found.items()})


def _restore_common(store: AdapterStore, content: bytes) -> dict[int, int]:
    """Puts plans and shared parts; their numbers in the backup -> in the store."""
    from safetensors.torch import load

    found = {name: bytes(tensor.numpy()) for name, tensor in load(content).items()}
    shared = {name.removeprefix("shared-"): blob for name, blob in found.items() if name.startswith("shared-")}
    numbers = {}
    with store.files.writing() as view:
        for name in sorted(found, key=lambda name: (len(name), name)):
            if name.startswith("plan-"):
                text = found[name]
                plan = plans.of_json(text, shared[plans.template_checksum(text)])
                needed = {digest: shared[digest] for digest in (plan.template_digest, *(digest for *_, digest in plan.shared))}
                numbers[int(name.removeprefix("plan-"))] = place_plan(view, plan, needed)
    return numbers


def _rows_of(file: str, content: bytes, numbers: dict[int, int]) -> list[tuple[Version, bytes]]:
    """What a shard holds. Raises StoreDamaged naming the adapter whose row is not what was put."""
    import torch
    from safetensors.torch import load

    size = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["records"])
    found = []
    for label, tensor in load(content).items():
        plan, created, digest = said[label]
        row = bytes(tensor.view(torch.uint8).numpy())
        name, _, number = label.rpartition("@")
        if records.checksum(row).hex() != digest:
            raise StoreDamaged(f"{label} in {file} is damaged; take another backup.")
        found.append((Version(name, int(number), numbers[plan], len(row), created, bytes.fromhex(digest)), row))
    return sorted(found, key=lambda one: one[0].version)


def _checked(place: _Place, file: str) -> bytes:
    """The content of a shard, its checksum found to be the one in its name."""
    content = place.read(file)
    if file.removesuffix(ENDING).rpartition("-")[2] != xxh3_128_hexdigest(content):
        raise StoreDamaged(f"{file} in {place.url} is damaged; take another backup.")
    return content


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().rstrip(".")
