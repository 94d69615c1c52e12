"""LoRA-XS inside what people wrap models in: one graph under torch.compile, and state dicts that go from any wrapper to any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from loraxs_core.tuner import LoraXSConfig
from tests.core.tuners import IDS, llama

CONFIG = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_weights": False, "task_type": "CAUSAL_LM"}


def graphs_of(model) -> tuple[list, int]:
    """The graphs that torch.compile makes of the first two training steps of `model`, and how often it broke one."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    for _ in range(2):
        compiled(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return graphs, sum(counters["graph_break"].values())


@pytest.fixture
def saved(tiny_llama, tmp_path):
    model = get_peft_model(llama(tiny_llama), LoraXSConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path / "xs")
    return tmp_path / "xs", model(IDS).logits.detach()


def fresh(folder, saved):
    return get_peft_model(llama(folder), LoraXSConfig(**CONFIG))


def loaded(folder, saved):
    return PeftModel.from_pretrained(llama(folder), saved, is_trainable=True)


def added(folder, saved):
    model = get_peft_model(llama(folder), LoraXSConfig(**CONFIG))
    model.load_adapter(saved, "second", is_trainable=True)
    model.set_adapter("second")
    return model


def native(folder, saved):
    model = llama(folder)
    model.load_adapter(saved, is_trainable=True)
    return model


@pytest.mark.parametrize("made", [fresh, loaded, added, native])
def test_a_training_step_is_one_graph_from_the_first_on(tiny_llama, saved, made):
    graphs, breaks = graphs_of(made(tiny_llama, saved[0]).train())
    assert (len(graphs), breaks) == (1, 0)


def test_an_adapted_model_can_be_exported(tiny_llama, saved):
    folder, wanted = saved
    model = PeftModel.from_pretrained(llama(tiny_llama), folder).eval()
    model.config.use_cache = False
    program = torch.export.export(model.base_model.model, (), {"input_ids": IDS}, strict=False)
    torch.testing.assert_close(program.module()(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-5)


def test_a_compiled_base_saves_what_a_plain_one_loads_and_the_other_way_round(tiny_llama, saved, tmp_path):
    folder, wanted = saved
    compiled = PeftModel.from_pretrained(torch.compile(llama(tiny_llama), backend="eager"), folder)
    torch.testing.assert_close(compiled(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-5)
    compiled.save_pretrained(tmp_path / "from_compiled")
    plain = PeftModel.from_pretrained(llama(tiny_llama), tmp_path / "from_compiled").eval()
    torch.testing.assert_close(plain(IDS).logits, wanted, atol=1e-5, rtol=1e-5)


WRAPPERS = """
import copy, os, sys, torch, torch.distributed as dist, warnings
warnings.simplefilter("ignore")
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import fsdp_auto_wrap_policy
from loraxs_core.tuner import LoraXSConfig

dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.head = nn.Linear(10, 20), nn.Linear(20, 2)
    def forward(self, x):
        return self.head(self.lin(x))

torch.manual_seed(0)
base = Net().state_dict()
def adapted(seed):
    net = Net()
    net.load_state_dict(base)
    torch.manual_seed(seed)
    model = get_peft_model(net, LoraXSConfig(r=4, target_modules=["lin"], modules_to_save=["head"], init_weights=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    return model

def fsdp1(model):
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    return get_peft_model_state_dict(wrapped)
def fsdp1_inside(model):
    model.base_model.model.lin = FullyShardedDataParallel(model.base_model.model.lin, use_orig_params=True, device_id=torch.device("cpu"))
    return get_peft_model_state_dict(FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu")))
def fsdp1_flat(model):
    policy = fsdp_auto_wrap_policy(model)
    return get_peft_model_state_dict(
        FullyShardedDataParallel(model, use_orig_params=False, auto_wrap_policy=policy, device_id=torch.device("cpu"))
    )
def fsdp2(model):
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
    return get_peft_model_state_dict(model)
def fsdp2_gathered(model):
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
    return get_peft_model_state_dict(model, state_dict=get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
def ddp(model):
    return get_peft_model_state_dict(nn.parallel.DistributedDataParallel(model).module)
def compiled(model):
    model.base_model.model.lin = torch.compile(model.base_model.model.lin, backend="eager")
    return get_peft_model_state_dict(model)
def plain(model):
    return get_peft_model_state_dict(model)

x = torch.randn(3, 10)
wanted = adapted(1)(x).detach()
for save in (plain, ddp, compiled, fsdp1, fsdp1_inside, fsdp1_flat, fsdp2, fsdp2_gathered):
    try:
        state = {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in save(adapted(1)).items()}
        model = adapted(2)
        set_peft_model_state_dict(model, state)
        torch.testing.assert_close(model(x), wanted)
        print(save.__name__, "ok")
    except Exception as error:
        print(save.__name__, type(error).__name__, str(error)[:300])

state = plain(adapted(1))
for flat in (True, False):
    model = adapted(2)
    policy = fsdp_auto_wrap_policy(model)
    wrapped = FullyShardedDataParallel(model, use_orig_params=not flat, auto_wrap_policy=policy, device_id=torch.device("cpu"))
    wrapped(x)
    set_peft_model_state_dict(wrapped, state)
    torch.testing.assert_close(wrapped(x), wanted)
    print("into", "flat" if flat else "original", "parameters")
dist.destroy_process_group()
"""


def test_state_dicts_go_from_every_wrapper_to_a_plain_model_and_from_that_into_fsdp(tmp_path):
    own = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WRAPPERS, tmp_path / "store"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        f"{name} ok" for name in ("plain", "ddp", "compiled", "fsdp1", "fsdp1_inside", "fsdp1_flat", "fsdp2", "fsdp2_gathered")
    ] + ["into flat parameters", "into original parameters"]


def test_a_plain_state_dict_loads_into_a_compiled_base(tiny_llama):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraXSConfig(**CONFIG)).eval()
    state, wanted = get_peft_model_state_dict(model), model(IDS).logits
    other = get_peft_model(torch.compile(llama(tiny_llama), backend="eager"), LoraXSConfig(**CONFIG)).eval()
    set_peft_model_state_dict(other, state)
    torch.testing.assert_close(other(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-5)
