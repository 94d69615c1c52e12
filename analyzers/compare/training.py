"""transformers' Trainer as the trials use it: a given order of batches, points of the curve reported as they come."""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from analyzers.compare.causal import WrittenSet, answer_likelihoods, answers_alone, evaluation_batch
from analyzers.compare.examples import Encoded, TrialExamples
from analyzers.compare.tasks import CAUSAL, METRIC_LABELS, scores
from analyzers.compare.trial_checkpoint import Checkpoints
from analyzers.compare.trial_settings import FORWARD, Diverged, Listener, TrialSettings
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.quick_operators import quick_operators

LOGS = "logs"  # in a trial's folder: what trackers write to disk
LOGGED_POINTS, LOGGED_AFTER = 50, 50  # points of a training curve, unless that is one in more than 50 steps


class Ordered(torch.utils.data.Dataset):
    """Items of `source` one after the other as `order` (lists of indices, one a batch) says."""

    def __init__(self, source: Encoded | WrittenSet, order: list[list[int]]):
        self.source = source
        self.indices = [index for batch in order for index in batch]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.source[self.indices[position]]


class TrialTrainer(Trainer):
    """Trainer that remembers its last evaluation and the seconds spent on all of them. Its products are the quicker library's."""

    evaluation_seconds = 0.0
    evaluated_loss = math.nan
    writes = False  # whether answers are learnt (`causal`)
    last_scores: dict[str, float]
    reporter: Reporter

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with quick_operators():
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple:
        with quick_operators():
            return super().prediction_step(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ready = super()._prepare_inputs(inputs)
        if self.writes and self.args.use_cpu:  # on a GPU memory is measured, and it is to be that of an ordinary training
            return answers_alone(ready, self.model)
        return ready

    def _load_from_checkpoint(self, *args, **kwargs) -> None:
        """Nothing: `trial_checkpoint.Checkpoints` puts weights, optimizer and schedule back, without a pickle."""


class Reporter(TrainerCallback):
    """Passes on what happens: curve points, finished work, a wish to stop."""

    def __init__(self, trial: TrialSettings, epoch: int, listener: Listener):
        self.trial, self.epoch, self.listener = trial, epoch, listener
        self.step_cost = trial.training_cost / trial.steps
        self.trainer: TrialTrainer | None = None
        self.checkpoints: Checkpoints | None = None
        self.losses: list[float] = []
        self.unreached: list[str] | None = None  # adapted layers that got no gradient; None before the first step

    @property
    def last_loss(self) -> float:
        """The training loss at the end: the mean of the last fifth of its curve; NaN without one."""
        last = self.losses[-max(1, len(self.losses) // 5) :]
        return sum(last) / len(last) if last else math.nan

    def point(self, kind: str, step: int, value: float, **more: float) -> None:
        epoch = step * min(self.trial.batch, self.epoch) / self.epoch
        found = {"kind": kind, "step": step, "epoch": round(epoch, 4), "value": value if math.isfinite(value) else None}
        seconds = {"seconds": round(self.checkpoints.seconds, 3)} if self.checkpoints else {}
        self.listener.report({**found, **seconds, **more})

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs: Any):
        if self.unreached is None:
            self.unreached = unreached(model)

    def on_step_end(self, args, state, control, **kwargs: Any):
        self.listener.advance(self.step_cost, f"step {state.global_step} of {self.trial.steps}")
        self.listener.stop_if_asked()
        if state.global_step == self.trial.steps:  # the curve ends where the training does, whatever the interval
            control.should_evaluate = True
        return control

    def on_prediction_step(self, args, state, control, **kwargs: Any):
        self.listener.advance(FORWARD, "evaluating")
        self.listener.stop_if_asked()

    def on_log(self, args, state, control, logs=None, **kwargs: Any):
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            self.point("train", state.global_step, loss)
            self.losses.append(loss)
            if not math.isfinite(loss):
                raise Diverged(
                    f"The loss of {self.trial.variant} is not a number at step {state.global_step}: it diverged; lower its learning "
                    f"rate ({self.trial.learning_rate:g})."
                )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs: Any):
        found = {key.removeprefix("eval_"): float(value) for key, value in (metrics or {}).items()}
        self.trainer.last_scores = {key: value for key, value in found.items() if key in METRIC_LABELS}
        self.trainer.evaluation_seconds += found.get("runtime", 0.0)
        self.trainer.evaluated_loss = found["loss"]
        clean = {key: value if math.isfinite(value) else None for key, value in self.trainer.last_scores.items()}
        self.point("eval", state.global_step, found["loss"], **clean)


def unreached(model: nn.Module) -> list[str]:
    """Adapted modules of a PEFT model that the last backward pass gave no gradient: its forward never came by them."""
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    if not isinstance(prefix, str):
        return []
    names: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        module, found, _ = name.partition(f".{prefix}")
        if found and parameter.requires_grad:
            names[module] = names.get(module, False) or parameter.grad is not None
    return [name.removeprefix("base_model.model.") for name, reached in names.items() if not reached]


def make_trainer(
    model: nn.Module,
    groups: list[dict],
    trial: TrialSettings,
    examples: TrialExamples,
    device: str,
    listener: Listener,
    checkpoints: Checkpoints,
) -> TrialTrainer:
    """A Trainer for `trial`: AdamW on `groups` without weight decay, linear schedule with 6 % warm-up, one device."""
    reporter = Reporter(trial, examples.epoch, listener)
    evaluated = trial.evaluation_batch
    if examples.kind == CAUSAL:
        evaluated = evaluation_batch(evaluated, trial.sequence, model.config.vocab_size)
    trainer = TrialTrainer(
        model=model,
        args=_arguments(trial, examples, evaluated, device, checkpoints.path.parent),
        data_collator=examples.collate,
        train_dataset=Ordered(examples.train, examples.order),
        eval_dataset=examples.validation,
        preprocess_logits_for_metrics=_answers if examples.kind == CAUSAL else _logits,
        compute_metrics=lambda outcome: scores(examples.kind, outcome.predictions, outcome.label_ids),
        callbacks=[reporter, checkpoints],
        optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    reporter.trainer = checkpoints.trainer = trainer
    trainer.reporter, reporter.checkpoints = reporter, checkpoints
    trainer.last_scores = {}
    trainer.writes = examples.kind == CAUSAL
    return trainer


def _logits(outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Encoder-decoders give their encoder's states after the logits: not scores, and not of one shape."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _answers(outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Two numbers an answer instead of a distribution over all words for each of its tokens."""
    return answer_likelihoods(_logits(outputs, labels), labels)


def _arguments(trial: TrialSettings, examples: TrialExamples, evaluated: int, device: str, folder: Path) -> TrainingArguments:
    """evaluated: examples that are evaluated at a time. folder: of the trial; what trackers write to disk goes
    into ``logs`` there."""
    batch = len(examples.order[0])  # fewer than asked for where there are no more
    if batch % trial.processes:
        raise SettingsError(
            f"There are only {batch} training examples, which {trial.processes} processes cannot share alike; train with one process."
        )
    arguments = TrainingArguments(
        # No checkpoint is written there: save_strategy is "no", see `trial_checkpoint`.
        output_dir=str(folder / LOGS) if trial.report_to else tempfile.gettempdir(),
        max_steps=trial.steps,
        learning_rate=trial.learning_rate,  # what trackers are told; the optimizer has its own groups
        per_device_train_batch_size=batch // trial.processes,
        per_device_eval_batch_size=evaluated,
        train_sampling_strategy="sequential",
        lr_scheduler_type="linear",
        warmup_steps=trial.warmup_steps,
        logging_strategy="steps",
        logging_steps=min(LOGGED_AFTER, max(1, trial.steps // LOGGED_POINTS)),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=max(1, math.ceil(trial.steps / trial.evaluations)),
        save_strategy="no",
        report_to=list(trial.report_to) or "none",
        run_name=f"{folder.parent.parent.name}/{trial.id}",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        # A decoder's loss is over the tokens of all processes; other losses are means over examples, which each has as many of.
        average_tokens_across_devices=examples.kind == CAUSAL,
        ddp_broadcast_buffers=False,  # frozen, and the same in all processes
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
        use_cpu=device == "cpu",
        seed=trial.seed,
        log_level="error",
    )
    if arguments.world_size != trial.processes:
        raise RunError(
            f"{trial.id} is to be trained by {trial.processes} processes together, and there are {arguments.world_size}; start the run "
            "with `loraxs compare`."
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # with several GPUs Trainer would split each batch over them
    return arguments


def quiet() -> None:
    """Silences transformers' progress bars and its notes on new heads: expected here, and the log is for what matters."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with contextlib.suppress(ImportError):
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
