"""The adapter of a trial: put on the model, counted, given its learning rates, and written to disk."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from analyzers.compare.base_and_head import Prepared
from analyzers.compare.examples import TrialExamples
from analyzers.compare.trial_settings import Listener, TrialSettings
from analyzers.methods import AdapterSpec
from analyzers.methods.method import FirstBatches
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import RunError
from loraxs_core.paths import atomic_folder
from loraxs_core.safetensors_file import SafetensorsFile
from loraxs_core.targets import select_targets, target_patterns

START_BATCHES = 16  # that a start is read off; PEFT goes over them until it has converged


def adapted(prepared: Prepared, trial: TrialSettings, checkpoint: Checkpoint) -> nn.Module:
    """The model with the trial's adapter on it; ``full`` unfreezes everything, ``head-only`` nothing."""
    head = [] if prepared.separate else prepared.head
    spec = adapter_spec(trial, checkpoint, head=head, task_type=prepared.task_type)
    config = trial.kind.configured(spec) if spec else None
    if config is None:
        prepared.model.requires_grad_(trial.method == "full")
        for name in prepared.head:
            prepared.model.get_submodule(name).requires_grad_(True)
        if prepared.separate:
            prepared.model.remembers = trial.method == "head-only"
        return prepared.model
    from peft import get_peft_model

    if trial.kind.is_loraxs and trial.kind.starts_from_data is not None:
        config.start_follows = True  # `start_from_data` gives A and B
    if not prepared.separate:
        return get_peft_model(prepared.model, config)
    # Adapted by itself, so that what is saved is an adapter of the sentence encoder, which is used without this head.
    prepared.model.encoder = get_peft_model(prepared.model.encoder, config)
    return prepared.model


def start_from_data(
    model: nn.Module, prepared: Prepared, trial: TrialSettings, examples: TrialExamples, listener: Listener
) -> None:
    """Gives the adapter on `model` the start that its method reads off the first batches of the training data. In place."""

    def collated() -> Iterator[dict]:
        for order in examples.order[:START_BATCHES]:
            listener.stop_if_asked()
            yield examples.collate([examples.train[index] for index in order])

    def inputs() -> Iterator[dict]:
        for batch in collated():
            for texts in (batch[name] for name in ("first", "second") if name in batch) if prepared.separate else (batch,):
                yield {name: value for name, value in texts.items() if name != "labels"}

    def losses() -> Iterator[torch.Tensor]:
        device = next(model.parameters()).device
        for batch in collated():
            yield model(**send_to_device(batch, device))["loss"]

    adapted = model.encoder if prepared.separate else model
    trial.kind.starts_from_data(adapted, FirstBatches(inputs, losses, trial.learning_rate / trial.warmup_steps))
    model.zero_grad(set_to_none=True)  # of the head, where losses were asked for


def adapter_spec(trial: TrialSettings, checkpoint: Checkpoint, *, head: list[str], task_type: str) -> AdapterSpec | None:
    """The trial's adapter; None for the methods without one. head: PEFT's ``modules_to_save``."""
    chosen = trial.kind
    if chosen.config is None:
        return None
    common = {"task_type": task_type, "modules_to_save": head, "seed": trial.seed, "options": trial.options}
    if trial.plan is not None:
        return trial.rank_plan().spec(trial.method, **common)
    patterns = target_patterns(checkpoint, select_targets(checkpoint, trial.targets))
    return AdapterSpec(trial.method, patterns, rank=trial.rank or chosen.default_rank, **common)


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


def energy_kept(model: nn.Module) -> float | None:
    """The share of the squared singular values of the adapted weights that lies within what LoRA-XS can reach, the mean of its layers:
    ``|U^T W V|^2 / |W|^2``, which for the top r vectors is ``sum_r s^2 / sum s^2``. None without such layers."""
    from loraxs_core.tuner import LoraXSLayer

    shares = []
    for layer in model.modules():
        if not isinstance(layer, LoraXSLayer) or not layer.active_adapters:
            continue
        A, B = (part.detach().double().cpu() for part in layer.frozen(layer.active_adapters[0]))
        weight = layer.base_matrix().double().cpu()
        # Orthonormal but for the singular values, wherever they sit.
        rows, columns = A / A.norm(dim=1, keepdim=True), B / B.norm(dim=0, keepdim=True)
        shares.append(float((columns.T @ weight @ rows.T).square().sum() / weight.square().sum()))
    finite = [share for share in shares if math.isfinite(share)]
    return sum(finite) / len(finite) if finite else None


