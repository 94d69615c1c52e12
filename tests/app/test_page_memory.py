"""Cost, GPU memory: figures, settings, what decides, what fits, and the command that gives the same."""

from __future__ import annotations

import pytest

from loraxs_core.checkpoint import Checkpoint
from tests.app.pages import healthy, page, texts

pytestmark = pytest.mark.usefixtures("fresh_page")


def test_memory_is_broken_down_for_every_method(tiny_bert):
    test = healthy(page(tiny_bert, "cost"))
    peaks = [metric for metric in test.metric if "peak reserved" in metric.label]
    assert len(peaks) == 3
    assert all("GiB" in metric.value for metric in peaks)


def test_what_decides_about_memory_is_said_in_the_analyzer_s_words(tiny_bert):
    from analyzers.memory import MemorySettings, what_decides

    said = texts(healthy(page(tiny_bert, "cost", **{"rank-lora-xs": 4})))
    settings = MemorySettings(method="lora-xs", rank=4, batch=8, sequence=40)
    for sentence in what_decides(Checkpoint.open(tiny_bert), settings):
        assert sentence in said


def test_what_fits_a_gpu_is_searched_when_asked(tiny_llama):
    from analyzers.memory import MemorySettings, find_gpu, fit

    test = healthy(page(tiny_llama, "cost", **{"rank-lora-xs": 4, "fit-gpu": "T4 16 GB"}))
    assert not [table for table in test.dataframe if "length limited by" in table.value]
    test.button(key="fit").click().run()
    table = healthy(test).dataframe[-1].value.set_index("method")
    assert set(table.index) == {"LoRA", "VeRA", "LoRA-XS", "Full fine-tune"}
    settings = MemorySettings(method="lora-xs", rank=4, batch=8, sequence=64)
    exact = fit(Checkpoint.open(tiny_llama), settings, find_gpu("T4 16 GB"))
    assert table.loc["LoRA-XS", "largest batch of 64 tokens"] == exact.batch > 0
    assert table.loc["LoRA-XS", "longest sequence at batch 8 (tokens)"] == exact.sequence == 64
    assert table.loc["LoRA-XS", "length limited by"] == "the model's positions"
    command = next(code.value for code in test.code if code.value.startswith("loraxs fit"))
    assert f"loraxs fit {tiny_llama} --gpu 'T4 16 GB' --methods lora-xs --rank 4 --batch 8 --sequence 64" in command


def test_an_unknown_gpu_is_one_sentence(tiny_bert):
    test = page(tiny_bert, "cost", **{"fit-gpu": "abacus"})
    assert not test.exception
    assert "No GPU is called 'abacus'" in test.error[0].value
