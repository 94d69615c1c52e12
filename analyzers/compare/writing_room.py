"""How much of a text a model has room for. To write an answer, lm-evaluation-harness keeps its places free and cuts the question to the rest."""

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
AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "longformer",
    "xlm-roberta-xl",
    "data2vec-text",
    "roberta-prelayernorm",
    "mpnet",
)


def refuse_no_room(checkpoint: Checkpoint, task: Task) -> None:
    """Raises SettingsError where `task` has a model write more tokens than its config.json says that it can read."""
    length = positions(checkpoint)
    if length is not None:
        refuse_length(length, task, checkpoint.name)


def positions(checkpoint: Checkpoint) -> int | None:
    """The most tokens that the model reads at once, as its config.json says; None where it does not."""
    config = checkpoint.config
    text = config.get("text_config")
    asked = text if isinstance(text, Mapping) else config
    return next((asked[name] for name in POSITIONS if isinstance(asked.get(name), int)), None)


def most_tokens(checkpoint: Checkpoint) -> int | None:
    """`positions` that a text can have: models of RoBERTa's kind count them from behind the padding's."""
    length, pad = positions(checkpoint), checkpoint.config.get("pad_token_id")
    offset = pad + 1 if str(checkpoint.config.get("model_type")) in AFTER_PADDING and isinstance(pad, int) else 0
    return None if length is None or length <= offset else length - offset


def short_of_room(checkpoint: Checkpoint, task: Task, sequence: int) -> str:
    """What is to be said before a start where the model has less room for a text than the `sequence` tokens that are asked for; empty where
    it has enough, or does not say. How many texts that cuts, each result says."""
    length = most_tokens(checkpoint)
    answer = task.definition.tokens if task.definition is not None else 0
    if length is None or length - answer >= sequence:
        return ""
    if answer:
        return (
            f"{checkpoint.name} reads at most {length} tokens, and {answer} of them are kept for the answer: of questions longer than "
            f"{max(0, length - answer)} tokens only the end is read."
        )
    return f"{checkpoint.name} reads at most {length} tokens: longer texts are cut there, though {sequence} are asked for."


def refuse_length(length: int, task: Task, model: str) -> None:
    """The same of a model that reads at most `length` tokens, question and answer together."""
    if task.definition is not None and length <= task.definition.tokens:
        raise SettingsError(
            f"{task.label} has a model write up to {task.definition.tokens} tokens after the question, and {model} reads at most {length} in "
            "all; choose a model of a longer context or another task."
        )