def parameter_groups(model: nn.Module, head: list[str], trial: TrialSettings) -> list[dict]:
    """AdamW's parameter groups: the head at its own rate, everything else that is trained at the method's."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [{"params": [parameter for name, parameter in trained if is_head(name, head)], "lr": trial.head_learning_rate}]
    others = [parameter for name, parameter in trained if not is_head(name, head)]
    return [*groups, {"params": others, "lr": trial.learning_rate}] if others else groups


def kept_parameters(model: nn.Module, trial: TrialSettings) -> dict[str, nn.Parameter]:
    """What a checkpoint of `trial` has to hold, by name: what is trained, and the base weights that its method changed."""
    changed = trial.kind.changes_base
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or (changed and ".base_layer." in name)
    }


class Start:
    """How the adapter of a method that changes the base weights began, where PEFT needs that to save it.

    PiSSA takes its start out of the base weights, and PEFT finds that start by a randomised SVD: what was trained would be put on
    other weights wherever it is loaded. With the start at hand PEFT writes a plain LoRA of twice the rank, the same on the
    original base.
    """

    def __init__(self, model: nn.Module, prepared: Prepared, trial: TrialSettings):
        self.folder = tempfile.TemporaryDirectory() if trial.kind.changes_base else None
        if self.folder:
            adapted = model.encoder if prepared.separate else model
            config = adapted.peft_config["default"]
            init, config.init_lora_weights = config.init_lora_weights, True
            adapted.save_pretrained(self.folder.name, save_embedding_layers=False)
            config.init_lora_weights = init

    def tensors(self) -> dict[str, torch.Tensor]:
        """The start itself, named ``start.…``; empty for a method that leaves the base weights as they are."""
        return {f"start.{name}": value for name, value in load_file(self._file).items()} if self.folder else {}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Makes an earlier `tensors` the start: it was not found again."""
        if self.folder:
            save_file({name.removeprefix("start."): value for name, value in tensors.items()}, self._file, {"format": "pt"})

    @property
    def _file(self) -> Path:
        return Path(self.folder.name) / "adapter_model.safetensors"

    def save(self, adapted: nn.Module, folder: Path) -> None:
        """``save_pretrained``, so that the adapter belongs to the base as it was before the start was taken out."""
        from peft import get_peft_model_state_dict

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

    file_bytes: the safetensors files as written, head included. adapter_file_bytes: adapter_model.safetensors alone, as the storage of
    adapters is counted elsewhere. adapter_bytes, head_bytes: the tensors in them without and with the head. The head is in adapter_model.safetensors, but for a sentence encoder's, which no class of transformers has: it is in
    head.safetensors beside. A full fine-tune is counted and not kept: it is as large as the model.
    """
    adapter, head = 0, 0
    if trial.method == "head-only" and not prepared.head:  # a decoder as it is
        return {"adapter_bytes": 0, "adapter_file_bytes": 0, "head_bytes": 0, "file_bytes": 0}
    if trial.method == "full":
        for name, parameter in model.named_parameters():
            size = parameter.numel() * parameter.element_size()
            adapter, head = (adapter, head + size) if is_head(name, prepared.head) else (adapter + size, head)
        return {"adapter_bytes": adapter, "adapter_file_bytes": None, "head_bytes": head, "file_bytes": None}
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
    sizes = {file.path.name: file.path.stat().st_size for file in files}
    alone = sizes.get("adapter_model.safetensors", 0) if trial.method != "head-only" else 0
    return {"adapter_bytes": adapter, "adapter_file_bytes": alone, "head_bytes": head, "file_bytes": sum(sizes.values())}
