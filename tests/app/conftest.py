"""Fixtures of the tests of the pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_core.checkpoint import Checkpoint


@pytest.fixture
def fresh_page(own_folders) -> Path:
    """No test sees another's plans, runs or last model; caches of the process are emptied too."""
    import streamlit as st

    st.cache_data.clear()
    st.cache_resource.clear()
    return own_folders


@pytest.fixture
def scanned(fresh_page, tiny_bert) -> Path:
    """The small BERT, its spectra in the cache."""
    from analyzers.spectra import scan

    scan(Checkpoint.open(tiny_bert))
    return tiny_bert
