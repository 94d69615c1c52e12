"""What a training run writes: the checkpoints of transformers' Trainer, optimizer state included, by save interval."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from functools import lru_cache

from analyzers.checks import not_negative, whole
from analyzers.storage.layout import item_bytes
from analyzers.storage.size import AdapterSize
from loraxs_core.errors import SettingsError

# Optimizer -> numbers of state for each trained number.
OPTIMIZERS: dict[str, int] = {"adamw": 2, "sgd": 0, "sgd-momentum": 1}

# The Trainer's other files on one CPU process: rng_state.pth 14.5 kB, training_args.bin 5.3 kB, scheduler.pt 1.5 kB and a short
# trainer_state.json of 1 to 2 kB, which grows with every logged step.
_TRAINER_FILES = 14_500 + 5_300 + 1_500 + 1_500


@dataclass(frozen=True)
class RunBytes:
    """What one training run writes to disk, in bytes.

    saves: how many checkpoints. kept: how many stay. model: of one checkpoint, the adapter's folder (the whole model for full
    fine-tuning). optimizer: its state, within 1 % or 64 bytes a record. trainer: the Trainer's other files, about. extra: whatever else is saved each
    time (a tokenizer).
    """

    saves: int
    kept: int
    model: int
    optimizer: int
    trainer: int
    extra: int

    @property
    def each(self) -> int:
        """One checkpoint."""
        return self.model + self.optimizer + self.trainer + self.extra

    @property
    def written(self) -> int:
        """All checkpoints of the run."""
        return self.saves * self.each

    @property
    def on_disk(self) -> int:
        """What is left at the end; for a moment there is one checkpoint more."""
        return self.kept * self.each

    def to_dict(self) -> dict:
        """Plain JSON values, the derived ones included."""
        return asdict(self) | {"each": self.each, "written": self.written, "on_disk": self.on_disk}


def run_bytes(
    size: AdapterSize,
    *,
    steps: int,
    save_every: int,
    keep: int | None = None,
    optimizer: str = "adamw",
    optimizer_state: bool = True,
    extra_bytes: float = 0,
) -> RunBytes:
    """The checkpoints of a run of `steps` optimizer steps that saves every `save_every` steps and at the end.

    keep: the Trainer's ``save_total_limit``; None keeps all. optimizer: a key of `OPTIMIZERS`; its state has the precision of the
    adapter. optimizer_state: off for ``save_only_model``. extra_bytes: of other files in each checkpoint, such as a tokenizer.

    Raises SettingsError for 0 steps, an unknown optimizer and the like.
    """
    saves = -(-whole(steps, "The number of steps") // whole(save_every, "The save interval"))
    if optimizer not in OPTIMIZERS:
        raise SettingsError(f"Unknown optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}.")
    trained = size.trainable + size.head_parameters
    state = OPTIMIZERS[optimizer] * trained * item_bytes(size.dtype) + _optimizer_overhead(optimizer, size.trained_tensors)
    return RunBytes(
        saves=saves,
        kept=saves if keep is None else min(saves, whole(keep, "The number of checkpoints kept")),
        model=size.folder_bytes,
        optimizer=state if optimizer_state else 0,
        trainer=_TRAINER_FILES if optimizer_state else 0,
        extra=round(not_negative(extra_bytes, "The size of other files")),
    )


@lru_cache(maxsize=64)
def _optimizer_overhead(optimizer: str, tensors: int) -> int:
    """Bytes of an optimizer.pt besides the state's numbers: some 800 a tensor for AdamW, in the zip archive that torch.save writes.

    Found by saving the state of that many 16-number tensors: 64 bytes, to which torch.save aligns every record.
    """
    import torch

    parameters = [torch.nn.Parameter(torch.zeros(16)) for _ in range(tensors)]
    made = {
        "adamw": lambda: torch.optim.AdamW(parameters),
        "sgd": lambda: torch.optim.SGD(parameters, lr=1.0),
        "sgd-momentum": lambda: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    }[optimizer]()
    for parameter in parameters:
        parameter.grad = torch.zeros(16)
    made.step()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    return file.tell() - OPTIMIZERS[optimizer] * tensors * 64
