"""``flash_attention_2`` on the meta device, under a name of its own: transformers asks for the package, which needs a GPU.

Without padding nothing is added to the kernel: no mask is built, grouped heads are not repeated. With padding transformers copies
out the tokens that are none (`_upad_input`), all of them here, and puts the result back.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface

aten = torch.ops.aten

FLASH = "kernels_on_meta"  # no name with "flash" in it: transformers would ask for the package


def _attention(module, query, key, value, attention_mask=None, dropout=0.0, scaling=None, is_causal=None, **_kwargs):
    """As ``flash_attention_forward`` of transformers; query, key, value: (batch, heads, tokens, head)."""
    if query.dtype == torch.float32:  # transformers casts what norms left in fp32
        query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    if attention_mask is not None:
        query, key, value = (tensor.transpose(1, 2).clone().transpose(1, 2) for tensor in (query, key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
    out = out.transpose(1, 2)
    return (out.clone() if attention_mask is not None else out), None


def _mask(*_args, attention_mask=None, **_kwargs):
    return attention_mask


AttentionInterface.register(FLASH, _attention)
AttentionMaskInterface.register(FLASH, _mask)
