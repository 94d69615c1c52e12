"""The errors a person can mend.

Every error that the workbench expects is a `WorkbenchError` whose message is one clear sentence: what is wrong, where, and
what to do. The command line prints it and exits with 2; a page shows it in an error box. Anything else is a bug.
"""


class WorkbenchError(Exception):
    """Base of all errors with a message for the person at the screen."""


class ModelNotFound(WorkbenchError):
    """The model named is not a folder, a catalogue entry or a reachable hub id."""


class CheckpointError(WorkbenchError):
    """A checkpoint on disk is missing, truncated, malformed, or in a format that is refused."""


class WeightsMissing(WorkbenchError):
    """The question needs weights, and this model is an architecture without them."""


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


class RunError(WorkbenchError):
    """A run folder that cannot be written, read, or resumed."""
