"""Optimizers of a traced step: every name that transformers knows, and stand-ins beside the libraries' own where those are installed."""

import gc

import pytest
import torch
from torch import nn

from analyzers.memory import MemorySettings, estimate_memory
from analyzers.memory import low_rank_optimizers as low_rank
from analyzers.memory import other_optimizers as other
from analyzers.memory.allocator import replay
from analyzers.memory.optimizers import make_optimizer, parse_arguments
from analyzers.memory.recorder import Recorder
from analyzers.optimizers import NOT_ON_CUDA, OPTIM_NAMES, OPTIMIZERS
from loraxs_core.architecture import inventory_from_config
from loraxs_core.errors import SettingsError
from tests.analyzers.test_memory_estimate import LLAMA

FULL = {"method": "full", "batch": 1, "sequence": 16, "base_dtype": "bf16"}


def estimate(**settings):
    checkpoint = inventory_from_config(LLAMA, "a small model")
    return estimate_memory(checkpoint, MemorySettings(**{**FULL, **settings}), use_cache=False)


def test_every_name_of_training_arguments_is_known_or_refused_with_a_reason():
    from transformers.training_args import OptimizerNames

    for name in OptimizerNames:
        if name.value in NOT_ON_CUDA:
            with pytest.raises(SettingsError, match=f"^{name.value} .+; .*choose .+[^.]\\.$"):
                MemorySettings(optimizer=name.value)
        else:
            assert MemorySettings(optimizer=name.value).optimizer in OPTIMIZERS
    assert set(OPTIM_NAMES.values()) == set(OPTIMIZERS)


UNLIKE = ("adagrad", "galore-adamw-8bit", "adalomo")


@pytest.mark.parametrize(
    "name", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
def test_a_repeated_layer_is_the_whole_model_under_every_optimizer(name):
    few, whole = estimate(optimizer=name), estimate(optimizer=name, full_trace=True)
    assert few.how == "extrapolated"
    assert (few.peak_allocated, few.peak_reserved) == (whole.peak_allocated, whole.peak_reserved)


def test_gradients_do_not_wait_where_weights_are_updated_in_the_backward_pass():
    waits, updated = estimate(optimizer="galore-adamw"), estimate(optimizer="galore-adamw-layerwise")
    assert updated.breakdown["gradients"] == 0 < waits.breakdown["gradients"]
    assert estimate(optimizer="lomo").breakdown["optimizer"] == 0 < estimate(optimizer="adalomo").breakdown["optimizer"]


def test_galore_keeps_states_of_its_rank_for_what_it_projects():
    wide, narrow = (estimate(optimizer="galore-adamw", optim_args=f"rank={rank}").breakdown["optimizer"] for rank in (64, 16))
    assert narrow < wide
    few = estimate(optimizer="galore-adamw", optim_args="rank=16", optim_target_modules=["q_proj"])
    assert few.breakdown["optimizer"] > wide
    with pytest.raises(SettingsError, match="'no_such' name no linear layer"):
        estimate(optimizer="apollo-adamw", optim_target_modules="no_such")


def test_arguments_of_the_optimizer_are_read_as_transformers_reads_them():
    assert parse_arguments("rank=64, scale=0.1") == {"rank": "64", "scale": "0.1"}
    assert estimate(optimizer="sgd", optim_args="momentum=0.9").breakdown["optimizer"] > 0
    with pytest.raises(SettingsError, match="pairs such as 'rank=64, update_proj_gap=200', not 'rank'"):
        estimate(optim_args="rank")


@pytest.mark.parametrize(
    ("optimizer", "said", "why"),
    [
        ("sgd", "momentum=abc", "the momentum in optim args must be a number of at least 0, not 'abc'"),
        ("rmsprop", "momentum=inf", "the momentum"),
        (
            "adamw-torchao-8bit",
            "block_size=2.5",
            "the block size in optim args must be a whole number of at least 1, not '2.5'",
        ),
        ("adamw-torchao-4bit", "block_size=0", "the block size"),
    ],
)
def test_arguments_that_are_no_numbers_are_one_sentence(optimizer, said, why):
    with pytest.raises(SettingsError, match=why):
        MemorySettings(optimizer=optimizer, optim_args=said)


def test_embeddings_keep_wide_states_under_8_bit_optimizers_as_trainer_has_it():
    vocabulary = {**LLAMA, "vocab_size": 60_000}
    parameters = {weight.role: weight.parameters for weight in inventory_from_config(vocabulary, "wide").weights}
    found = estimate_memory(
        inventory_from_config(vocabulary, "wide"), MemorySettings(**FULL, optimizer="adamw_bnb_8bit"), use_cache=False
    )
    assert found.breakdown["optimizer"] > 8 * parameters["embedding"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": "galore_adamw_layerwise", "gradient_accumulation": 2}, "gradients cannot accumulate"),
        ({"optimizer": "apollo_adamw_layerwise", "gpus": 2}, "runs on one GPU only"),
        ({"optimizer": "galore_adamw", "gpus": 2, "sharding": "fsdp"}, "whole matrices, which fsdp spreads over GPUs"),
        ({"optimizer": "lomo", "offload_optimizer": True}, "leave offload optimizer out"),
        ({"optimizer": "muon"}, "Unknown optimizer 'muon'; there are adamw"),
    ],
)
def test_what_transformers_would_not_start_is_refused(settings, says):
    with pytest.raises(SettingsError, match=says):
        MemorySettings(**settings)


# Beside the libraries' own


