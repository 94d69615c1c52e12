"""compare."""


def show() -> None:
    """The page."""
