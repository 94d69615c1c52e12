"""One trial: one method on one task with one seed, trained with transformers' Trainer and PEFT's own methods.

Fair by construction: the batches come from the task and the seed, the head's first numbers from its shape and the seed; the
evaluation, the schedule and the head's learning rate are the same for every method. Only the adapter and its rate differ.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyzers.compare.tasks import Splits, Task, scores
from analyzers.methods import AdapterSpec, method, peft_config
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from loraxs_core.paths import atomic_file, atomic_folder
from loraxs_core.progress import Cancellation, Cancelled
from loraxs_core.targets import select_targets, target_patterns

if TYPE_CHECKING:
    from torch import nn

    from analyzers.compare.model import Prepared
    from analyzers.plans import RankPlan

WARMUP = 0.06  # share of the steps; the LoRA-XS paper's GLUE setting, as are AdamW, the linear schedule and no dropout
SVD_METHODS = ("lora-xs", "pissa", "psoft", "tinylora")  # those whose start is singular vectors of every target
CHANGES_BASE = ("pissa",)  # those that take their start out of the base weights, and whose start is not found again
FORWARD, BACKWARD = 1.0, 1.5  # relative time of the two halves of a step, for the progress bar alone


@dataclass(frozen=True)
class TrialSettings:
    """Everything that decides a trial, besides the model and the task.

    rank: of every module; plan: a rank each instead (`RankPlan.to_dict`), called plan_label. learning_rate: of the adapter (of
    all weights for ``full``); head_learning_rate: of the head. batch: examples a step. sequence: tokens a text at most.
    evaluations: points of the validation curve; validation_examples, test_examples: at most so many, None for all.
    """

    method: str
    seed: int
    learning_rate: float
    head_learning_rate: float
    steps: int
    batch: int
    sequence: int
    rank: int | None = None
    plan: dict | None = field(default=None, compare=False)
    plan_label: str = ""
    targets: str | tuple[str, ...] = "paper"
    evaluations: int = 5
    validation_examples: int | None = None
    test_examples: int | None = None
    device: str = "auto"

    @property
    def id(self) -> str:
        """Its folder's name, unique within a sweep."""
        parts = [self.method]
        if self.plan_label:
            parts.append("".join(letter if letter.isalnum() else "-" for letter in self.plan_label))
        elif self.rank is not None:
            parts.append(f"r{self.rank}")
        return "_".join([*parts, f"lr{self.learning_rate:g}", f"seed{self.seed}"])

    @property
    def variant(self) -> str:
        """What rows of different seeds have in common: method and ranks."""
        label = method(self.method).label
        return f"{label}, {self.plan_label}" if self.plan_label else label

    @property
    def training_cost(self) -> float:
        return self.steps * (FORWARD if self.method == "head-only" else FORWARD + BACKWARD)


Report = Callable[[dict], None]