def recorded(make, dtype, steps=2):
    """(most, held) bytes of steps of the optimizer that `make` makes of parameters."""
    shapes = [(64,), (96, 64), (64, 160), (64, 64)]
    parameters = [nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
    recorder = Recorder()
    optimizer = make(parameters)
    recorder.enter("optimizer")
    gc.disable()
    try:
        with recorder:
            for _ in range(steps):
                for parameter in parameters:
                    parameter.grad = parameter.detach().clone()
                optimizer.step()
                for parameter in parameters:
                    parameter.grad = None
            held = replay(recorder.trace.sizes, recorder.trace.events)
        return held.peak_allocated, held.allocated[-1]
    finally:
        gc.enable()


def groups(parameters):
    return low_rank.param_groups(parameters, {id(one) for one in parameters if one.dim() == 2}, 8)


def _galore(kind):
    package = pytest.importorskip("galore_torch")
    extra = {"scale_parameter": False, "relative_step": False} if kind == "GaLoreAdafactor" else {}

    def make(parameters):
        others, low = groups(parameters)
        own = {**low, "update_proj_gap": 1, "scale": 0.25, "proj_type": "std"}
        return getattr(package, kind)([others, own], lr=1e-3, **extra)

    return make, getattr(low_rank, kind)


def _apollo(monkeypatch):
    package = pytest.importorskip("apollo_torch")
    monkeypatch.setattr(
        package.random_projector,
        "stable_randn",
        lambda shape, seed, device, dtype: torch.empty(shape, device=device, dtype=dtype),
    )

    def make(parameters):
        others, low = groups(parameters)
        own = {"update_proj_gap": 1, "scale": 1.0, "proj_type": "std", "proj": "random", "scale_type": "channel"}
        return package.APOLLOAdamW([others, {**low, **own}])

    return make, low_rank.ApolloAdamW


def _schedule_free(kind):
    package = pytest.importorskip("schedulefree")

    def make(parameters):
        optimizer = getattr(package, kind)(parameters)
        optimizer.train()
        return optimizer

    return make, lambda parameters: other.ScheduleFree(parameters, adaptive="SGD" not in kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "kind",
    ["GaLoreAdamW", "GaLoreAdafactor", "APOLLO", "AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"],
)
def test_a_stand_in_holds_what_the_librarys_own_holds(kind, dtype, monkeypatch):
    if kind == "APOLLO":
        own, ours = _apollo(monkeypatch)
    elif kind.startswith("GaLore"):
        own, ours = _galore(kind)
    else:
        own, ours = _schedule_free(kind)
    in_groups = kind.startswith("GaLore") or kind == "APOLLO"
    # The first steps of RAdam are SGD's; from its second on APOLLO looks at numbers.
    steps = {"RAdamScheduleFree": 8, "APOLLO": 1}.get(kind, 2)
    most, held = recorded(own, dtype, steps)
    most_here, held_here = recorded(lambda parameters: ours(groups(parameters) if in_groups else parameters), dtype, steps)
    assert held_here == pytest.approx(held, abs=8 * 512)  # numbers of a few bytes, which take 512 each
    # What is not in the library's own code: cuSOLVER's copy of a matrix, and the limited gradient of APOLLO's second step.
    more = 64 * 160 * (4 if kind.startswith("GaLore") else dtype.itemsize if kind == "APOLLO" else 0)
    assert most - 8 * 512 <= most_here <= most + more + 8 * 512


@pytest.mark.parametrize("bits", [4, 8])
def test_torchaos_states_are_its_own(bits):
    package = pytest.importorskip("torchao.optim")
    parameters = [nn.Parameter(torch.empty(shape, dtype=torch.bfloat16)) for shape in [(64,), (96, 64), (63, 97)]]
    own = getattr(package, f"AdamW{bits}bit")(parameters, block_size=256)
    for parameter in parameters:
        buffer = own._new_buffer(parameter, True)
        parts = [getattr(buffer, name) for name in getattr(buffer, "tensor_attrs", [])] or [buffer]
        ours = other.TorchaoAdamW(parameters, bits=bits)._state("exp_avg", parameter).values()
        assert sum(one.nbytes for one in ours) == sum(one.nbytes for one in parts)


def test_lomo_updates_each_weight_when_the_next_gradient_arrives():
    """Never more than two gradients are there, whatever the number of weights."""
    weights = [nn.Parameter(torch.empty(64, 64, device="meta")) for _ in range(8)]
    optimizer = other.Lomo(weights, adaptive=False)
    recorder = Recorder()
    recorder.enter("backward")
    with recorder:
        x = torch.empty(1, 64, device="meta")
        for weight in weights:
            x = x @ weight
        x.sum().backward()
        optimizer.finish_backward()
    assert all(weight.grad is None for weight in weights)
    assert optimizer.state == {}
    assert replay(recorder.trace.sizes, recorder.trace.events).peak_allocated < (8 + 2) * 64 * 64 * 4  # the weights, and two


def test_a_step_of_each_kind_leaves_states_of_the_documented_size():
    for name, each in (
        ("schedule-free-sgd", 2),
        ("stable-adamw", 6),
        ("adamw-anyprecision", 8),
        ("rmsprop-8bit", 1.02),
        ("grokadamw", 0),
    ):
        parameter = nn.Parameter(torch.empty(512, 512, dtype=torch.bfloat16, device="meta"))
        parameter.grad = torch.empty_like(parameter)
        optimizer = make_optimizer(name, [parameter])
        optimizer.step()
        held = sum(value.nbytes for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor))
        assert held / parameter.numel() == pytest.approx(each, rel=0.02, abs=1e-3)
