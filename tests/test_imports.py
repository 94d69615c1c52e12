"""The house's arrows, read from the source: no circle by any kind of import, rooms that never look back, a rule for late imports.

An import inside a function is there for start-up time and for nothing else. It is allowed for a library of `SLOW`, for a package
that may be missing (`OPTIONAL`), and for one of our own modules that loads a slow library which its importer does not load
anyway. Everything else stands at the top of its file (docs/architecture.md).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("app", "analyzers", "sample_models", "loraxs_core")
# What a room may import besides itself.
BELOW = {
    "app": {"analyzers", "sample_models", "loraxs_core"},
    "analyzers": {"sample_models", "loraxs_core"},
    "sample_models": {"loraxs_core"},
    "loraxs_core": set(),
}
SLOW = {
    "accelerate", "datasets", "gguf", "httpx", "httpx2", "huggingface_hub", "numpy", "pandas", "peft", "plotly", "pyarrow", "safetensors",
    "scipy", "sklearn", "streamlit", "tokenizers", "torch", "transformers",
}  # fmt: skip
OPTIONAL = {"bitsandbytes", "kernels", "lm_eval", "ray", "torch_xla", "uvicorn", "vllm"}


class Import(NamedTuple):
    """An import in the source. late: inside a function. typed: for type checkers alone."""

    module: str
    name: str
    line: int
    late: bool
    typed: bool


@cache
def sources() -> dict[str, Path]:
    files = {file.relative_to(ROOT): file for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): file for path, file in files.items()}


def parse(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def collect(module: str, node: ast.AST, late: bool = False, typed: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(module, alias.name, child.lineno, late, typed) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = child.module or ""
            if child.level:
                inside = module if sources()[module].name == "__init__.py" else module.rpartition(".")[0]
                package = importlib.util.resolve_name("." * child.level + package, inside)
            for alias in child.names:
                full = f"{package}.{alias.name}"
                yield Import(module, full if full in sources() else package, child.lineno, late, typed)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from collect(module, child, True, typed)
        else:
            yield from collect(
                module, child, late, typed or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            )


@cache
def imports() -> tuple[Import, ...]:
    return tuple(one for module in sources() for one in collect(module, parse(module)))


@cache
def by_module() -> dict[str, list[Import]]:
    return {module: list(group) for module, group in groupby(imports(), key=lambda one: one.module)}


def own(name: str) -> str | None:
    """The module of ours that importing `name` loads."""
    while name and name not in sources():
        name = name.rpartition(".")[0]
    return name or None


@cache
def registered() -> dict[str, list[str]]:
    """Folder -> its files, for every folder whose files are found by `loraxs_core.registry`."""
    folders = [
        module
        for module in sources()
        if any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "found"
            and "__name__" in ast.dump(node)
            for node in ast.walk(parse(module))
        )
    ]
    return {folder: [file for file in sources() if file.rpartition(".")[0] == folder] for folder in folders}


@cache
def arrows() -> dict[str, frozenset[str]]:
    """Module -> those it imports, in whatever way."""
    found: dict[str, set[str]] = {module: set() for module in sources()}
    for one in imports():
        target = own(one.name)
        if target and target != one.module:
            found[one.module].add(target)
    for folder, files in registered().items():
        found[folder].update(files)
    return {module: frozenset(targets) for module, targets in found.items()}


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, SIAM J. Computing 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for target in sorted(graph[module]):
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in path:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            start = path.index(module)
            if len(path) - start > 1:
                found.append(sorted(path[start:]))
            del path[start:]

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return found


@cache
def loaded(module: str) -> frozenset[str]:
    """The slow libraries that importing `module` loads, its parents' and its imports' included."""
    seen, waiting, slow = set(), [module], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if "." in current:
            waiting.append(current.rpartition(".")[0])
        for one in by_module().get(current, ()):
            if not one.late and not one.typed:
                if target := own(one.name):
                    waiting.append(target)
                elif one.name.partition(".")[0] in SLOW:
                    slow.add(one.name.partition(".")[0])
        waiting += registered().get(current, [])
    return frozenset(slow)


def earns(one: Import) -> bool:
    """Whether a late import saves start-up time, or may find nothing."""
    library = one.name.partition(".")[0]
    target = own(one.name)
    if target:
        return bool(loaded(target) - loaded(one.module))
    return library in OPTIONAL or (library in SLOW and library not in loaded(one.module))


def test_a_circle_is_seen():
    assert circles({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}) == [["a", "b", "c"]]


def test_no_circle_by_any_kind_of_import():
    assert circles(arrows()) == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_never_look_back(room):
    wrong = [
        f"{one.module}:{one.line} imports {one.name}"
        for one in imports()
        if one.module.partition(".")[0] == room
        and one.name.partition(".")[0] in ROOMS
        and one.name.partition(".")[0] not in BELOW[room] | {room}
    ]
    assert wrong == []


def test_pages_import_panels_and_never_one_another():
    wrong = [
        f"{one.module}:{one.line} imports {one.name}"
        for one in imports()
        if (one.module.startswith("app.views.") or one.module.startswith("app.panels.")) and one.name.startswith("app.views")
    ]
    assert wrong == []


def test_an_import_inside_a_function_saves_start_up_time():
    wrong = [f"{one.module}:{one.line} imports {one.name}" for one in imports() if one.late and not earns(one)]
    assert wrong == []
