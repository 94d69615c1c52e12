"""One trial: one method on one task with one seed, trained with transformers' Trainer and PEFT's own methods.

    settings -> base and head -> adapter -> examples -> training -> score -> record

Fair by construction: the batches come from the task and the seed, the head's first numbers from its shape and the seed; the
evaluation, the schedule and the head's learning rate are the same for every method. Only the adapter and its rate differ.

Importing this module imports torch and transformers; a sweep does so when its first trial begins.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import set_seed

from analyzers.compare import adapter, harness, together, training, trial_checkpoint
from analyzers.compare.base_and_head import Prepared
from analyzers.compare.examples import TrialExamples
from analyzers.compare.opened import Opened
from analyzers.compare.paired import save_answers, save_predictions
from analyzers.compare.peak_memory import PeakMemory, without_basis_cache
from analyzers.compare.tasks import CAUSAL, REGRESSION, Splits, Task, mean_loss, scores
from analyzers.compare.trackers import a_run_each
from analyzers.compare.training import LOGS
from analyzers.compare.trial_settings import Diverged, Listener, TrialSettings
from analyzers.compare.writing_room import most_tokens
from analyzers.methods.peft_configs import left_out
from loraxs_core.account import counted, some
from loraxs_core.errors import SettingsError
from loraxs_core.paths import atomic_file
from loraxs_core.quick_operators import quick_operators

DIVERGED_LOSS, DIVERGED_WEIGHT = 2.0, 1e4  # times the loss of guessing; the size of any trained number


@dataclass(frozen=True)
class Built:
    """model: as it is trained. start: what saving the adapter needs to know of its beginning. setup_seconds: building it took."""

    prepared: Prepared
    model: nn.Module
    start: adapter.Start
    setup_seconds: float


@dataclass(frozen=True)
class Started:
    """A trial about to train. before: the checkpoint that it goes on from."""

    built: Built
    examples: TrialExamples
    trainer: training.TrialTrainer
    checkpoints: trial_checkpoint.Checkpoints
    before: trial_checkpoint.Kept | None
    device: str


@dataclass(frozen=True)
class Outcome:
    """validation: the last scores on the validation split. test: every metric on the test split, of `examples`; loss: there. cut: of the test
    split's questions, in a sentence.
    remark: why the score is not what the method can do: it diverged, or layers were never reached. earlier_seconds: before the checkpoint that the trial went on from."""

    validation: dict[str, float]
    test: dict[str, float]
    loss: float | None
    examples: int
    remark: str | None
    train_seconds: float
    test_seconds: float
    earlier_seconds: float
    cut: str = ""


def run_trial(trial: TrialSettings, opened: Opened, folder: Path, listener: Listener = Listener()) -> dict:
    """Trains, scores, saves the adapter to ``folder/adapter`` and returns the record (also ``folder/result.json``).

    opened: what the trials of one process read and load once; the result is the same with one of its own. Where several processes
    train it together the first one writes, and the others get an empty record. One that was cut off goes on from its last checkpoint in
    `folder`. Raises Cancellation soon after the listener asks for it, and SettingsError when the loss stops being a number.
    """
    began, task = time.perf_counter(), opened.task
    with PeakMemory(resolve_device(trial.device)) as peak, a_run_each(trial.report_to, folder / LOGS):
        started = begin(trial, opened, folder, listener)
        built, examples = started.built, started.examples
        outcome = _train_and_score(trial, task, started, folder, listener)
    if not together.is_first():
        return {}
    record = {
        **_described(trial, task),
        **_scored(task, outcome, examples),
        **_about_data(opened.splits, trial, examples, outcome.cut),
        **_counted(built),
        **adapter.save_adapter(built.model, built.prepared, trial, folder / "adapter", built.start),
        "energy_kept": adapter.energy_kept(built.model),
        "train_tokens": examples.tokens,
        "evaluates_once": getattr(built.model, "remembers", False),
        "tokens_per_second": examples.tokens / outcome.train_seconds if outcome.train_seconds else None,
        **_timed(trial, built, outcome, outcome.earlier_seconds + time.perf_counter() - began),
        "peak_memory_bytes": peak.bytes,
        "peak_memory_kind": peak.kind,
        "device": started.device,
        "threads": torch.get_num_threads(),
        "remark": outcome.remark,
        "state": "done",
        "error": None,
    }
    with atomic_file(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(finite(record), indent=2) + "\n", encoding="utf-8")
    trial_checkpoint.remove(folder)
    return record


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` (the first GPU); ``auto`` is the GPU where there is one. Raises SettingsError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
        return device
    raise SettingsError(f"There is no device {device!r} on this machine; use auto or cpu.")


def finite(record: dict) -> dict:
    """JSON has no NaN: None instead."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}


