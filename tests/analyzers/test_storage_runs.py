"""What a training run writes: optimizer states against files of the real optimizers, and the checkpoints of a real Trainer."""

from __future__ import annotations

import math
import warnings

import pytest

from analyzers.memory.optimizers import make_optimizer
from analyzers.ranks import Budget, make_plan
from analyzers.storage import OPTIMIZERS, adapter_size, run_bytes
from analyzers.storage.layout import Tensor
from analyzers.storage.optimizer_state import _numbers, optimizer_bytes, state_of
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import SettingsError
from loraxs_core.targets import select_targets

# An R of rank 5 and one of rank 16, a LoRA, VeRA's vectors, and tensors around bitsandbytes' 4,096 and PyTorch's alignment.
SHAPES = {
    "rank 5": [(5, 5)] * 24,
    "rank 16": [(16, 16)] * 24,
    "LoRA": [(16, 384), (384, 16)] * 12,
    "vectors": [(384,), (256,)] * 12,
    "around 4096": [(64, 64), (63, 65), (4096,), (4097,), (1,), (257, 1), (3, 4, 5)],
}


def real_state(optimizer: str, shapes, dtype: str) -> dict:
    """The state_dict of the real optimizer after one step, in the groups that a Trainer makes, under a schedule."""
    import torch
    from transformers.optimization import Adafactor

    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype))) for shape in shapes]
    groups = [{"params": parameters, "weight_decay": 0.0}, {"params": [], "weight_decay": 0.0}]

    def eight_bit():
        bitsandbytes = pytest.importorskip("bitsandbytes")
        return bitsandbytes.optim.AdamW(groups, optim_bits=8)  # as the Trainer makes it for optim="adamw_bnb_8bit"

    made = {
        "adamw": lambda: torch.optim.AdamW(groups),
        "adamw-fused": lambda: torch.optim.AdamW(groups, fused=True),
        "adamw-loop": lambda: torch.optim.AdamW(groups, foreach=False),
        "adamw-8bit": eight_bit,
        "adafactor": lambda: Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1),
        "sgd-momentum": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    }[optimizer]()
    torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    return made.state_dict()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", list(SHAPES))
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_optimizer_files_to_the_byte(tmp_path, optimizer, shapes, dtype):
    import torch

    state = real_state(optimizer, SHAPES[shapes], dtype)
    tensors = tuple(Tensor(shape, dtype) for shape in SHAPES[shapes])
    torch.save(state, tmp_path / "optimizer.pt")
    assert optimizer_bytes(optimizer, tensors) == (tmp_path / "optimizer.pt").stat().st_size


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "adafactor"])
def test_a_large_optimizer_file_within_64_bytes_a_record(tmp_path, monkeypatch, optimizer):
    """Short tensors stand in for those of a large state; here every state counts as one."""
    import torch

    monkeypatch.setattr("analyzers.storage.optimizer_state._SMALL", -1)
    tensors = tuple(Tensor(shape, "float32") for shape in [(16, 500), (500, 16)] * 10)
    torch.save(real_state(optimizer, [one.shape for one in tensors], "float32"), tmp_path / "optimizer.pt")
    predicted, written = optimizer_bytes.__wrapped__(optimizer, tensors), (tmp_path / "optimizer.pt").stat().st_size
    assert abs(predicted - written) <= 64 * (6 * len(tensors) + 5)
    assert predicted == pytest.approx(written, rel=0.02)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "sgd-momentum"])
def test_states_on_disk_are_those_whose_memory_is_estimated(optimizer):
    import torch

    for shape in ((16, 16), (64, 64), (4097,), (300, 20)):
        parameter = torch.nn.Parameter(torch.zeros(shape, device="meta"))
        parameter.grad = torch.zeros(shape, device="meta")
        made = make_optimizer(optimizer, [parameter])
        made.step()
        held = [one for one in made.state.get(parameter, {}).values() if isinstance(one, torch.Tensor)]
        state = state_of(optimizer, Tensor(shape))
        maps = 2 * 256 * 4 if optimizer == "adamw-8bit" and math.prod(shape) >= 4096 else 0  # held once by all tensors
        assert _numbers(state) - maps == sum(one.nbytes for one in held)


def test_huge_states_are_counted_without_memory():
    """64 GiB of moments, at once."""
    size = 16 * 2**30  # bytes of one moment
    tensors = tuple(Tensor((2**20, 4096)) for _ in range(2))
    assert 4 * size < optimizer_bytes("adamw", tensors) < 4 * size + 10_000


@pytest.mark.parametrize(("method", "rank"), [("lora-xs", 5), ("lora", 16), ("vera", 8), ("tinylora", 2), ("psoft", 4)])
def test_what_is_trained_is_what_peft_trains(tiny_bert, method, rank):
    from peft import get_peft_model
    from transformers import AutoModel

    from analyzers.methods import AdapterSpec, peft_config
    from loraxs_core.targets import target_patterns

    checkpoint = Checkpoint.open(tiny_bert)
    spec = AdapterSpec(method, target_patterns(checkpoint, select_targets(checkpoint)), rank=rank)
    adapted = get_peft_model(AutoModel.from_pretrained(tiny_bert), peft_config(spec))
    trained = sorted(tuple(one.shape) for one in adapted.parameters() if one.requires_grad)
    assert sorted(one.shape for one in adapter_size(checkpoint, method, rank=rank).trained_tensors) == trained


def test_lora_xs_trains_in_float32_however_it_is_saved(minilm):
    full, half = (adapter_size(minilm, "lora-xs", rank=16, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert half.file_bytes < full.file_bytes
    states = [run_bytes(size, steps=1, save_every=1).optimizer for size in (full, half)]
    assert states[0] == states[1]
    lora = [adapter_size(minilm, "lora", rank=16, dtype=dtype) for dtype in ("float32", "bfloat16")]
    assert run_bytes(lora[1], steps=1, save_every=1).optimizer < 0.6 * run_bytes(lora[0], steps=1, save_every=1).optimizer


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor"])
def test_checkpoints_of_a_real_trainer(tiny_bert, tmp_path, optimizer):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    checkpoint = Checkpoint.open(tiny_bert)
    plan = make_plan(checkpoint, "uniform", budget=Budget.like_rank(8))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, plan.lora_xs_config("SEQ_CLS"))
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=25,
            save_steps=10,
            save_total_limit=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            optim=optimizer,
        )
        rows = [{"input_ids": torch.arange(8), "labels": index % 2} for index in range(16)]
        Trainer(adapted, arguments, train_dataset=rows).train()
    size = adapter_size(checkpoint, plan=plan, task="SEQ_CLS")
    run = run_bytes(size, steps=25, save_every=10, keep=2, optimizer={"adamw_torch": "adamw"}.get(optimizer, optimizer))
    folders = sorted(tmp_path.glob("checkpoint-*"))
    assert (run.saves, run.kept) == (3, 2)
    assert [folder.name for folder in folders] == ["checkpoint-20", "checkpoint-25"]
    assert run.optimizer == (folders[0] / "optimizer.pt").stat().st_size
    on_disk = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert run.on_disk == pytest.approx(on_disk, rel=0.05)
    assert run.written == 3 * run.each
    assert run_bytes(size, steps=25, save_every=10, optimizer_state=False, extra_bytes=1000).each == size.folder_bytes + 1000


def test_an_unknown_optimizer_is_one_sentence():
    with pytest.raises(SettingsError, match="Unknown optimizer 'lion'; there are adamw"):
        optimizer_bytes("lion", (Tensor((2, 2)),))
