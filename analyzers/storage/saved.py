"""Scenarios by name: the built-in ones, and the user's own in the user's data folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from analyzers.storage.scenario import SCENARIOS, Scenario
from loraxs_core.errors import SettingsError
from loraxs_core.names import refuse_name
from loraxs_core.paths import data_dir

_NAME = re.compile(r"\w[\w .,()+-]{0,59}")


def scenario_names() -> list[str]:
    """Every scenario there is a name for: the built-in ones, then the user's own in alphabetical order."""
    return [*SCENARIOS, *own_names()]


def own_names() -> list[str]:
    """The names of the user's own scenarios."""
    return sorted((path.stem for path in data_dir("scenarios").glob("*.json") if _NAME.fullmatch(path.stem)), key=str.casefold)


def find_scenario(wanted: str | os.PathLike) -> Scenario:
    """The scenario of that name, built-in or the user's own, or in that file. Raises SettingsError listing the names."""
    text = str(wanted)
    if text in SCENARIOS:
        return SCENARIOS[text]
    if _NAME.fullmatch(text) and _file(text).is_file():
        return Scenario.load(_file(text))
    if Path(text).is_file():
        return Scenario.load(text)
    raise SettingsError(
        f"There is no scenario {text!r}, neither as a file nor by name; there are {', '.join(scenario_names())}."
    )


def keep_scenario(name: str, scenario: Scenario, *, force: bool = False) -> Path:
    """Saves a scenario under a name of the user's own; force: over the one that has it.

    Raises SettingsError for a name that is taken (a built-in one always is) or cannot be one.
    """
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot be the name of a scenario; use at most 60 letters, digits, spaces and -_.,()+, and begin with a "
            "letter or digit."
        )
    refuse_name(name)
    taken = next((other for other in scenario_names() if other.casefold() == name.casefold()), None)
    if taken is not None and force and taken not in SCENARIOS:
        return scenario.save(_file(taken))
    if taken is not None:
        raise SettingsError(f"There is a scenario called {name} already; choose another name or delete that one.")
    return scenario.save(_file(name))


def forget_scenario(name: str) -> None:
    """Deletes a scenario of the user's own. Raises SettingsError when there is none of that name."""
    if name not in own_names():
        raise SettingsError(f"There is no scenario of your own called {name!r}.")
    _file(name).unlink(missing_ok=True)


def _file(name: str) -> Path:
    return data_dir("scenarios") / f"{name}.json"