def begin(trial: TrialSettings, opened: Opened, folder: Path, listener: Listener) -> Started:
    """`trial` with its model, its data and its trainer, ready to train from its beginning or from its checkpoint in `folder`."""
    device = resolve_device(trial.device)
    training.quiet()
    built = _build(trial, opened, listener)
    examples = TrialExamples.of(opened.splits, opened.task, trial, built.prepared, most=most_tokens(opened.checkpoint))
    built = _from_data(built, trial, examples, device, listener)
    before = trial_checkpoint.kept(folder, built.model, trial, listener)
    checkpoints = trial_checkpoint.Checkpoints(trial, folder, built.start, before, listener)
    groups = adapter.parameter_groups(built.model, built.prepared.head, trial)
    trainer = training.make_trainer(built.model, groups, trial, examples, device, listener, checkpoints)
    return Started(built, examples, trainer, checkpoints, before, device)


def _build(trial: TrialSettings, opened: Opened, listener: Listener) -> Built:
    listener.advance(0, "loading the model")
    base = opened.base
    prepared = base.prepared(opened.checkpoint, opened.task, trial)
    listener.stop_if_asked()
    set_seed(trial.seed)  # here: loading draws random numbers, and a base that was loaded for an earlier trial has drawn none
    begun = time.perf_counter()
    listener.advance(0, "building the adapter")
    with without_basis_cache(), base.bases_of(trial):
        model = adapter.adapted(prepared, trial, opened.checkpoint)
    seconds = base.setup_seconds(trial, time.perf_counter() - begun)
    base.take_apart(model)
    return Built(prepared, model, adapter.Start(model, prepared, trial), seconds)


def _from_data(built: Built, trial: TrialSettings, examples: TrialExamples, device: str, listener: Listener) -> Built:
    """`built`, its adapter begun from the training data where its method does so, which counts as setting it up."""
    if trial.kind.starts_from_data is None:
        return built
    listener.advance(0, "starting the adapter from the data")
    begun = time.perf_counter()
    adapter.start_from_data(built.model.to(device), built.prepared, trial, examples, listener)
    return dataclasses.replace(built, setup_seconds=built.setup_seconds + time.perf_counter() - begun)


def _train_and_score(trial: TrialSettings, task: Task, started: Started, folder: Path, listener: Listener) -> Outcome:
    built, examples, before = started.built, started.examples, started.before
    trainer, checkpoints = started.trainer, started.checkpoints
    if before:
        listener.advance(trial.training_cost * before.step / trial.steps, f"going on at step {before.step}")
    if any(parameter.requires_grad for parameter in built.model.parameters()):
        with tempfile.TemporaryDirectory() as state:
            trainer.train(resume_from_checkpoint=checkpoints.state_folder(Path(state)))
        train_seconds = checkpoints.seconds - trainer.evaluation_seconds
    else:  # a decoder as it is, the control of a task whose answers are written
        trainer.evaluate()
        train_seconds = 0.0
    listener.advance(0, "scoring")
    begun = time.perf_counter()
    test, loss, count, cut = _tested(trainer, built, trial, task, examples, folder, listener)
    return Outcome(
        trainer.last_scores,
        test,
        loss,
        count,
        _remark(built.model, trial, task, trainer.reporter),
        train_seconds,
        time.perf_counter() - begun,
        before.about["seconds"] if before else 0.0,
        cut,
    )


def _tested(
    trainer: training.TrialTrainer,
    built: Built,
    trial: TrialSettings,
    task: Task,
    examples: TrialExamples,
    folder: Path,
    listener: Listener,
) -> tuple[dict[str, float], float | None, int, str]:
    """(every metric on the test split, the loss there, how many examples, what was cut of them, in a sentence). Of a task that lm-evaluation-harness scores there is no loss.

    Raises SettingsError when the loss is no number any more.
    """
    if task.definition is not None:
        if not together.is_first():  # the harness works in one process
            return {task.metric: math.nan}, None, 0, ""
        with quick_operators():
            scored = harness.score(
                built.model, built.prepared.tokenizer, task, examples.asked, trainer.args.per_device_eval_batch_size, listener
            )
        save_answers(folder, scored.right)
        cut = f"{scored.cut:,} of the {len(scored.right):,} test questions" if scored.cut else ""
        said = f"{cut} are longer than the {scored.room} tokens that the model has for them, and were read without their beginning."
        return dict(scored.means), None, len(scored.right), said if cut else ""
    found = trainer.predict(examples.test)
    test = scores(examples.kind, found.predictions, found.label_ids)
    if together.is_first():
        save_predictions(folder, examples.kind, found.predictions, found.label_ids)
    loss = mean_loss(examples.kind, found.predictions, found.label_ids)
    if not math.isfinite(loss):
        raise Diverged(
            f"The loss of {trial.variant} is not a number any more: it diverged; lower its learning rate ({trial.learning_rate:g})."
        )
    for name, part in examples.more.items():
        other = trainer.predict(part)
        test |= {
            f"{metric}_{name}": value for metric, value in scores(examples.kind, other.predictions, other.label_ids).items()
        }
    return test, loss, len(found.label_ids), _cut("test", examples.test_cut, len(found.label_ids), trial, examples)


