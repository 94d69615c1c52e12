"""Makes the bitsandbytes checkpoints beside this file: small Llamas that transformers and bitsandbytes quantised and saved.

Run once where bitsandbytes is installed (0.50.2 made these, on a CPU): ``python -m tests.core.data.make_bitsandbytes``. Each
folder holds the checkpoint as `save_pretrained` wrote it and ``expected.safetensors``: bitsandbytes' own dequantisation of its
quantised matrices in float32 (gate and up, which are like down, left out to keep the files small).
"""

from __future__ import annotations

from pathlib import Path

import torch

HERE = Path(__file__).parent


def main() -> None:
    """Writes the folders."""
    import tempfile

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    settings = {
        "bnb_nf4_double": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "bnb_fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        "bnb_int8": BitsAndBytesConfig(load_in_8bit=True),
    }
    for name, quantization in settings.items():
        torch.manual_seed(0)
        # Rows that do not divide into blocks of 64, so that blocks run across rows; with double quantisation more than 256
        # blocks, so that there is more than one block of blocks.
        config = LlamaConfig(
            vocab_size=24, hidden_size=36, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            intermediate_size=463 if "double" in name else 33, max_position_embeddings=32,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as plain:
            LlamaForCausalLM(config).save_pretrained(plain)
            model = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=quantization, device_map="cpu", dtype=torch.float32
            )
            model.save_pretrained(HERE / name)
            _save_expected(model, HERE / name / "expected.safetensors")
            (HERE / name / "generation_config.json").unlink(missing_ok=True)


def _save_expected(model, path: Path) -> None:
    import bitsandbytes.functional as functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from safetensors.torch import save_file

    expected = {}
    for name, module in model.named_modules():
        if name.endswith(("gate_proj", "up_proj")):
            continue
        weight = getattr(module, "weight", None)
        if type(module).__name__ == "Linear4bit":
            state = weight.quant_state
            absmax = state.absmax
            if state.nested:
                absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
            # Its portable kernel: the vectorised CPU one of 0.50.2 takes the wrong scales where rows are 32 long.
            expected[name] = _dequantize_4bit_compute(
                weight.data.reshape(-1), absmax.float(), state.code, state.blocksize, state.shape, torch.float32
            )
        elif type(module).__name__ == "Linear8bitLt":
            expected[name] = functional.int8_vectorwise_dequant(weight.data, weight.SCB).float()
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, path)


if __name__ == "__main__":
    main()
