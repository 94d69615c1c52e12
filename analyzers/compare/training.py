"""transformers' Trainer as the trials use it: a given order of batches, points of the curve reported as they come."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from analyzers.compare.data import Collator, Encoded
from analyzers.compare.tasks import scores
from analyzers.compare.trial import FORWARD, WARMUP
from loraxs_core.errors import SettingsError
from loraxs_core.progress import Cancellation, Cancelled

if TYPE_CHECKING:
    from torch import nn

    from analyzers.compare.trial import Report, TrialSettings

LOGGED_POINTS, LOGGED_AFTER = 50, 50  # points of a training curve, unless that is one in more than 50 steps


class Ordered(torch.utils.data.Dataset):
    """Items of `source` one after the other as `order` (lists of indices, one a batch) says."""

    def __init__(self, source: Encoded, order: list[list[int]]):
        self.source = source
        self.indices = [index for batch in order for index in batch]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.source[self.indices[position]]


class TrialTrainer(Trainer):
    """Trainer that remembers its last evaluation and the seconds spent on all of them."""

    evaluation_seconds = 0.0
    last_scores: dict[str, float]


class Reporter(TrainerCallback):
    """Passes on what happens: curve points, finished work, a wish to stop."""

    def __init__(
        self, trial: TrialSettings, size: int, report: Report, advance: Callable[[float, str], None], cancelled: Cancelled
    ):
        self.trial, self.size = trial, size
        self.report, self.advance, self.cancelled = report, advance, cancelled
        self.step_cost = trial.training_cost / trial.steps
        self.trainer: TrialTrainer | None = None

    def point(self, kind: str, step: int, value: float, **more: float) -> None:
        epoch = step * min(self.trial.batch, self.size) / self.size
        self.report(
            {"kind": kind, "step": step, "epoch": round(epoch, 4), "value": value if math.isfinite(value) else None, **more}
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.advance(self.step_cost, f"step {state.global_step} of {self.trial.steps}")
        if self.cancelled():
            raise Cancellation
        if state.global_step == self.trial.steps:  # the curve ends where the training does, whatever the interval
            control.should_evaluate = True
        return control

    def on_prediction_step(self, args, state, control, **kwargs):
        self.advance(FORWARD, "evaluating")
        if self.cancelled():
            raise Cancellation

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            self.point("train", state.global_step, loss)
            if not math.isfinite(loss):
                raise SettingsError(
                    f"The loss of {self.trial.variant} is not a number at step {state.global_step}; lower its learning rate "
                    f"({self.trial.learning_rate:g})."
                )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        found = {key.removeprefix("eval_"): float(value) for key, value in (metrics or {}).items()}
        self.trainer.last_scores = {key: value for key, value in found.items() if key in METRICS}
        self.trainer.evaluation_seconds += found.get("runtime", 0.0)
        clean = {key: value if math.isfinite(value) else None for key, value in self.trainer.last_scores.items()}
        self.point("eval", state.global_step, found["loss"], **clean)


METRICS = {"pearson", "spearman", "accuracy", "f1_macro", "matthews"}


def make_trainer(
    model: nn.Module,
    trial: TrialSettings,
    device: str,
    *,
    groups: list[dict],
    train: Encoded,
    order: list[list[int]],
    train_size: int,
    validation: Encoded,
    collate: Collator,
    kind: str,
    report: Report,
    advance: Callable[[float, str], None],
    cancelled: Cancelled,
) -> TrialTrainer:
    """A Trainer for `trial`: AdamW without weight decay, linear schedule with 6 % warm-up, no checkpoints, one device.

    train_size: examples in an epoch (`train` holds only those that are used).
    """
    batch = len(order[0])
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written: save_strategy is "no"
        max_steps=trial.steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=evaluation_batch(trial),
        train_sampling_strategy="sequential",
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(WARMUP * trial.steps),
        logging_strategy="steps",
        logging_steps=min(LOGGED_AFTER, max(1, trial.steps // LOGGED_POINTS)),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=max(1, math.ceil(trial.steps / trial.evaluations)),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
        use_cpu=device == "cpu",
        seed=trial.seed,
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # with several GPUs Trainer would split each batch over them
    reporter = Reporter(trial, train_size, report, advance, cancelled)
    trainer = TrialTrainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=Ordered(train, order),
        eval_dataset=validation,
        # Encoder-decoders give their encoder's states after the logits: not scores, and not of one shape.
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0] if isinstance(outputs, tuple) else outputs,
        compute_metrics=lambda outcome: scores(kind, outcome.predictions, outcome.label_ids),
        callbacks=[reporter],
        optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    reporter.trainer = trainer
    trainer.last_scores = {}
    return trainer


def evaluation_batch(trial: TrialSettings) -> int:
    return 2 * trial.batch


def quiet() -> None:
    """Silences transformers' progress bars and its notes on new heads: expected here, and the log is for what matters."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with contextlib.suppress(ImportError):
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
