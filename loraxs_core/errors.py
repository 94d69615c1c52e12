"""The errors a person can mend.

Every error that the workbench expects is a `WorkbenchError` whose message is one clear sentence: what is wrong, where, and
what to do. The command line prints it and exits with 2; a page shows it in an error box. Anything else is a bug.
"""

from __future__ import annotations

import errno
import re

from loraxs_core.unseen import written_out

LONGEST = 1_400  # characters of a message


class WorkbenchError(Exception):
    """Base of all errors with a message for the person at the screen.

    The names in it are often somebody else's: what cannot be seen of them is written out, so that the message stays one line and
    drives no terminal, and one without end is shortened in its middle.
    """

    def __init__(self, message: str = ""):
        said = written_out(str(message))
        super().__init__(said if len(said) <= LONGEST else f"{said[: LONGEST - 400]} … {said[-400:]}")


class ModelNotFound(WorkbenchError):
    """The model named is not a folder, a catalogue entry or a reachable hub id."""


class CheckpointError(WorkbenchError):
    """A checkpoint on disk is missing, truncated, malformed, or in a format that is refused."""


class WeightsMissing(WorkbenchError):
    """The question needs weights, and this model is an architecture without them."""

    @classmethod
    def of(cls, name: str) -> WeightsMissing:
        """The error about the model called `name`, where its numbers are wanted."""
        return cls(
            f"{name} is an architecture without weights, so it has no spectrum: give a folder or a hub id that holds safetensors "
            "files of it."
        )


class NonFiniteWeights(CheckpointError):
    """A weight matrix holds NaN or infinite entries."""


class PlanError(WorkbenchError):
    """A rank plan or a budget that cannot be met."""


class AdapterError(WorkbenchError):
    """An adapter that cannot be built, read, or applied to this base."""


class BasisMismatch(AdapterError):
    """The frozen bases rebuilt from this base model are not those the adapter was trained with."""


class SettingsError(WorkbenchError):
    """A setting outside what is possible (a batch of 0, an unknown optimizer, a negative price)."""


class StoreError(WorkbenchError):
    """A store of adapters that cannot be made, read or written, or that holds no such adapter."""


class StoreDamaged(StoreError):
    """Something in a store is not what was put there."""


class RunError(WorkbenchError):
    """A run folder that cannot be written, read, or resumed."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, says that memory is used up: Python's, torch's on either device, the system's."""
    while error is not None:
        said = str(error)
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or getattr(error, "errno", None) == errno.ENOMEM
            or (isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY))
            or (isinstance(error, ImportError) and "failed to map segment" in said)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


_NO_MEMORY = (
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "can't allocate memory",
    "bad_alloc",
    "can't start new thread",  # there is no room for its stack
)


def one_line(error: BaseException) -> str:
    """What another library's error says, for the end of a sentence of ours, without its full stop: the line with the matter in it.

    >>> one_line(ValueError("Validation error for field 'width':\\n    TypeError: expected int, got str"))
    'expected int, got str'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1] if lines[0].endswith(":") else lines[0]
    said = f"unknown value {line}" if isinstance(error, KeyError) else re.sub(r"^\w+Error: ", "", line).rstrip(".")
    return said if len(said) <= LONGEST // 2 else f"{said[: LONGEST // 2 - 100]} … {said[-100:]}"
