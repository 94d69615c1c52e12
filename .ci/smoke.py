"""The wheel, built and tried where a user has it: in a clean environment, from a folder with an `app` and an `analyzers` of its own.

The environment borrows the libraries of the one that runs this (no download), and gets the wheel beside them. Its `loraxs` plans,
compares in the background and serves the page; the folder's own packages raise when anybody imports them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = 300  # seconds for anything that is waited for


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        wheel = build(place / "dist")
        loraxs, python = install(wheel, place / "venv")
        folder = own_folder(place / "work")
        environment = os.environ | {"LORAXS_DATA": str(place / "data"), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)

        def run(*command: str | Path) -> str:
            print("$", *(part.name if isinstance(part, Path) else part for part in command), flush=True)
            done = subprocess.run(
                command, cwd=folder, env=environment, text=True, capture_output=True, timeout=DEADLINE, check=False
            )
            if done.returncode:
                sys.exit(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return done.stdout

        print(run(loraxs, "--version"), end="")
        where = run(python, "-P", "-c", "import app, analyzers; print(app.__path__[0], analyzers.__path__[0])")
        assert str(ROOT) not in where, where
        run(loraxs, "plan", "minilm", "--out", "plan.json")
        run(loraxs, "size", "minilm", "--method", "lora-xs", "--plan", "plan.json")
        compare(run, loraxs, folder)
        serve(loraxs, folder, environment)
    print("The wheel works.")


def build(out: Path) -> Path:
    """The wheel of what this checkout holds, made in a copy: a build folder left behind would get into the next wheel."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "build", "tests", "docs", "benchmarks", "*.egg-info", "__pycache__"
    )
    copy = shutil.copytree(ROOT, out.with_name("source"), ignore=left_out)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """(its `loraxs`, its Python) of a new environment that has this wheel, and sees the libraries of ours but not this checkout."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # A path in a .pth file is searched; the .pth files in it, such as that of an editable install, are not read.
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin" / "loraxs", python


def own_folder(folder: Path) -> Path:
    for name in ("app", "analyzers", "loraxs_core", "sample_models"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(
            f"raise SystemExit('the folder\\'s own {name} was imported')\n", encoding="utf-8"
        )
    return folder


def compare(run, loraxs: Path, folder: Path) -> None:
    """A comparison in the background is done, with a result."""
    settings = (
        "--methods",
        "head-only",
        "--steps",
        "2",
        "--batch",
        "4",
        "--sequence",
        "16",
        "--out",
        "run",
        "--detach",
        "--json",
    )
    started = json.loads(run(loraxs, "compare", "minilm", "--task", "stsb", *settings))
    end = time.monotonic() + DEADLINE
    while not list(folder.glob("run/trials/*/result.json")):
        assert time.monotonic() < end, "the comparison gives no result"
        status = folder / "run" / "status.json"
        assert '"failed"' not in (status.read_text() if status.exists() else ""), status.read_text()
        time.sleep(1)
    print(f"compared, from state {started['state']!r}")


def serve(loraxs: Path, folder: Path, environment: dict[str, str]) -> None:
    """The page answers on localhost."""
    port = "8731"
    with subprocess.Popen(
        [loraxs, "app", "--headless", "--no-token", "--port", port],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as page:
        try:
            end = time.monotonic() + DEADLINE
            while True:
                assert page.poll() is None, page.stderr.read()
                try:
                    with urllib.request.urlopen(f"http://localhost:{port}/", timeout=5) as answer:
                        assert answer.status == 200
                        break
                except urllib.error.URLError:
                    assert time.monotonic() < end, "the page does not answer"
                    time.sleep(0.5)
            print("the page answers")
        finally:
            page.terminate()


if __name__ == "__main__":
    main()
