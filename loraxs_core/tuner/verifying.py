"""How much of an adapter is verified when it is loaded.

``full``: everything is what was saved: R, what the configuration says of it, modules saved whole, and the bases. ``bases``: R may have
been edited on purpose (averaged, cast, scaled); that the base model is the one it belongs to is still verified. ``off``: nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from loraxs_core.errors import AdapterError

MODES = ("full", "bases", "off")
_mode: ContextVar[str] = ContextVar("loraxs_verify", default="full")


@contextmanager
def verifying(mode: str) -> Iterator[None]:
    """Loads adapters with another `mode` than ``full``, by whatever function they are loaded: PEFT's, transformers', diffusers'.

    >>> from peft import set_peft_model_state_dict
    >>> with verifying("bases"):
    ...     pass  # set_peft_model_state_dict(model, averaged), model.load_adapter(folder), …

    `PeftModel.load_adapter` and `PeftModel.from_pretrained` take ``verify=`` as well. Raises AdapterError for another mode.
    """
    if mode not in MODES:
        raise AdapterError(f"verify must be one of {', '.join(MODES)}, not {mode!r}.")
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def mode() -> str:
    """The mode in force: one of `MODES`."""
    return _mode.get()
