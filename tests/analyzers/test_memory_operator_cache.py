"""Results on the meta device from memory: the same tensors as from PyTorch, and nothing that writes or shares."""

import pytest
import torch

from analyzers.memory import MemorySettings, estimate_memory, operator_cache
from loraxs_core.architecture import inventory_from_config

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def _empty():
    operator_cache._results.clear()


CALLS = [
    (aten.add.Tensor, lambda: (meta(3, 1, 5), meta(4, 5)), {}),
    (aten.mul.Tensor, lambda: (meta(4, dtype=torch.int64), 2), {}),
    (aten.mul.Tensor, lambda: (meta(4, dtype=torch.int64), 2.0), {}),
    (aten.mul.Tensor, lambda: (meta(4, dtype=torch.bfloat16), meta(4)), {}),
    (aten.neg.default, lambda: (meta(6, 4).t(),), {}),
    (aten.mm.default, lambda: (meta(3, 4), meta(5, 4).t()), {}),
    (aten.sum.dim_IntList, lambda: (meta(3, 4), [-1], True), {}),
    (aten._to_copy.default, lambda: (meta(3, 4),), {"dtype": torch.float16}),
    (aten.native_layer_norm.default, lambda: (meta(2, 8), [8], meta(8), meta(8), 1e-5), {}),
    (aten._foreach_mul.Scalar, lambda: ([meta(3), meta(5)], 2.0), {}),
]


def looks(result):
    if isinstance(result, torch.Tensor):
        return result.shape, result.stride(), result.dtype, result.device, result.untyped_storage().nbytes()
    return [looks(one) for one in result]


@pytest.mark.parametrize(("func", "arguments", "options"), CALLS)
def test_the_second_answer_is_like_the_first(func, arguments, options):
    expected = looks(func(*arguments(), **options))
    first, second = (operator_cache.run(func, arguments(), options) for _ in range(2))
    assert looks(first) == looks(second) == expected
    assert [one for one in operator_cache._results.values() if one is not None]  # the second came from memory
    assert type(first) is type(second)


def test_one_is_not_one_point_nought():
    whole = meta(4, dtype=torch.int64)
    assert operator_cache.run(aten.mul.Tensor, (whole, 1), {}).dtype == torch.int64
    assert operator_cache.run(aten.mul.Tensor, (whole, 1.0), {}).dtype == torch.float32
    assert operator_cache.run(aten.add.Tensor, (whole, True), {}).dtype == torch.int64


@pytest.mark.parametrize(
    "func",
    [
        lambda x: (aten.view.default, (x, [12])),
        lambda x: (aten._unsafe_view.default, (x, [12])),
        lambda x: (aten.t.default, (x,)),
    ],
)
def test_what_shares_memory_is_run_each_time(func):
    for _ in range(2):
        x = meta(3, 4)
        call, arguments = func(x)
        assert operator_cache.run(call, arguments, {}).untyped_storage()._cdata == x.untyped_storage()._cdata


def test_what_writes_in_place_is_run_each_time():
    for _ in range(2):
        x = meta(3, 4)
        assert operator_cache.run(aten.add_.Tensor, (x, 1.0), {}) is x
    assert not operator_cache._results


def test_what_an_optimizer_writes_into_many_tensors_is_run_once_for_the_same_shapes():
    """On meta there is nothing to write; finding that out, tensor by tensor, took a seventh of an estimate."""
    for _ in range(2):
        values, others = [meta(3, 4), meta(5)], [meta(3, 4), meta(5)]
        storages = [one.untyped_storage()._cdata for one in values]
        assert operator_cache.run(aten._foreach_addcdiv_.Scalar, (values, others, others, 0.5), {}) is None
        assert [one.untyped_storage()._cdata for one in values] == storages
    assert list(operator_cache._results.values()) == [operator_cache._WRITTEN]


def test_shapes_that_do_not_go_together_are_refused_each_time():
    for _ in range(2):
        with pytest.raises(RuntimeError):
            operator_cache.run(aten._foreach_add_.List, ([meta(3, 4)], [meta(5)]), {})


def test_numbers_on_the_cpu_are_computed():
    x = torch.ones(2)
    assert [operator_cache.run(aten.add.Tensor, (x, one), {}).tolist() for one in (1.0, 2.0)] == [[2.0, 2.0], [3.0, 3.0]]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "optimizer": "adafactor", "dropout": 0.1},
        {"method": "lora-xs", "quantize": "4bit", "gradient_checkpointing": True},
        {"method": "full", "mixed_precision": True, "base_dtype": "fp32", "attention": "eager"},
    ],
)
def test_an_estimate_is_the_same_without_it(settings, monkeypatch):
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
    }  # fmt: skip
    model = inventory_from_config(config, "six layers")
    asked = MemorySettings(**({"rank": 4} if settings["method"] != "full" else {}), batch=2, sequence=48, **settings)
    from_memory = [estimate_memory(model, asked, use_cache=False) for _ in range(2)]
    monkeypatch.setattr(operator_cache, "run", lambda func, args, kwargs: func(*args, **kwargs))
    assert from_memory == [estimate_memory(model, asked, use_cache=False)] * 2
