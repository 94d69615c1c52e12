"""Which weights transformers keeps in float32 although a model is loaded in 16 bit: T5's ``wo``, the routers of some experts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def kept_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether the weight or the module of that path stays in float32 when `model` is loaded in `dtype`.

    As from_pretrained decides it (`core_model_loading.py`): some classes name such modules for float16, some for bfloat16 too.
    """
    names = model._get_dtype_plan(dtype)
    if not names:
        return lambda path: False
    pattern = re.compile("|".join(name.replace("*", ".*") for name in names))
    return lambda path: pattern.search(path) is not None
