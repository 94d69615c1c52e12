"""The picture in docs/architecture.md is what the imports say."""

from benchmarks.architecture import TARGET, draw


def test_the_picture_is_up_to_date():
    assert TARGET.read_text(encoding="utf-8") == draw(), "draw it again: python -m benchmarks.architecture"
