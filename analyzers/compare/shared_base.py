"""The base of a sweep's trials: loaded once a process, its frozen numbers shared by the models of all trials.

A trial gets a model of its own whose parameters are views of the loaded numbers; what it trains is taken apart from them. Singular
vectors that one trial has computed serve the later ones of the same configuration. Neither changes a result: what a trial draws it
draws from its own seed, and before every loan the loaded numbers are compared with their checksum.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator

import torch
from torch import nn
from xxhash import xxh3_128

from analyzers.compare.base_and_head import Prepared, initialise_head, load
from analyzers.compare.tasks import Task
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.bases import Bases, remembered_bases
from loraxs_core.checkpoint import Checkpoint

MOST_BASES = 512 * 1024**2  # bytes of singular vectors that are kept for later trials


class SharedBase:
    """The base model of one checkpoint and one task, for trials one after the other."""

    def __init__(self) -> None:
        self._loaded: Prepared | None = None
        self._of: tuple[str, str] | None = None
        self._digest = ""
        self._storages: set[int] = set()
        self._bases: dict[str, dict[tuple, Bases]] = {}
        self._seconds: dict[str, float] = {}

    def prepared(self, checkpoint: Checkpoint, task: Task, trial: TrialSettings) -> Prepared:
        """A frozen base with the head of the trial's seed, as `base_and_head.prepare` gives it.

        For a method that trains or changes the base it is the loaded model itself, which the next trial then loads again: two copies
        would count as memory that the method does not need.
        """
        of = (str(checkpoint.folder), task.name)
        if self._of != of or (self._loaded is not None and _digest(self._loaded.model) != self._digest):
            self.forget()
        if self._loaded is None:
            self._loaded, self._of = load(checkpoint, task), of
            self._digest = _digest(self._loaded.model)
        if trial.method == "full" or trial.kind.changes_base:
            found = self._loaded
            self.forget()
        else:
            self._storages = {value.data_ptr() for value in self._loaded.model.parameters()}
            found = _lent(self._loaded)
        initialise_head(found.model, found.head, trial.seed)
        return found

    def forget(self) -> None:
        """Lets go of the loaded model."""
        self._loaded, self._of, self._storages = None, None, set()

    def take_apart(self, model: nn.Module) -> None:
        """Gives what `model` trains numbers of its own, where they are the shared ones. In place."""
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.data_ptr() in self._storages:
                parameter.data = parameter.data.clone()

    @contextlib.contextmanager
    def bases_of(self, trial: TrialSettings) -> Iterator[None]:
        """Inside the block, singular vectors that an earlier trial of this configuration computed are not computed again."""
        known = self._bases.setdefault(_configuration(trial), {})
        with remembered_bases(known):
            yield
        while sum(_size(one) for one in self._bases.values()) > MOST_BASES:
            oldest = next(iter(self._bases))
            del self._bases[oldest]
            self._seconds.pop(oldest, None)

    def setup_seconds(self, trial: TrialSettings, seconds: float) -> float:
        """What building the adapter takes where nothing is at hand: `seconds`, or what the trial that computed its vectors took."""
        name = _configuration(trial)
        return self._seconds.setdefault(name, seconds) if self._bases.get(name) else seconds


def _lent(loaded: Prepared) -> Prepared:
    """A copy of `loaded` whose frozen parameters hold the same numbers in the same place; its head is its own."""
    heads = {id(value) for name in loaded.head for value in loaded.model.get_submodule(name).parameters()}
    views: dict[int, nn.Parameter] = {}
    for value in loaded.model.parameters():
        own = value.detach().clone() if id(value) in heads else value.detach()
        views[id(value)] = nn.Parameter(own, requires_grad=value.requires_grad)
    model = copy.deepcopy(loaded.model, dict(views))
    return Prepared(model, loaded.tokenizer, loaded.head, loaded.separate, loaded.task_type)


def _digest(model: nn.Module) -> str:
    digest = xxh3_128()
    for value in model.parameters():
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _configuration(trial: TrialSettings) -> str:
    """Trials with the same one build their adapters from the same singular vectors."""
    own = [trial.method, trial.rank, trial.plan, trial.options, trial.targets, trial.config]
    return json.dumps(own, sort_keys=True, default=str)


def _size(known: dict[tuple, Bases]) -> int:
    return sum(one.U.nbytes + one.S.nbytes + one.Vt.nbytes for one in known.values())