def _cut(which: str, cut: int, among: int, trial: TrialSettings, examples: TrialExamples) -> str:
    """A sentence on texts that are longer than a trial reads; empty where none is."""
    if not cut:
        return ""
    of_seed = f" of seed {trial.seed}" if which == "training" else ""
    advice = "allow more tokens a text" if examples.sequence == trial.sequence else "the model reads no more"
    return (
        f"{cut:,} of the {among:,} {which} examples{of_seed} are longer than {examples.sequence} tokens and were cut; {advice}."
    )


def _remark(model: nn.Module, trial: TrialSettings, task: Task, reporter: training.Reporter) -> str | None:
    said = [divergence(model, trial, reporter.last_loss, guessing_loss(task, model))]
    if missed := reporter.unreached:
        said.append(
            f"{trial.variant} adapts {counted(len(missed), 'layer')} that this model's forward pass never reaches, and that stay as "
            f"they are: {some(missed)}."
        )
    if trial.config is not None and (odd := left_out(trial.config)):
        said.append(
            f"PEFT's {trial.config['peft_type']} configuration knows no {some(odd)}: what {trial.variant} says there had no effect; look at the "
            "spelling."
        )
    if trial.config is not None and trial.config["peft_type"] == "ADALORA":
        said.append(
            f"PEFT's AdaLoRA deals its ranks anew only where the training loop asks it to after each step, which a trial does not: "
            f"{trial.variant} kept its first ranks, init_r."
        )
    return " ".join(sentence for sentence in said if sentence) or None


def guessing_loss(task: Task, model: nn.Module) -> float:
    """The loss of a model that knows nothing: every class (every word of a decoder) alike, or the mean of standardised numbers."""
    if task.kind == CAUSAL:
        return math.log(model.config.vocab_size)
    return 1.0 if task.kind == REGRESSION else math.log(len(task.classes))


def divergence(model: nn.Module, trial: TrialSettings, loss: float, guessing: float) -> str | None:
    """A sentence where training went astray though every number stayed finite; None where it did not.

    loss: at the end of training, on what is trained on. Normalisation layers hide a learning rate that is far too large: the loss is
    then that of guessing, and only the size of what was trained tells.
    """
    largest = largest_trained(model)
    if loss > DIVERGED_LOSS * guessing:
        what = f"its training loss at the end, {loss:.3g}, is above that of guessing, {guessing:.3g}"
    elif largest > DIVERGED_WEIGHT:
        what = f"a trained number reached {largest:.3g}"
    else:
        return None
    return f"{trial.variant} diverged: {what}; lower its learning rate ({trial.learning_rate:g})."


def largest_trained(model: nn.Module) -> float:
    """The size of the largest number that is trained."""
    return max((float(value.detach().abs().max()) for value in model.parameters() if value.requires_grad), default=0.0)


def _described(trial: TrialSettings, task: Task) -> dict:
    return {
        **trial.about,
        "plan": trial.plan_label or None,
        "rank": trial.rank,
        **{name: str(value) for name, value in trial.options.items()},
        "head_learning_rate": trial.head_learning_rate,
        "metric": task.metric,
    }


def validation_score(task: Task, found: Mapping[str, float]) -> tuple[str, float | None]:
    """(metric, score): what rates and ranks are chosen by, of the scores on examples that are not trained on; more is better."""
    # Of a decoder the likelihood of the answers: more is better, whatever is scored, and it costs no writing.
    chosen_by = "answer_likelihood" if task.kind == CAUSAL else task.metric
    return chosen_by, found.get(chosen_by)


def _scored(task: Task, outcome: Outcome, examples: TrialExamples) -> dict:
    scale = examples.scale
    chosen_by, validation = validation_score(task, outcome.validation)
    return {
        "score": outcome.test[task.metric],
        "validation_metric": chosen_by,
        "validation_score": validation,
        **{f"test_{name}": value for name, value in outcome.test.items()},
        "test_loss": outcome.loss,
        "classes": ", ".join(task.classes) or None,
        "label_mean": scale.mean if scale.regression else None,
        "label_deviation": scale.deviation if scale.regression else None,
        "test_examples": outcome.examples,
    }


def _about_data(splits: Splits, trial: TrialSettings, examples: TrialExamples, cut: str) -> dict:
    found = splits.overlap
    said = [splits.remark, _cut("training", examples.cut, len(examples.train), trial, examples), cut]
    return {
        "overlap_same": found.same,
        "overlap_shared": found.shared,
        "overlap_of": found.examples,
        "data_remark": " ".join(sentence for sentence in said if sentence) or None,
    }


def _counted(built: Built) -> dict:
    adapted, head = adapter.count_trained(built.model, built.prepared.head)
    return {"adapter_parameters": adapted, "head_parameters": head, "trainable": adapted + head}


def _timed(trial: TrialSettings, built: Built, outcome: Outcome, seconds: float) -> dict:
    svd = built.setup_seconds if trial.kind.starts_from_svd else 0.0
    return {
        "seconds": seconds,
        "train_seconds": outcome.train_seconds,
        "test_seconds": outcome.test_seconds,
        "setup_seconds": built.setup_seconds,
        "svd_seconds": svd,
        "svd_share": svd / (built.setup_seconds + outcome.train_seconds),
    }
