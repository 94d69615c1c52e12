"""Quantised checkpoints that nobody here decodes, known by the names of their tensors or by what their config calls them."""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_core.errors import CheckpointError
from loraxs_core.safetensors_file import SafetensorsFile

# Ending of a tensor's name -> the format that it shows.
_TENSORS = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "NVFP4",
    ".W_q": "HQQ",
    ".weight._data": "Quanto",
    ".codes": "AQLM",
    ".q_weight": "EXL2",
    ".trellis": "EXL3",
    ".centroids.weight": "VPTQ",
    "weight_qdata": "torchao",
}
# What a config may call a quantisation that `loraxs_core.quantized` decodes. Whole numbers under another name mean something else.
_METHODS = {"bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "modelopt", "mxfp4"}
_CODES = ("I8", "U8", "I16", "U16", "I32", "U32")


def refuse_foreign(files: Mapping[str, SafetensorsFile], config: Mapping) -> None:
    """Raises CheckpointError in one sentence when `files` (tensor name -> file) hold a quantisation that is not decoded.

    A config that claims one is believed only where there are whole numbers too: models trained to be quantised later claim it
    of plain ones (BitNet's bfloat16 checkpoints).
    """
    settings = config.get("quantization_config")
    method = str(settings.get("quant_method") or "") if isinstance(settings, Mapping) else ""
    claimed = method and method not in _METHODS
    for name, file in files.items():
        entry = file.entries[name]
        what = next((what for ending, what in _TENSORS.items() if name.endswith(ending)), None)
        if what is None and claimed and entry.dtype in _CODES and len(entry.shape) > 1:
            what = method
        if what:
            raise CheckpointError(
                f"{file.path} is quantised ({what}: {name}), which is not decoded; give the checkpoint it was made from."
            )
