"""plan."""


def show() -> None:
    """The page."""
