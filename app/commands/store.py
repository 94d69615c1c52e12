"""`loraxs store`: a fleet of adapters in one place: checked, versioned, shared by processes, backed up."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.options.common import Json
from app.outputs import ADAPTER, Force, new_folder, refuse_file
from app.terminal import print_json, print_table, progress_bar, say
from app.units import bytes_text
from loraxs_core.errors import StoreError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    from loraxs_core.store import AdapterStore, Version

GROUP = typer.Typer(
    help="A store for a fleet of LoRA-XS adapters: put, get, list, check, collect, back up.", no_args_is_help=True
)

Store = Annotated[Path, typer.Argument(metavar="STORE", help="The folder of the store.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the adapter is called in the store.")]
Which = Annotated[int | None, typer.Option("--version", help="A version's number; the newest when left out.")]
Url = Annotated[str, typer.Argument(metavar="PLACE", help="A folder, s3://bucket/prefix, or whatever fsspec reaches.")]


@GROUP.command()
def create(store: Store, json: Json = False) -> None:
    """Make an empty store in a new folder."""
    from loraxs_core.store import AdapterStore

    made = AdapterStore.create(store)
    if json:
        print_json({"store": made.folder, "id": made.id})
        return
    say(f"An empty store is in {made.folder}.")


@GROUP.command()
def put(
    store: Store,
    name: Name,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder of an adapter, as save_pretrained wrote it.")],
    json: Json = False,
) -> None:
    """Keep an adapter as the newest version of NAME. It is on the disk when the command ends; older versions stay."""
    opened = _open(store)
    before = set(_versions_or_none(opened, name))
    version = opened.put(name, adapter)
    if json:
        print_json({**_facts(version), "new": version not in before})
    elif version in before:
        say(f"{version.label} holds these numbers already; nothing was put.")
    else:
        say(f"{version.label} is in the store ({bytes_text(version.size)}).")


@GROUP.command()
def get(
    store: Store,
    name: Name,
    version: Which = None,
    out: Annotated[Path | None, typer.Option(help="Write all R there, a .safetensors file: module name -> R.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read an adapter, check it, and say what it is; with --out, write its R matrices."""
    if out is not None:
        refuse_file(out, (".safetensors",), force=force)
    found = _open(store).get(name, version)
    if out is not None:
        from safetensors.torch import save_file

        with atomic_file(out) as temporary:
            save_file({module: core.contiguous() for module, core in found.cores.items()}, temporary)
    ranks = found.plan.ranks
    if json:
        print_json({**_facts(found.version), "base": found.plan.base, "ranks": ranks, "config": found.plan.config, "out": out})
        return
    span = sorted(set(ranks.values()))
    say(
        f"{found.version.label}: {len(ranks)} modules, rank {span[0]}{f' to {span[-1]}' if len(span) > 1 else ''}, "
        f"{bytes_text(found.version.size)}, put {_when(found.version)}; its checksum is right."
    )
    if out is not None:
        say(f"Its R matrices are in {out}.")


@GROUP.command()
def versions(store: Store, name: Name, json: Json = False) -> None:
    """List the versions of one adapter, the newest first."""
    found = _open(store).versions(name)
    if json:
        print_json([_facts(one) for one in found])
        return
    print_table(
        f"{name} in {store}",
        ("version", "put", "size", "plan", "checksum"),
        [(one.version, _when(one), bytes_text(one.size), one.plan, one.checksum.hex()) for one in found],
    )


@GROUP.command("list")
def list_(
    store: Store,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only names that begin so.")] = "",
    json: Json = False,
) -> None:
    """List the adapters, their newest version and how many there are, and what the store takes on the disk."""
    opened = _open(store)
    newest: dict[str, Version] = {}
    counts: dict[str, int] = {}
    for one in opened.entries(prefix):
        newest.setdefault(one.name, one)
        counts[one.name] = counts.get(one.name, 0) + 1
    space = opened.space()
    if json:
        adapters = [{**_facts(one), "versions": counts[name]} for name, one in newest.items()]
        print_json({"store": opened.folder, "id": opened.id, "space": space, "overhead": space.overhead, "adapters": adapters})
        return
    print_table(
        f"{len(newest):,} adapters in {store}" + (f" that begin with {prefix}" if prefix else ""),
        ("adapter", "newest version", "put", "versions", "size", "plan"),
        [(name, one.version, _when(one), counts[name], bytes_text(one.size), one.plan) for name, one in newest.items()],
        note=f"The whole store: {space.adapters:,} adapters, {space.versions:,} versions, {space.plans:,} plans; numbers "
        f"{bytes_text(space.numbers)}, file {bytes_text(space.file)}, of which {bytes_text(space.free)} are free for later puts.",
    )


@GROUP.command()
def delete(store: Store, name: Name, version: Which = None, json: Json = False) -> None:
    """Delete an adapter with all its versions, or one version. There is no way back but a backup."""
    gone = _open(store).delete(name, version)
    if json:
        print_json([_facts(one) for one in gone])
        return
    say(f"Deleted {', '.join(one.label for one in gone[:8])}{f' and {len(gone) - 8} more' if len(gone) > 8 else ''}.")


