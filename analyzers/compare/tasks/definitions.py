"""lm-evaluation-harness's task definitions on rows that are at hand: what a decoder is asked, what it should answer.

The training examples are made by the same definition that scores, so that a decoder learns to write what it is asked for. Which
rows there are is not the harness's business here: nothing is fetched by it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzers.compare.tasks.base import Definition, Example
from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SPLIT = "rows"  # the one that a task of the harness is given


def harness_missing() -> str | None:
    """One sentence where lm-evaluation-harness is not installed; None where it is."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return "This task is scored by lm-evaluation-harness, which is not installed; run `pip install loraxs-workbench[decoders]`."
    return None


def harness_task(definition: Definition, rows: Sequence[Mapping[str, Any]]) -> ConfigurableTask:
    """The harness's task over `rows`, which have the columns of its data set on the hub. No worked examples are shown first.

    Raises SettingsError where the harness is not installed.
    """
    if missing := harness_missing():
        raise SettingsError(missing)
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    with hushed():
        config = {
            **_configuration(definition),
            "custom_dataset": lambda **options: {SPLIT: Dataset.from_list([dict(row) for row in rows])},
            "dataset_path": None,
            "dataset_name": None,
            "training_split": None,
            "validation_split": None,
            "test_split": SPLIT,
            "fewshot_split": None,
            "num_fewshot": 0,
        }
        return ConfigurableTask(config=config)


def examples(definition: Definition, rows: Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
    """`rows` as what the definition asks and the right answer to it; a row stays with its example, for the scoring."""
    if not rows:
        return ()
    with hushed(), _compiled_once():
        try:
            task = harness_task(definition, rows)
            return tuple(_example(task, doc, row) for doc, row in zip(task.eval_docs, rows, strict=True))
        except SettingsError:
            raise
        except Exception as error:  # templates and functions of a definition raise whatever a missing column makes them
            first = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise SettingsError(
                f"These rows (columns {', '.join(map(str, rows[0]))}) are not what the task {definition.name!r} of lm-evaluation-harness "
                f"reads: {first}."
            ) from None


def _example(task: ConfigurableTask, doc: Mapping[str, Any], row: Mapping[str, Any]) -> Example:
    prompt = task.fewshot_context(doc, num_fewshot=0)
    if task.OUTPUT_TYPE == "multiple_choice":
        requests = task.construct_requests(doc=doc, ctx=prompt, metadata=("", 0, 1))
        prompt, answer = requests[_right(task, doc)].args
    else:
        answer = f"{task.config.target_delimiter}{task.doc_to_target(doc)}"
    return Example(prompt, answer=answer, row=row)


def _right(task: ConfigurableTask, doc: Mapping[str, Any]) -> int:
    """Which choice is right; of a task that fills in a blank, it is what `doc_to_text` tells."""
    return int(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc))


def _configuration(definition: Definition) -> dict[str, Any]:
    if definition.config:
        return {"task": definition.name, **definition.config}
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    # Its folder alone: to read all ten thousand definitions takes half a minute.
    manager = TaskManager(include_defaults=False, include_path=str(Path(lm_eval.tasks.__path__[0]) / definition.folder))
    found = manager._index.get(definition.name)
    if found is None or found.yaml_path is None:
        raise SettingsError(f"This version of lm-evaluation-harness has no task {definition.name!r}; update or downgrade it.")
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(found.yaml_path)
    return {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """The harness compiles a definition's template anew for every row, which for 40,000 rows takes a minute."""
    from lm_eval.utils import env

    compiled, env.from_string = env.from_string, functools.lru_cache(maxsize=64)(env.from_string)
    try:
        yield
    finally:
        env.from_string = compiled


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Its notes on defaults are for those who write definitions."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, hidden = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden:  # it is entered within itself
            datasets.enable_progress_bars()
