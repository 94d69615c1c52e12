"""cost."""


def show() -> None:
    """The page."""
