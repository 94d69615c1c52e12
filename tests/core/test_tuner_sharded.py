"""LoRA-XS trained by two processes that share the model, in every way that PyTorch has, against one process that has it alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WAYS = ("ddp", "auto_wrapped_flat", "auto_wrapped", "whole", "fsdp2", "fsdp2_of_cores")

PROCESS = """
import sys, torch, torch.distributed as dist, warnings
warnings.simplefilter("ignore")
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import fsdp_auto_wrap_policy
from transformers import LlamaConfig, LlamaForCausalLM
from loraxs_core.tuner import LoraXSConfig, LoraXSLayer

rank, world = int(sys.argv[2]), 2
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], world), rank=rank, world_size=world)
mesh = dist.init_device_mesh("cpu", (world,))
ids = torch.arange(32).view(4, 8) % 48
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=64, vocab_size=48)
SETTINGS = dict(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], init_weights=False, task_type="CAUSAL_LM")

def adapted(seed, dtype=torch.float32):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).to(dtype)
    torch.manual_seed(seed)
    settings = SETTINGS if dtype == torch.float32 else SETTINGS | {"modules_to_save": None}
    return get_peft_model(base, LoraXSConfig(**settings))

def ddp(model):
    return nn.parallel.DistributedDataParallel(model)
def auto_wrapped_flat(model, flat=True):
    policy = fsdp_auto_wrap_policy(model)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=not flat, device_id=torch.device("cpu"))
def auto_wrapped(model):
    return auto_wrapped_flat(model, flat=False)
def whole(model):
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
def fsdp2(model):
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)
def fsdp2_of_cores(model):
    for layer in model.modules():
        if isinstance(layer, LoraXSLayer):
            fully_shard(layer.loraxs_R, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def trained(model, batch):
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model

def state_of(wrapped):
    model = wrapped.module if isinstance(wrapped, nn.parallel.DistributedDataParallel) else wrapped
    found = get_peft_model_state_dict(model)
    return {key: one.full_tensor() if hasattr(one, "full_tensor") else one.clone() for key, one in found.items()}

alone = adapted(1)
start = state_of(alone)
wanted = state_of(trained(alone, ids))
logits = alone.eval()(input_ids=ids).logits.detach()
moved = max(float((wanted[key] - start[key]).abs().max()) for key in wanted if "loraxs_R" in key)
assert moved > 1e-3, moved

def check(way):
    wrapped = trained(way(adapted(1)), ids.chunk(world)[rank])
    found = state_of(wrapped)
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for key, one in wanted.items():
        if "proof" not in key:
            torch.testing.assert_close(found[key], one, atol=2e-5, rtol=1e-4, msg=lambda said: f"{key}: {said}")
    plain = adapted(2).eval()
    set_peft_model_state_dict(plain, found)
    torch.testing.assert_close(plain(input_ids=ids).logits, logits, atol=1e-3, rtol=1e-3)
    if way in (ddp, auto_wrapped_flat, auto_wrapped, whole):
        other = way(adapted(3))
        other(input_ids=ids)  # before which PyTorch does not know yet which unit is the root, and PEFT asks the head
        set_peft_model_state_dict(other.module if way is ddp else other, wanted)
    else:
        model = adapted(3)
        set_peft_model_state_dict(model, wanted)
        other = way(model)
    torch.testing.assert_close(other.eval()(input_ids=ids).logits, logits)
    if way is not whole:  # in which PyTorch wants one precision for all
        trained(way(adapted(1, torch.bfloat16)), ids.chunk(world)[rank])

for way in (WAYS):
    try:
        check(way)
        print(way.__name__, "ok", flush=True)
    except Exception as error:
        print(way.__name__, type(error).__name__, str(error)[:1000], flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_save_and_load_as_one_does(tmp_path):
    """Also with PEFT's auto-wrap policy and flat parameters, which want all of a unit to be trained or all of it frozen; and, as far as
    a step, on a bfloat16 base beside R in float32."""
    script = PROCESS.replace("(WAYS)", f"({', '.join(WAYS)})")
    own = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    both = [subprocess.Popen([*command, str(rank)], stdout=-1, stderr=-1, text=True, env=own) for rank in range(2)]
    for process in both:
        printed, errors = process.communicate(timeout=600)
        assert printed.splitlines() == [f"{way} ok" for way in WAYS], printed + errors[-2000:]
        assert process.returncode == 0, errors[-2000:]
