"""The state of a trial on disk while it trains: a process that is killed loses seconds of a trial, not hours.

One file, ``checkpoint.safetensors`` in the trial's folder, written between two steps: the trained weights, AdamW's moments and the
random numbers' state as tensors, everything else as JSON in its header with a checksum over the tensors. No pickle. A trial that goes
on from it does, on a CPU, exactly what it would have done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from xxhash import xxh3_128

from analyzers.compare import together
from analyzers.compare.adapter import Start, kept_parameters
from analyzers.compare.trial_settings import Listener, TrialSettings
from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_file

if TYPE_CHECKING:
    from transformers import Trainer

NAME = "checkpoint.safetensors"
EVERY_SECONDS = float(os.environ.get("LORAXS_CHECKPOINT_SECONDS", "30"))
SHARE = 0.05  # of a training's time that may go into writing
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Kept:
    """A checkpoint as it was read. about: JSON of `Checkpoints`, with the ``step`` that it stands before."""

    tensors: dict[str, torch.Tensor]
    about: dict

    @property
    def step(self) -> int:
        return self.about["step"]


def kept(folder: Path, model: nn.Module, trial: TrialSettings, listener: Listener) -> Kept | None:
    """The checkpoint of `trial` in its folder, where there is one and it fits `model`; one that does not is noted and ignored."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        wanted = {f"weight.{name}": tuple(value.shape) for name, value in kept_parameters(model, trial).items()}
        found = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("weight.")}
        if (
            _digest(tensors) != about["digest"]
            or wanted != found
            or not 0 < about["step"] < trial.steps
            or f"random.{together.rank()}" not in tensors
        ):
            raise ValueError("its content is not what was written")
        return Kept(tensors, about)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        listener.note(f"{path} cannot be used ({error}); the trial starts again.")
        return None


class Checkpoints(TrainerCallback):
    """Writes checkpoints while a trial trains, and puts its training back to where `before` was.

    At the beginning of a step, when everything that belongs to the step before it is done. No more than `SHARE` of the time goes
    into it. Where one cannot be written (a full disk) that is noted, and the training goes on without.
    """

    def __init__(self, trial: TrialSettings, folder: Path, start: Start, before: Kept | None, listener: Listener):
        self.trial, self.path, self.start, self.before, self.listener = trial, folder / NAME, start, before, listener
        self.trainer: Trainer | None = None
        self.random_state: torch.Tensor | None = None
        self.began = time.perf_counter()
        self.last, self.cost, self.off = self.began, 0.0, False

    @property
    def seconds(self) -> float:
        """Of training and its evaluations, this process's and those before it."""
        return (self.before.about["seconds"] if self.before else 0.0) + time.perf_counter() - self.began

    def state_folder(self, folder: Path) -> str | None:
        """What `Trainer.train` takes as ``resume_from_checkpoint``: its own state alone, written to `folder`; None at a beginning."""
        if self.before is None:
            return None
        (folder / TRAINER_STATE_NAME).write_text(json.dumps(self.before.about["trainer"]), encoding="utf-8")
        return str(folder)

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = self.last = time.perf_counter()
        self.listener.began(state.global_step)
        if self.before is None:
            if self.trial.processes > 1:  # each process leaves out numbers of its own
                torch.manual_seed(self.trial.seed * self.trial.processes + together.rank())
            return
        tensors, optimizer, scheduler = self.before.tensors, self.trainer.optimizer, self.trainer.lr_scheduler
        schedule = self.before.about["schedule"]
        parameters = kept_parameters(self.trainer.model, self.trial)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
        for name, parameter in parameters.items():
            if f"exp_avg.{name}" in tensors:
                optimizer.state[parameter] = {
                    kind: tensors[f"{kind}.{name}"].to(parameter.device if kind != "step" else "cpu") for kind in MOMENTS
                }
        scheduler = _plain(scheduler, "scheduler")
        scheduler.load_state_dict({**scheduler.state_dict(), **schedule})
        for group, rate in zip(optimizer.param_groups, schedule["_last_lr"], strict=True):
            group["lr"] = rate
        self.start.restore({name: value for name, value in tensors.items() if name.startswith("start.")})
        self.trainer.evaluation_seconds = self.before.about["evaluation_seconds"]
        self.random_state = tensors[f"random.{together.rank()}"]
        self.listener.note(f"{self.trial.id} goes on at step {self.before.step} of {self.trial.steps}.")

    def on_step_begin(self, args, state, control, **kwargs):
        if self.random_state is not None:  # the trainer's preparations have taken numbers that the first run took earlier
            torch.set_rng_state(self.random_state)
            self.random_state = None
            return
        now = time.perf_counter()
        due = bool(state.global_step) and not self.off and now - self.last >= max(EVERY_SECONDS, self.cost / SHARE)
        if together.decided(due):
            self.write(state)
            self.last = time.perf_counter()
            self.cost = self.last - now

    def write(self, state) -> None:
        """The state before the next step, whatever it costs. All processes of a trial call it, and the first one writes."""
        random_states = together.gathered(torch.get_rng_state())
        if not together.is_first():
            return
        tensors = self._tensors(random_states)
        about = {
            "step": state.global_step,
            "seconds": self.seconds,
            "evaluation_seconds": self.trainer.evaluation_seconds,
            "schedule": {
                name: value
                for name, value in _plain(self.trainer.lr_scheduler, "scheduler").state_dict().items()
                if name in ("last_epoch", "_step_count", "_last_lr", "base_lrs")
            },
            "trainer": {**dataclasses.asdict(state), "log_history": []},
            "digest": _digest(tensors),
        }
        try:
            with atomic_file(self.path) as temporary:
                save_file(tensors, temporary, metadata={"about": json.dumps(about)})
        except (RunError, RuntimeError, MemoryError) as error:
            self.off = True
            self.listener.note(f"The state of {self.trial.id} is not kept: {error}")

    def _tensors(self, random_states: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        parameters = kept_parameters(self.trainer.model, self.trial)
        tensors = {f"weight.{name}": parameter.detach() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            for kind, value in self.trainer.optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = value
        tensors = {**tensors, **self.start.tensors()}
        tensors |= {f"random.{rank}": value for rank, value in enumerate(random_states)}
        return {name: value.to("cpu").contiguous() for name, value in tensors.items()}


def remove(folder: Path) -> None:
    """The checkpoint of a trial that has finished."""
    (folder / NAME).unlink(missing_ok=True)


def _plain(wrapped: object, name: str):
    """What accelerate wrapped."""
    return getattr(wrapped, name, wrapped)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = xxh3_128()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
