"""Tuning one variant's learning rate: each rate of `halving` trained as a trial is, scored on training examples that are set aside.

Neither the validation nor the test split is looked at. Every rate has a folder with a checkpoint while it takes part, so that a process
that is killed goes on where it was; what comes out is the same.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from analyzers.compare import together
from analyzers.compare.halving import Halving, Tuning
from analyzers.compare.opened import Opened
from analyzers.compare.tasks import Splits
from analyzers.compare.trial import DIVERGED_WEIGHT, Started, begin, largest_trained, validation_score
from analyzers.compare.trial_settings import Diverged, Listener, TrialSettings

SPLIT_SEED = 0


def tune(
    trial: TrialSettings,
    rates: tuple[float, ...],
    opened: Opened,
    folder: Path,
    listener: Listener,
) -> Tuning:
    """The best of `rates` for the variant that `trial` (of the sweep's first seed) is of; recorded in `folder` as it goes.

    Where every rate diverges the record's `error` says so. Raises SettingsError where there is too little data or too few steps.
    """
    splits = opened.splits
    plan = Halving.of(trial, rates, len(splits.train), len(splits.validation), len(splits.test))
    own = opened.on(set_aside(splits, plan.held))
    metric = validation_score(opened.task, {})[0]
    fresh = Tuning(
        trial.place, trial.variant, trial.method, trial.seed, plan.rates, plan.ends, plan.held, len(own.splits.train), metric
    )
    known = Tuning.read(folder) or fresh
    if known.error or (known.rates, known.ends, known.held) != (plan.rates, plan.ends, plan.held):
        if together.is_first():
            shutil.rmtree(folder, ignore_errors=True)
        known = fresh
    folder.mkdir(parents=True, exist_ok=True)
    for round_, end in enumerate(plan.ends):
        for rate in known.alive(round_):
            if known.scored(rate, round_):
                continue
            candidate = _candidate(trial, rate, plan)
            listener.advance(0, f"trying the learning rate {rate:g}")

            def record(
                score: float | None, loss: float | None, seconds: float, rate: float = rate, before: Tuning = known
            ) -> None:
                nonlocal known
                known = before.with_score(rate, score, loss, seconds)
                _write(known, folder)

            _train(candidate, end, own, folder / f"lr{rate:g}", listener, record)
        _forget(folder, known, round_)
    best = known.best()
    error = "" if best is not None else _nothing_left(known)
    known = dataclasses.replace(known, chosen=best, error=error)
    _write(known, folder)
    _forget(folder, known, None)
    return known


def set_aside(splits: Splits, held: int) -> Splits:
    """`splits` with `held` training examples as its validation and test split: the same ones in every variant, trained on by none."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(splits.train))
    chosen = set(order[:held].tolist())
    rest = tuple(example for index, example in enumerate(splits.train) if index not in chosen)
    aside = tuple(splits.train[index] for index in sorted(chosen))
    return Splits(rest, aside, aside[:1])


def _candidate(trial: TrialSettings, rate: float, plan: Halving) -> TrialSettings:
    head = rate if trial.method == "head-only" else trial.head_learning_rate
    return dataclasses.replace(
        trial,
        learning_rate=rate,
        head_learning_rate=head,
        steps=plan.ends[-1],
        evaluations=1,
        validation_examples=None,
        report_to=(),
    )


class _Until(TrainerCallback):
    """Ends the training after step `end`."""

    def __init__(self, end: int):
        self.end = end

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.end
        return control


def _train(
    candidate: TrialSettings,
    end: int,
    opened: Opened,
    folder: Path,
    listener: Listener,
    record: Callable[[float | None, float | None, float], None],
) -> None:
    """Trains `candidate` up to step `end` from where its checkpoint stands, and gives `record` its score, its loss and the seconds it took.

    The checkpoint of `end` is written after that: whoever is killed in between trains the round before again and comes to the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    quiet = dataclasses.replace(listener, report=lambda line: None, began=lambda step: None)
    begun = time.perf_counter()
    started: Started = begin(candidate, opened, folder, quiet)
    trainer, checkpoints = started.trainer, started.checkpoints
    trainer.add_callback(_Until(end))
    try:
        with tempfile.TemporaryDirectory() as state:
            trainer.train(resume_from_checkpoint=checkpoints.state_folder(Path(state)))
        if end < candidate.steps:
            trainer.evaluate()
    except Diverged:
        record(None, None, time.perf_counter() - begun)
        return
    # Not by the training loss: after a few steps a good rate's may still be above that of guessing, and the score tells a bad one.
    score, reached = validation_score(opened.task, trainer.last_scores)[1], largest_trained(started.built.model)
    good = reached <= DIVERGED_WEIGHT and score is not None and np.isfinite(score)
    loss = trainer.evaluated_loss if good and np.isfinite(trainer.evaluated_loss) else None
    record(float(score) if good and score is not None else None, loss, time.perf_counter() - begun)
    if good and end < candidate.steps:
        checkpoints.write(trainer.state)
    together.wait()


def _write(known: Tuning, folder: Path) -> None:
    if together.is_first():
        known.write(folder)


def _nothing_left(known: Tuning) -> str:
    tried = f"{known.rates[0]:g} to {known.rates[-1]:g}"
    return (
        f"{known.label} has no learning rate: with every one of the {len(known.rates)} tried, {tried}, it diverged or its score on the examples "
        "set aside is undefined; give other rates with --learning-rate."
    )


def _forget(folder: Path, known: Tuning, round_: int | None) -> None:
    """Removes what rates that are out of it have left; everything once a rate is chosen (`round_` None)."""
    if not together.is_first():
        return
    stay = set() if round_ is None or round_ + 1 >= len(known.ends) else {f"lr{rate:g}" for rate in known.alive(round_ + 1)}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in stay:
            shutil.rmtree(path, ignore_errors=True)
