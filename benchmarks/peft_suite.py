"""PEFT's own test suite with LoRA-XS plugged in beside LoRA, VeRA and PSOFT.

    python -m benchmarks.peft_suite --peft FOLDER [--file test_custom_models.py] [-k EXPRESSION] [--methods LoRA-XS,VeRA] [--out results.json]
    python -m benchmarks.peft_suite --table results.json others.json

FOLDER is a source tree of the installed version of PEFT (its sdist has the tests); nothing is fetched and nothing in it is changed. The
small random models that the suite takes from the Hub are made here (`benchmarks.peft_suite_models`); cases that want more from
there (tokenizers, finished adapters) count as skipped. What
its tests import has to be there (diffusers, for the common part of them; `pip install --no-deps --target DIR diffusers` and DIR in
PYTHONPATH leave an environment as it is). Every
case that the suite has for LoRA, VeRA or PSOFT with settings that LoRA-XS knows gets a twin with `LoraXSConfig` (and init_std=0, because
the suite wants every method to start at the base model, and the authors' start is N(0, 1e-5^2)); tests that go by the
configuration's class get the class. Cases of other methods are left out. Prints what passed and failed by method, every test that
LoRA-XS fails with the reason that pytest gives, and whether VeRA or PSOFT pass all their cases of the same test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.peft_suite_models import make_models

OUT, WANTED = "PEFT_SUITE_OUT", "PEFT_SUITE_METHODS"
METHODS = {"LoraConfig": "LoRA", "VeraConfig": "VeRA", "PsoftConfig": "PSOFT", "LoraXSConfig": "LoRA-XS"}
# Settings of the others' that mean the same here, and what they are called.
NAMES = {
    "lora_alpha": "alpha",
    "psoft_alpha": "alpha",
    "lora_dropout": "dropout",
    "psoft_dropout": "dropout",
    "vera_dropout": "dropout",
    "init_lora_weights": "init_weights",
}
IDLE = ("bias", "none")  # a setting of LoRA and VeRA that says nothing
AT_THE_HUB = ("LocalEntryNotFoundError", "We couldn't connect to 'https://huggingface.co'")
NOT_LINEAR = ("Conv1d", "Conv2d", "Conv3d", "MHA")  # which LoRA-XS does not adapt (Conv1D is transformers' linear layer)
SAME = {
    "target_modules",
    "modules_to_save",
    "exclude_modules",
    "r",
    "rank_pattern",
    "alpha_pattern",
    "init_weights",
    "task_type",
}


def twin(row: tuple) -> tuple | None:
    """`row` of a parametrisation with LoRA-XS in the place of the method it is about; None where settings have no counterpart."""
    from loraxs_core.tuner import LoraXSConfig

    at = next((index for index, one in enumerate(row) if getattr(one, "__name__", "") in METHODS), None)
    if at is None or any(kind in str(one) for one in row for kind in NOT_LINEAR):
        return None
    made = [LoraXSConfig if index == at else one for index, one in enumerate(row)]
    for index, one in enumerate(made):
        if isinstance(one, dict):
            settings = {NAMES.get(key, key): value for key, value in one.items() if (key, value) != IDLE}
            if settings.keys() - SAME - set(NAMES.values()) or settings.get("init_weights") not in (None, True, False):
                return None
            made[index] = {"r": 1 if "EmbConv1D" in row else 2, "init_std": 0.0} | settings  # its Conv1D has one output
        elif one in ("lora", "vera", "psoft"):
            made[index] = "loraxs"  # the tests ask of "lora" what only LoraConfig has
        elif isinstance(one, str):
            made[index] = one.replace(METHODS[row[at].__name__], "LoRA-XS")
    return tuple(made)


def plug_in(rows: list) -> None:
    """Adds the twins of `rows` to them, or the class where they are classes."""
    from loraxs_core.tuner import LoraXSConfig

    if LoraXSConfig in rows or any(isinstance(row, tuple) and LoraXSConfig in row for row in rows):
        return
    if any(getattr(row, "__name__", "") in METHODS for row in rows):
        rows.append(LoraXSConfig)
        return
    seen: set[str] = set()
    for made in [twin(row) for row in rows if isinstance(row, tuple)]:
        settings = None if made is None else repr([one for one in made[1:] if not isinstance(one, type)])
        if made is not None and settings not in seen:
            seen.add(settings)
            rows.append(made)


class _Seen(dict):
    """How often each model was used, for a suite that asks whether it was at all."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 0


