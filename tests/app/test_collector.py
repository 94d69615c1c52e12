"""Python's collector of garbage beside the pages: it leaves the libraries out, and still finds what a page leaves behind."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from app import collector
from tests.app.pages import healthy, page


class Ring:
    """Garbage that only the collector finds, as plotly's figures are."""

    def __init__(self):
        self.own = self


@pytest.mark.usefixtures("fresh_page")
def test_after_a_run_of_the_page_the_libraries_are_out_of_sight(tiny_bert, monkeypatch):
    monkeypatch.setattr(collector, "_modules", 0)  # as if no other test had opened a page in this process
    healthy(page(tiny_bert))
    assert gc.get_freeze_count() > 5 * len(gc.get_objects())  # what Streamlit's collection after every run walks over
    assert not any(held is sys.modules["pandas"].__dict__ for held in gc.get_objects())


def test_garbage_is_collected_as_before():
    collector.spare_libraries()
    frozen = gc.get_freeze_count()
    left = weakref.ref(Ring())
    collector.spare_libraries()  # no module was loaded since
    assert gc.get_freeze_count() <= frozen
    gc.collect()
    assert left() is None


def test_garbage_of_before_a_library_was_loaded_is_not_kept_for_good(monkeypatch):
    left = weakref.ref(Ring())
    monkeypatch.setattr(collector, "_modules", 0)
    collector.spare_libraries()
    assert left() is None
    assert collector._modules == len(sys.modules)
