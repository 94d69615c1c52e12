"""LoRA-XS under ``accelerate launch`` with two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loraxs_core.checkpoint import Checkpoint
from loraxs_core.tuner import verify_adapter

REPOSITORY = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from loraxs_core.tuner import LoraXSConfig

base, out = sys.argv[1:]
accelerator = Accelerator(cpu=True)
torch.manual_seed(accelerator.process_index)  # R is drawn differently in each process until it is broadcast
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraXSConfig(r=4, init_weights=False))
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.02)
model, optimizer = accelerator.prepare(model, optimizer)
losses = []
for step in range(4):
    ids = torch.randint(0, 64, (4, 8), generator=torch.Generator().manual_seed(accelerator.process_index))
    loss = model(input_ids=ids, labels=ids).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
mine = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
everyone = accelerator.gather(mine[None])
accelerator.wait_for_everyone()
unwrapped = accelerator.unwrap_model(model)
unwrapped.save_pretrained(out, is_main_process=accelerator.is_main_process)
ignored = getattr(model, "parameters_to_ignore", set())
if accelerator.is_main_process:
    print(json.dumps({
        "processes": accelerator.num_processes,
        "losses": losses,
        "apart": float((everyone[0] - everyone[1]).abs().max()),
        "ignored": sorted(name for name in ignored if "loraxs_A" in name)[:1],
    }))
"""


@pytest.mark.slow
def test_two_processes_train_one_adapter(tiny_llama, tmp_path):
    script, out = tmp_path / "train.py", tmp_path / "adapter"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script), str(tiny_llama), str(out),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert report["processes"] == 2
    assert report["losses"][-1] < report["losses"][0]
    assert report["apart"] == 0
    assert report["ignored"]  # A and B are not sent around

    checks = verify_adapter(out, Checkpoint.open(tiny_llama))
    assert len(checks) == 14
    assert {check.status for check in checks} == {"same"}