class Plugin:
    """What pytest asks: the cases, which of them are run, and where their outcomes go."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        self.methods: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for mark in metafunc.definition.iter_markers("parametrize"):
            if len(mark.args) < 2 or not isinstance(mark.args[1], list | tuple):
                continue
            if isinstance(mark.args[1], tuple):  # of rows; PEFT has both kinds
                object.__setattr__(mark, "args", (mark.args[0], [*mark.args[1]], *mark.args[2:]))
            plug_in(mark.args[1])

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # The suite goes online for the first use of every model and offline after that; here all of them lie in the cache.
        if "tests.testing_utils" in sys.modules:
            sys.modules["tests.testing_utils"].__dict__["_HUB_MODEL_ACCESSES"] = _Seen()
        kept = []
        for item in items:
            values = getattr(getattr(item, "callspec", None), "params", {}).values()
            method = next((METHODS[name] for one in values if (name := getattr(one, "__name__", "")) in METHODS), None)
            if method is not None and method in os.environ[WANTED].split(","):
                self.methods[item.nodeid] = method
                kept.append(item)
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = str(report.longrepr).strip() if report.failed else ""
            errors = [line.removeprefix("E").strip() for line in said.splitlines() if line.startswith("E  ")]
            test = report.nodeid.partition("[")[0].rpartition("::")[2]
            outcome = "skipped" if any(one in said for one in AT_THE_HUB) else report.outcome
            self.outcomes[self.methods[report.nodeid]].append((test, outcome, errors[0] if errors else ""))

    def pytest_sessionfinish(self) -> None:
        Path(os.environ[OUT]).write_text(json.dumps(self.outcomes), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if OUT in os.environ:
        config.pluginmanager.register(Plugin())


def table(outcomes: dict[str, list[list[str]]]) -> list[str]:
    lines = ["| method | cases | passed | failed | skipped |", "|---|---|---|---|---|"]
    for method in METHODS.values():
        found = [outcome for _, outcome, _ in outcomes.get(method, [])]
        counts = [found.count(one) for one in ("passed", "failed", "skipped")]
        lines.append(f"| {method} | {len(found)} | {' | '.join(map(str, counts))} |")
    failed: dict[str, list[str]] = defaultdict(list)
    for test, outcome, reason in outcomes.get("LoRA-XS", []):
        if outcome == "failed":
            failed[test].append(reason)
    if not failed:
        return [*lines, "", "LoRA-XS fails none."]
    lines += ["", "| LoRA-XS fails | cases | VeRA | PSOFT | the first reason |", "|---|---|---|---|---|"]
    for test, reasons in sorted(failed.items()):
        others = [_verdict([one for name, one, _ in outcomes.get(method, []) if name == test]) for method in ("VeRA", "PSOFT")]
        lines.append(f"| {test} | {len(reasons)} | {' | '.join(others)} | {reasons[0][:160].replace('|', '/')} |")
    return lines


def _verdict(found: list[str]) -> str:
    return "fails" if "failed" in found else "passes" if "passed" in found else "skipped" if found else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peft", type=Path, help="PEFT's source tree, with its tests folder")
    parser.add_argument("--file", default="test_custom_models.py", help="which file of the tests")
    parser.add_argument("-k", dest="expression", default="", help="which tests, as pytest's -k has it")
    parser.add_argument("--out", type=Path, help="where to keep the outcomes as JSON")
    parser.add_argument(
        "--methods", default=",".join(METHODS.values()), help="whose cases are run, of " + ", ".join(METHODS.values())
    )
    parser.add_argument("--table", nargs="+", type=Path, help="run nothing, print the table of outcomes kept with --out")
    given = parser.parse_args()
    if given.table:
        together: dict[str, list[list[str]]] = defaultdict(list)
        for path in given.table:
            for method, outcomes in json.loads(path.read_text(encoding="utf-8")).items():
                together[method] += outcomes
        print("\n".join(table(together)))
        return 0
    if given.peft is None:
        parser.error("give PEFT's source tree with --peft FOLDER.")
    tests = given.peft / "tests"
    if not (tests / given.file).is_file():
        parser.error(f"{tests} holds no {given.file}; give the folder of PEFT's sources, as its sdist or repository has them.")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(tests, Path(folder) / "tests")
        (Path(folder) / "tests/__init__.py").touch()
        (Path(folder) / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        out = given.out.resolve() if given.out else Path(folder) / "outcomes.json"
        make_models(Path(folder) / "hub")
        environment = os.environ | {
            OUT: str(out),
            "HF_HUB_CACHE": str(Path(folder) / "hub"),
            "HF_HUB_OFFLINE": "1",
            WANTED: given.methods,
            "PYTHONPATH": os.pathsep.join((folder, str(Path(__file__).parents[1]), *sys.path[1:])),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--no-header",
            "--tb=short",
            "-p",
            "benchmarks.peft_suite",
            "-p",
            "no:cacheprovider",
        ]
        command += ["-k", given.expression] if given.expression else []
        done = subprocess.run(
            [*command, f"tests/{given.file}"], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if not out.is_file() or not json.loads(out.read_text(encoding="utf-8")):
            print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
            return 1
        print("\n".join(table(json.loads(out.read_text(encoding="utf-8")))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
