"""The model, the data and the loaded base that all trials of a run read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from analyzers.compare.settings import SweepSettings
from analyzers.compare.tasks import Splits, Task
from analyzers.compare.writing_room import refuse_no_room
from loraxs_core.checkpoint import Checkpoint
from sample_models import open_model

if TYPE_CHECKING:
    from analyzers.compare.shared_base import SharedBase


@dataclass(frozen=True)
class Opened:
    """What all trials of a run read. base: `SharedBase`, made when the first trial begins."""

    checkpoint: Checkpoint
    task: Task
    splits: Splits

    @cached_property
    def base(self) -> SharedBase:
        from analyzers.compare.shared_base import SharedBase  # and with it torch, which a run that is refused does not pay for

        return SharedBase()

    def on(self, splits: Splits) -> Opened:
        """The same model, loaded once for both, on other splits."""
        other = dataclasses.replace(self, splits=splits)
        other.__dict__["base"] = self.base
        return other

    @classmethod
    def of(cls, settings: SweepSettings) -> Opened:
        """Raises SettingsError, also where the model has no room for the task's answers, and what opening a model raises."""
        task, checkpoint = settings.check(), open_model(settings.model)
        refuse_no_room(checkpoint, task)
        return cls(checkpoint, task, task.read(settings.data, None))