def run_trial(
    trial: TrialSettings,
    checkpoint: Checkpoint,
    task: Task,
    splits: Splits,
    folder: Path,
    *,
    report: Report = lambda line: None,
    advance: Callable[[float, str], None] = lambda cost, message: None,
    cancelled: Cancelled = lambda: False,
) -> dict:
    """Trains, scores, saves the adapter to ``folder/adapter`` and returns the record (also ``folder/result.json``).

    report: takes the curve's points, ``{"kind": "train" | "eval", "step", "epoch", "value"}``. advance: takes finished cost (1
    is one batch read forward) and what is being done. Raises Cancellation soon after `cancelled` says so, and SettingsError when
    the loss stops being a number.
    """
    import torch
    from transformers import set_seed

    from analyzers.compare import data, training
    from analyzers.compare.measure import PeakMemory, without_basis_cache
    from analyzers.compare.model import prepare

    device = resolve_device(trial.device)
    started = time.perf_counter()
    training.quiet()
    set_seed(trial.seed)
    with PeakMemory(device) as peak:
        advance(0, "loading the model")
        prepared = prepare(checkpoint, task, trial.seed)
        if cancelled():
            raise Cancellation
        setup = time.perf_counter()
        advance(0, "building the adapter")
        with without_basis_cache():
            model = adapted(prepared, trial, checkpoint)
        setup_seconds = time.perf_counter() - setup
        start = Start(model, prepared, trial)
        adapter_parameters, head_parameters = count_trained(model, prepared.head)
        scale = data.Scale(task, splits.train)
        order = data.batches(splits.train, batch=trial.batch, steps=trial.steps, seed=trial.seed)
        used = sorted({index for batch in order for index in batch})
        place = {index: position for position, index in enumerate(used)}

        def encode(examples):
            return data.Encoded(examples, prepared.tokenizer, scale, sequence=trial.sequence, separate=prepared.separate)

        trainer = training.make_trainer(
            model,
            trial,
            device,
            groups=parameter_groups(model, prepared.head, trial),
            train=encode([splits.train[index] for index in used]),
            train_size=len(splits.train),
            order=[[place[index] for index in batch] for batch in order],
            validation=encode(data.evaluation_part(splits.validation, trial.validation_examples)),
            collate=data.Collator(prepared.tokenizer, scale, prepared.separate),
            kind=task.kind,
            report=report,
            advance=advance,
            cancelled=cancelled,
        )
        begun = time.perf_counter()
        trainer.train()
        train_seconds = time.perf_counter() - begun - trainer.evaluation_seconds
        validation = trainer.last_scores
        advance(0, "scoring")
        begun = time.perf_counter()
        outputs = trainer.predict(encode(data.evaluation_part(splits.test, trial.test_examples)))
        test = scores(task.kind, outputs.predictions, outputs.label_ids)
        test_seconds = time.perf_counter() - begun
        loss = float(outputs.metrics["test_loss"])
        if not math.isfinite(loss):
            raise SettingsError(
                f"The loss of {trial.variant} is not a number any more; lower its learning rate ({trial.learning_rate:g})."
            )
    saved = save_adapter(model, prepared, trial, folder / "adapter", start)
    svd = setup_seconds if trial.method in SVD_METHODS else 0.0
    record = {
        "trial": trial.id,
        "method": trial.method,
        "label": trial.variant,
        "plan": trial.plan_label or None,
        "rank": trial.rank,
        "seed": trial.seed,
        "learning_rate": trial.learning_rate,
        "head_learning_rate": trial.head_learning_rate,
        "metric": task.metric,
        "score": test[task.metric],
        "validation_score": validation.get(task.metric),
        **{f"test_{name}": value for name, value in test.items()},
        "test_loss": loss,
        "classes": ", ".join(task.classes) or None,
        "label_mean": scale.mean if scale.regression else None,
        "label_deviation": scale.deviation if scale.regression else None,
        "test_examples": len(outputs.label_ids),
        "adapter_parameters": adapter_parameters,
        "head_parameters": head_parameters,
        "trainable": adapter_parameters + head_parameters,
        **saved,
        "seconds": time.perf_counter() - started,
        "train_seconds": train_seconds,
        "test_seconds": test_seconds,
        "setup_seconds": setup_seconds,
        "svd_seconds": svd,
        "svd_share": svd / (setup_seconds + train_seconds),
        "peak_memory_bytes": peak.bytes,
        "peak_memory_kind": peak.kind,
        "device": device,
        "threads": torch.get_num_threads(),
        "state": "done",
        "error": None,
    }
    with atomic_file(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(finite(record), indent=2) + "\n", encoding="utf-8")
    return record


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` (the first GPU); ``auto`` is the GPU where there is one. Raises SettingsError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
        return device
    raise SettingsError(f"There is no device {device!r} on this machine; use auto or cpu.")


def adapted(prepared: Prepared, trial: TrialSettings, checkpoint: Checkpoint) -> nn.Module:
    """The model with the trial's adapter on it; ``full`` unfreezes everything, ``head-only`` nothing."""
    head = [] if prepared.separate else prepared.head
    spec = adapter_spec(trial, checkpoint, head=head, task_type=prepared.task_type)
    config = peft_config(spec) if spec else None
    if config is None:
        prepared.model.requires_grad_(trial.method == "full")
        for name in prepared.head:
            prepared.model.get_submodule(name).requires_grad_(True)
        return prepared.model
    from peft import get_peft_model

    if not prepared.separate:
        return get_peft_model(prepared.model, config)
    # Adapted by itself, so that what is saved is an adapter of the sentence encoder, which is used without this head.
    prepared.model.encoder = get_peft_model(prepared.model.encoder, config)
    return prepared.model


def adapter_spec(trial: TrialSettings, checkpoint: Checkpoint, *, head: list[str], task_type: str) -> AdapterSpec | None:
    """The trial's adapter; None for the methods without one. head: PEFT's ``modules_to_save``."""
    chosen = method(trial.method)
    if chosen.config is None:
        return None
    common = {"task_type": task_type, "modules_to_save": head, "seed": trial.seed}
    if trial.plan is not None:
        return plan_of(trial).spec(trial.method, **common)
    patterns = target_patterns(checkpoint, select_targets(checkpoint, trial.targets))
    return AdapterSpec(trial.method, patterns, rank=trial.rank or chosen.default_rank, **common)


def plan_of(trial: TrialSettings) -> RankPlan:
    from analyzers.plans import RankPlan

    return RankPlan.from_dict(trial.plan, f"The plan {trial.plan_label!r}")


def is_head(name: str, head: list[str]) -> bool:
    """Whether the parameter of this name belongs to the head, wrapped by PEFT or not."""
    if "modules_to_save" in name:
        return True
    plain = name.removeprefix("base_model.model.")
    return any(plain.startswith(f"{part}.") for part in head)


def count_trained(model: nn.Module, head: list[str]) -> tuple[int, int]:
    """(adapter, head): trained numbers outside and inside the head."""
    sizes = [
        (is_head(name, head), parameter.numel()) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    return sum(size for inside, size in sizes if not inside), sum(size for inside, size in sizes if inside)


def parameter_groups(model: nn.Module, head: list[str], trial: TrialSettings) -> list[dict]:
    """AdamW's parameter groups: the head at its own rate, everything else that is trained at the method's."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [{"params": [parameter for name, parameter in trained if is_head(name, head)], "lr": trial.head_learning_rate}]
    others = [parameter for name, parameter in trained if not is_head(name, head)]
    return [*groups, {"params": others, "lr": trial.learning_rate}] if others else groups


class Start:
    """How the adapter of a method that changes the base weights began, where PEFT needs that to save it.

    PiSSA takes its start out of the base weights, and PEFT finds that start by a randomised SVD: what was trained would be put on
    other weights wherever it is loaded. With the start at hand PEFT writes a plain LoRA of twice the rank, the same on the
    original base.
    """

    def __init__(self, model: nn.Module, prepared: Prepared, trial: TrialSettings):
        self.folder = tempfile.TemporaryDirectory() if trial.method in CHANGES_BASE else None
        if self.folder:
            adapted = model.encoder if prepared.separate else model
            config = adapted.peft_config["default"]
            init, config.init_lora_weights = config.init_lora_weights, True
            adapted.save_pretrained(self.folder.name, save_embedding_layers=False)
            config.init_lora_weights = init

    def save(self, adapted: nn.Module, folder: Path) -> None:
        """``save_pretrained``, so that the adapter belongs to the base as it was before the start was taken out."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import load_file, save_file

        if not self.folder:
            adapted.save_pretrained(folder, save_embedding_layers=False)
            return
        tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        adapted.save_pretrained(folder, save_embedding_layers=False, path_initial_model_for_weight_conversion=self.folder.name)
        # PEFT's conversion leaves the modules saved whole out of the file.
        whole = {name: value.contiguous() for name, value in tensors.items() if ".lora_" not in name}
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file) | whole, file, metadata={"format": "pt"})


def save_adapter(
    model: nn.Module, prepared: Prepared, trial: TrialSettings, folder: Path, start: Start
) -> dict[str, int | None]:
    """Writes what was trained to `folder` and returns its sizes in bytes.

    file_bytes: the safetensors files as written, head included. adapter_bytes, head_bytes: the tensors in them without and with
    the head. The head is in adapter_model.safetensors, but for a sentence encoder's, which no class of transformers has: it is in
    head.safetensors beside. A full fine-tune is counted and not kept: it is as large as the model.
    """
    import shutil

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from loraxs_core.errors import RunError
    from loraxs_core.safetensors_file import SafetensorsFile

    adapter, head = 0, 0
    if trial.method == "full":
        for name, parameter in model.named_parameters():
            size = parameter.numel() * parameter.element_size()
            adapter, head = (adapter, head + size) if is_head(name, prepared.head) else (adapter + size, head)
        return {"adapter_bytes": adapter, "head_bytes": head, "file_bytes": None}
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with atomic_folder(folder) as temporary:
            if trial.method != "head-only":
                adapted = model.encoder if prepared.separate else model
                start.save(adapted, temporary)
            if prepared.separate or trial.method == "head-only":
                tensors = {
                    name: value.contiguous() for name, value in model.state_dict().items() if is_head(name, prepared.head)
                }
                name = "head.safetensors" if prepared.separate else "adapter_model.safetensors"
                save_file(tensors, temporary / name, metadata={"format": "pt"})
    except SafetensorError as error:
        raise RunError(f"Cannot write {folder}: {error}.") from error
    files = [SafetensorsFile(path) for path in folder.glob("*.safetensors")]
    for name, entry in (named for file in files for named in file.entries.items()):
        inside = any(f".{part}." in f".{name}" for part in prepared.head)
        adapter, head = (adapter, head + entry.nbytes) if inside else (adapter + entry.nbytes, head)
    return {"adapter_bytes": adapter, "head_bytes": head, "file_bytes": sum(file.path.stat().st_size for file in files)}


def finite(record: dict) -> dict:
    """JSON has no NaN: None instead."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
