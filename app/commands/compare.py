def run() -> None:
    """Pending."""
