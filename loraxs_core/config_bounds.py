"""What a config.json may claim. transformers builds what it says, module by module, before anybody can ask whether it makes sense."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from loraxs_core.errors import CheckpointError

# By what the name of a setting says that it counts; far above any model there is, and built within a minute.
MOST = {
    "layers": (re.compile(r"layers?$|layers?_|depth|blocks?$|stages?$"), 4_000),
    "experts": (re.compile(r"expert"), 100_000),
    "heads": (re.compile(r"heads?$|heads?_"), 1 << 20),
    "sizes": (re.compile(r"size|dim|width|vocab|channels|d_model|d_ff|d_inner|n_embd|n_inner|rank|labels"), 1 << 26),
}
_LENGTHS = re.compile(r"window|chunk|position|length|tokens?(_|$)|_id(s|x)?$")  # of texts, not of what is built
MOST_MODULES = 200_000
_DEEPEST = 50


def refuse_impossible(config: Mapping, name: str) -> None:
    """Raises CheckpointError for a config that no model can have: values of the wrong kind where kinds matter, counts beyond `MOST`."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if model_type is not None and not isinstance(model_type, str):
        raise CheckpointError(
            f"The config.json of {name} has a model_type that is no text but {_short(model_type)}; correct it."
        )
    if architectures is not None and not isinstance(architectures, (list, tuple)):
        raise CheckpointError(
            f"The config.json of {name} has architectures that are no list but {_short(architectures)}; correct it."
        )
    for key, value in _numbers(config, "", 0, name):
        if _LENGTHS.search(key):
            continue
        most = next((bound for pattern, bound in MOST.values() if pattern.search(key)), None)
        if most is not None and not abs(value) <= most:  # also NaN
            raise CheckpointError(
                f"The config.json of {name} claims {key} = {_short(value)}, more than any model has (at most {most:,} is taken); correct it."
            )


@contextlib.contextmanager
def few_modules(name: str) -> Iterator[None]:
    """Raises CheckpointError out of the block as soon as more than `MOST_MODULES` modules were built in it."""
    from torch.nn.modules.module import register_module_module_registration_hook

    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += 1
        if built > MOST_MODULES:
            raise CheckpointError(f"The config.json of {name} asks for more than {MOST_MODULES:,} modules; correct it.")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _numbers(value: object, key: str, depth: int, name: str) -> Iterator[tuple[str, float]]:
    """Every number in a config with the name it stands under."""
    if depth > _DEEPEST:
        raise CheckpointError(f"The config.json of {name} is nested deeper than {_DEEPEST} levels; correct it.")
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _numbers(item, str(inner), depth + 1, name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, key, depth + 1, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def _short(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else "a very large number" if _large(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _large(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= 10**30
