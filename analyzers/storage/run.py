"""What a training run writes: the checkpoints of transformers' Trainer, optimizer state included, by save interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from analyzers.checks import not_negative, whole
from analyzers.storage.optimizer_state import check_optimizer, optimizer_bytes
from analyzers.storage.size import AdapterSize

# The Trainer's other files on one CPU process: rng_state.pth 14.5 kB, training_args.bin 5.3 kB, scheduler.pt 1.5 kB and a short
# trainer_state.json of 1 to 2 kB, which grows with every logged step.
_TRAINER_FILES = 14_500 + 5_300 + 1_500 + 1_500


@dataclass(frozen=True)
class RunBytes:
    """What one training run writes to disk, in bytes.

    saves: how many checkpoints. kept: how many stay. model: of one checkpoint, the adapter's folder (the whole model for full
    fine-tuning). optimizer: its state, see `optimizer_bytes`. trainer: the Trainer's other files, about. extra: whatever else
    is saved each time (a tokenizer).
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


def check_run(*, save_every: int, keep: int | None, optimizer: str) -> None:
    """Raises SettingsError for how a run saves that no run can have, whatever its number of steps."""
    whole(save_every, "The save interval")
    if keep is not None:
        whole(keep, "The number of checkpoints kept")
    check_optimizer(optimizer)


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

    keep: the Trainer's ``save_total_limit``; None keeps all. optimizer: a key of `OPTIMIZERS`; its state has the precision
    that each tensor is trained in (`AdapterSize.trained_tensors`), where it has not one of its own. optimizer_state: off for
    ``save_only_model``. extra_bytes: of other files in each checkpoint, such as a tokenizer.

    Raises SettingsError for 0 steps, an unknown optimizer and the like.
    """
    check_run(save_every=save_every, keep=keep, optimizer=optimizer)
    saves = -(-whole(steps, "The number of steps") // int(save_every))
    return RunBytes(
        saves=saves,
        kept=saves if keep is None else min(saves, int(keep)),
        model=size.folder_bytes,
        optimizer=optimizer_bytes(optimizer, size.trained_tensors) if optimizer_state else 0,
        trainer=_TRAINER_FILES if optimizer_state else 0,
        extra=round(not_negative(extra_bytes, "The size of other files")),
    )
