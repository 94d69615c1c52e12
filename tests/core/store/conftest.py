"""A small fleet, made once, and a store that holds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_core.store import AdapterStore, import_folders
from tests.core.store.stores import fleet


@pytest.fixture(scope="session")
def folders(tiny_llama, tmp_path_factory) -> Path:
    """A folder with the folders of six adapters of one base and plan, R in bfloat16: user-0 … user-5."""
    root = tmp_path_factory.mktemp("fleet")
    fleet(tiny_llama, root, 6, save_dtype="bfloat16")
    return root


@pytest.fixture
def store(folders, tmp_path) -> AdapterStore:
    """A store of the test's own with the six adapters."""
    made = AdapterStore.create(tmp_path / "store")
    import_folders(made, folders)
    return made
