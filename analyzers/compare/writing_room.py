"""Whether a model has room to write its answer: lm-evaluation-harness keeps the places of the answer free and cuts the question to the rest."""

from __future__ import annotations

from collections.abc import Mapping

from analyzers.compare.tasks import Task
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError

POSITIONS = (
    "n_positions",
    "max_position_embeddings",
    "n_ctx",
)  # in the order that lm-evaluation-harness asks a config for them


def refuse_no_room(checkpoint: Checkpoint, task: Task) -> None:
    """Raises SettingsError where `task` has a model write more tokens than its config.json says that it can read."""
    config = checkpoint.config
    text = config.get("text_config")
    asked = text if isinstance(text, Mapping) else config
    length = next((asked[name] for name in POSITIONS if isinstance(asked.get(name), int)), None)
    if length is not None:
        refuse_length(length, task, checkpoint.name)


def refuse_length(length: int, task: Task, model: str) -> None:
    """The same of a model that reads at most `length` tokens, question and answer together."""
    if task.definition is not None and length <= task.definition.tokens:
        raise SettingsError(
            f"{task.label} has a model write up to {task.definition.tokens} tokens after the question, and {model} reads at most {length} in "
            "all; choose a model of a longer context or another task."
        )
