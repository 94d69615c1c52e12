"""What a module is for, read from its name.

A role is one of the strings in `ROLES`. It is decided by the last components of the module's path, which transformers keeps
stable within an architecture; a name that no rule knows gets the role ``other``, so that it is listed and never dropped.
"""

from __future__ import annotations

import re

ROLES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.qkv",
    "attention.output",
    "attention.position",
    "mlp.gate",
    "mlp.up",
    "mlp.gate_up",
    "mlp.down",
    "embedding",
    "head",
    "other",
)

LABELS = {
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "attention.qkv": "fused query-key-value",
    "attention.output": "attention output",
    "attention.position": "relative-position projection",
    "mlp.gate": "MLP gate",
    "mlp.up": "MLP up (intermediate)",
    "mlp.gate_up": "fused MLP gate-up",
    "mlp.down": "MLP down (output dense)",
    "embedding": "embedding",
    "head": "head",
    "other": "other",
}

# First match wins. `.` in a rule stands for a dot or the start of the name; rules match up to the end of the module path.
_RULES: tuple[tuple[str, str], ...] = tuple(
    (rf"(?:^|\.)(?:{pattern})$", role)
    for pattern, role in (
        # Embedding tables. transformers names them by what they embed.
        (r"(?:word|position|token_type|tok|pos|rel|segment)_embeddings?(?:\.weight)?", "embedding"),
        (r"embed_(?:tokens|positions|in)(?:_per_layer)?|wte|wpe|shared|relative_attention_bias", "embedding"),
        (r"embeddings\.(?:LayerNorm|projection)|embeddings_project(?:ion)?", "other"),
        # Heads: everything that maps to a vocabulary or to labels.
        (r"lm_head(?:\.\w+)*|embed_out|score|qa_outputs|classifier(?:\.\w+)*|cls(?:\.\w+)+|pre_classifier", "head"),
        (r"vocab_(?:projector|transform)|(?:generator|discriminator)_(?:predictions|lm_head)(?:\.\w+)*", "head"),
        (
            r"(?:lm_)?predictions(?:\.\w+)*|mask_predictions(?:\.\w+)*|classification_head(?:\.\w+)*|pooler(?:\.dense)?|proj_out|head\.dense",
            "head",
        ),
        # Attention, fused first.
        (r"c_attn|qkv_proj|query_key_value|qkv|Wqkv|kv_a_proj_with_mqa|kv_b_proj", "attention.qkv"),
        (r"(?:attn|attention|self|self_attn)\.in_proj(?:_weight)?", "attention.qkv"),
        (r"pos_proj|pos_q_proj|pos_key_proj|pos_query_proj", "attention.position"),  # DeBERTa
        (
            r"query|query_proj|q_proj|q_lin|q_[ab]_proj|(?:attn|attention|self_attn|SelfAttention|EncDecAttention)\.(?:q|wq)",
            "attention.query",
        ),
        (r"key|key_proj|k_proj|k_lin|(?:attn|attention|self_attn|SelfAttention|EncDecAttention)\.(?:k|wk)", "attention.key"),
        (
            r"value|value_proj|v_proj|v_lin|(?:attn|attention|self_attn|SelfAttention|EncDecAttention)\.(?:v|wv)",
            "attention.value",
        ),
        (r"attention\.output\.dense|attention\.out|o_proj|out_lin", "attention.output"),
        (r"(?:attn|attention|self_attn|SelfAttention|EncDecAttention)\.(?:o|wo|Wo|c_proj|proj|dense)", "attention.output"),
        (
            r"(?:attn|attention|self_attn|encoder_attn|cross_attn)\.out_proj|self_attention\.dense|self_attn\.dense",
            "attention.output",
        ),
        # MLP.
        (r"gate_up_proj|mlp\.Wi", "mlp.gate_up"),
        (r"gate_proj|DenseReluDense\.wi_0|w1", "mlp.gate"),
        (
            r"up_proj|intermediate\.dense|c_fc|dense_h_to_4h|lin1|fc1|fc_in|DenseReluDense\.wi(?:_1)?|w3|albert_layers\.\d+\.ffn",
            "mlp.up",
        ),
        (
            r"down_proj|output\.dense|mlp\.c_proj|dense_4h_to_h|lin2|fc2|fc_out|DenseReluDense\.wo|mlp\.Wo|w2|ffn_output",
            "mlp.down",
        ),
    )
)
_COMPILED = tuple((re.compile(pattern), role) for pattern, role in _RULES)
_EXPERT_INDEX = re.compile(r"\[\d+\]$")
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def role_of(name: str) -> str:
    """The role of a module path such as ``encoder.layer.3.output.dense`` -> ``mlp.down``.

    >>> role_of("model.layers.0.self_attn.q_proj")
    'attention.query'
    >>> role_of("h.11.mlp.c_proj")
    'mlp.down'
    >>> role_of("something.nobody.knows")
    'other'
    """
    bare = _EXPERT_INDEX.sub("", name)
    for pattern, role in _COMPILED:
        if pattern.search(bare):
            return role
    return "other"


def layer_of(name: str) -> int | None:
    """The depth of a module in its stack: the first whole-number component of its path, or None.

    >>> layer_of("decoder.block.7.layer.1.EncDecAttention.q")
    7
    """
    match = _NUMBER.search(name)
    return int(match.group(1)) if match else None


def short_name(name: str) -> str:
    """The module's path inside its layer, for the columns of a layer x module map.

    >>> short_name("encoder.layer.3.attention.self.query")
    'attention.self.query'
    """
    match = _NUMBER.search(name)
    return name[match.end() + 1 :] if match and match.end() < len(name) else name


def stack_of(name: str) -> str:
    """The module's path up to its layer, which tells an encoder's layer 3 from its decoder's.

    >>> stack_of("decoder.block.3.layer.1.EncDecAttention.q")
    'decoder.block.3'
    """
    match = _NUMBER.search(name)
    return name[: match.end()] if match else ""


def is_adaptable(role: str) -> bool:
    """Whether an adapter is usually put on modules of this role: attention and MLP, not embeddings, heads or the unknown."""
    return role.startswith(("attention.", "mlp."))
