"""A few kinds of architecture the whole way from file to merged model; `benchmarks.architectures` walks all of them."""

from __future__ import annotations

import pytest

from benchmarks.architectures import STEPS, outcome

# Plain, renamed, split on load, experts, other experts, Conv1D, encoder and decoder, state space beside attention, delta net.
KINDS = ("llama", "vit", "nomic_bert", "deepseek_v2", "mixtral", "gpt2", "t5", "qwen3_next", "mamba", "gemma3")


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_passes(kind):
    row = outcome(kind)
    assert [step for step in STEPS if not row[step]] == [], row["remark"]


def test_a_failing_step_is_named_with_its_reason():
    row = outcome("bit")
    assert (row["inspect"], row["remark"].partition(":")[0]) == ("", "inspect")