@GROUP.command()
def verify(
    store: Store,
    delete_damaged: Annotated[
        bool, typer.Option("--delete-damaged", help="Delete the adapters that are damaged; the others stay.")
    ] = False,
    json: Json = False,
) -> None:
    """Read everything and check it: every row, every index entry, the file itself. Exit code 1 when something is damaged."""
    from loraxs_core.store import drop_damaged
    from loraxs_core.store import verify as check

    opened = _open(store)
    with progress_bar("Checking", quiet=json) as progress:
        report = check(opened, progress=progress)
    dropped = drop_damaged(opened) if delete_damaged and report.damaged else []
    if json:
        print_json({"sound": report.sound, **vars(report), "deleted": dropped})
    else:
        say(
            f"{report.versions:,} versions read, {bytes_text(report.bytes)}: {'all sound' if report.sound else 'NOT all sound'}."
        )
        for one in report.damaged:
            say(one.what)
        for what in report.file:
            say(f"The file of the store: {what}.")
        if dropped:
            say(f"Deleted: {', '.join(dropped)}.")
    if not report.sound:
        raise typer.Exit(1)


@GROUP.command()
def gc(
    store: Store,
    keep: Annotated[
        int | None, typer.Option(help="Keep this many newest versions of every adapter; all when left out.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact/--no-compact", help="Write the file anew, so that the disk gets its free pages back.")
    ] = True,
    json: Json = False,
) -> None:
    """Delete old versions and plans that no adapter has, and give the space back to the disk."""
    from loraxs_core.store import collect

    done = collect(_open(store), keep=keep, compact=compact)
    if json:
        print_json(done)
        return
    say(f"Removed {done.versions:,} old versions and {done.plans:,} plans; {bytes_text(done.bytes)} given back to the disk.")


@GROUP.command()
def export(
    store: Store,
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for the adapter, as PEFT reads it.")],
    version: Which = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an adapter as a PEFT folder, its numbers byte for byte those that were put."""
    from loraxs_core.store import export_folder

    opened = _open(store)
    with new_folder(out, ADAPTER, reads=(store,), force=force) as folder:
        found = export_folder(opened, name, folder, version=version)
    if json:
        print_json({**_facts(found), "out": out})
        return
    say(f"{found.label} is in {out}.")


@GROUP.command("import")
def import_(
    store: Store,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter's folder, or one with many anywhere below it.")],
    prefix: Annotated[str, typer.Option(help="Put before every name; the name is the folder's path below FOLDER.")] = "",
    json: Json = False,
) -> None:
    """Put every adapter found in FOLDER and read each back. Exit code 1 when some were refused; the others are in."""
    from loraxs_core.store import import_folders

    opened = _open(store)
    with progress_bar("Importing", quiet=json) as progress:
        found = import_folders(opened, folder, prefix=prefix, progress=progress)
    refused = [one for one in found if one.version is None]
    new = sum(one.new for one in found)
    if json:
        told = [{"folder": one.folder, "name": one.name, "new": one.new, "why": one.why or None} for one in found]
        print_json({"found": len(found), "put": new, "refused": len(refused), "adapters": told})
    else:
        say(f"{new:,} of {len(found):,} adapters put; {len(found) - new - len(refused):,} were there already.")
        for one in refused:
            say(f"Refused {one.folder}: {one.why}")
    if refused:
        raise typer.Exit(1)


@GROUP.command()
def backup(store: Store, place: Url, json: Json = False) -> None:
    """Bring the backup in PLACE up to date, or make it: safetensors shards and a manifest. Only what is new travels."""
    from loraxs_core.store import backup as save

    with progress_bar("Backing up", quiet=json) as progress:
        done = save(_open(store), place, progress=progress)
    if json:
        print_json(done)
        return
    say(
        f"{done.versions:,} versions in {done.shards:,} shards are in {place}; {done.written:,} shards were new "
        f"({bytes_text(done.bytes)} written and read back)."
    )


@GROUP.command()
def restore(place: Url, store: Store, json: Json = False) -> None:
    """Make a new store of the backup in PLACE, every row checked, versions numbered as they were."""
    from loraxs_core.store import restore as fetch

    with progress_bar("Restoring", quiet=json) as progress:
        made, done = fetch(place, store, progress=progress)
    if json:
        print_json({"store": made.folder, "id": made.id, **vars(done)})
        return
    say(f"{done.versions:,} versions are in {made.folder}.")


def _open(folder: Path) -> AdapterStore:
    from loraxs_core.store import AdapterStore

    return AdapterStore(folder)


def _versions_or_none(store: AdapterStore, name: str) -> list[Version]:
    try:
        return store.versions(name)
    except StoreError:
        return []


def _facts(version: Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "plan": version.plan,
        "bytes": version.size,
        "created": _when(version),
        "checksum": version.checksum.hex(),
    }


def _when(version: Version) -> str:
    made = datetime.datetime.fromtimestamp(version.created / 1e6, datetime.UTC)
    return made.isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
