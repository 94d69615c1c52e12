"""What a module is for, read from its name.

A role is one of the strings in `ROLES`. It is decided by the last components of the module's path, which transformers keeps
stable within an architecture; a name that no rule knows gets the role ``other``, so that it is listed and never dropped.
"""

from __future__ import annotations

import re
from functools import lru_cache

ROLES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.qkv",
    "attention.output",
    "attention.position",
    "mixer.input",
    "mixer.output",
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
    "mixer.input": "token mixer input",
    "mixer.output": "token mixer output",
    "mlp.gate": "MLP gate",
    "mlp.up": "MLP up (intermediate)",
    "mlp.gate_up": "fused MLP gate-up",
    "mlp.down": "MLP down (output dense)",
    "embedding": "embedding",
    "head": "head",
    "other": "other",
}

_ATTENTION = r"(?:attn|attention|self_attn|multi_head_attention|mlstm_layer|SelfAttention|EncDecAttention|LocalSelfAttention|TransientGlobalSelfAttention)"

# First match wins. `.` in a rule stands for a dot or the start of the name; rules match up to the end of the module path.
_RULES: tuple[tuple[str, str], ...] = tuple(
    (rf"(?:^|\.)(?:{pattern})(?:\.linear)?$", role)
    for pattern, role in (
        (r"router(?:\.\w+)*", "other"),
        (r"mlp\.proj_in", "mlp.up"),  # SAM 2 and its kin, whose proj_out is no head
        (r"mlp\.proj_out", "mlp.down"),
        # Embedding tables. transformers names them by what they embed.
        (
            r"(?:\w+_)?position_embeddings?|(?:word|token_type|token|tok|pos|rel|segment|entity)_embeddings?(?:\.weight)?",
            "embedding",
        ),
        (r"embed_(?:tokens|positions|in)(?:_per_layer)?|wte|wpe|shared|relative_attention_bias", "embedding"),
        (r"token_type_embeddings_\d+|(?:tokens|positions)_embed|pos_embed|embed|embeddings?", "embedding"),
        (r"embeddings\.(?:LayerNorm|projection)|embeddings_project(?:ion)?", "other"),
        # Heads: everything that maps to a vocabulary or to labels. Some are called what other things inside a layer are too.
        (r"lm_head(?:\.\w+)*|embed_out|score|qa_outputs|classifier(?:\.\w+)*|cls(?:\.\w+)+|pre_classifier", "head"),
        (r"vocab_(?:projector|transform)|(?:generator|discriminator)_(?:predictions|lm_head)(?:\.\w+)*", "head"),
        (
            r"(?:lm_)?predictions(?:\.\w+)*|mask_predictions(?:\.\w+)*|classification_head(?:\.\w+)*|pooler(?:\.dense)?|head\.dense",
            "head",
        ),
        (r"(?<!\d\.)proj_out|transformer\.output_layer|(?<!\.)(?:output|head(?:\.fc)?|unembed)", "head"),
        # Attention, fused first. A mixture of attention heads (JetMoE) has its experts in it.
        (
            r"c_attn|qkv_proj|query_key_value|qkv|[wW]qkv|w_qkv|W_pack|att_proj|kv_proj|kv_a_proj_with_mqa|kv_b_proj",
            "attention.qkv",
        ),
        (r"(?:\w*attn|attention|self)\.in_proj(?:_weight)?|linear_attn\.in_proj_qkvz?|attn\.wkv(?:_[ab])?", "attention.qkv"),
        (r"to_qkv|to_kv|(?:queries_)?keys_values", "attention.qkv"),
        # Token mixers that are no attention. Mamba's out_proj and dt_proj stay other: its fused kernels take their weights and pass an
        # adapter by (PEFT refuses them).
        (r"(?:mixer|mamba)\.(?:in_proj|x_proj)|linear_attn\.(?:in_proj_z|g_proj)|mlstm_layer\.ogate_preact", "mixer.input"),
        (r"conv\.in_proj|temporal_block\.linear_[xy]", "mixer.input"),
        (r"conv\.out_proj|temporal_block\.linear_out", "mixer.output"),
        (r"pos_proj|pos_q_proj|pos_key_proj|pos_query_proj|self_attn\.linear_pos|relative_k_proj", "attention.position"),
        (r"self_attention\.experts\.input_linear", "attention.query"),
        (r"self_attention\.experts\.output_linear", "attention.output"),
        # RWKV's feed-forward calls its layers key, value and receptance, Qwen's first one its up and gate w1 and w2.
        (r"feed_forward\.key|h\.\d+\.mlp\.w1", "mlp.up"),
        (r"feed_forward\.value", "mlp.down"),
        (r"feed_forward\.receptance", "mlp.gate"),
        (r"h\.\d+\.mlp\.w2", "mlp.gate"),
        (
            r"(?:\w2\w_)?query(?:_global)?|query_proj|q_proj|q_lin|q_[ab]_proj|self_attn\.linear_q|to_q(?:uery)?",
            "attention.query",
        ),
        (
            r"(?:add_q|layout_query|project_q|projection_query|q_head|queries|attention\.receptance)(?:_proj)?",
            "attention.query",
        ),
        (r"key(?:_global)?|key_proj|k_proj|k_lin|self_attn\.linear_k|to_k(?:ey)?", "attention.key"),
        (r"(?:add_k|layout_key|project_k|projection_key|k_head)(?:_proj)?", "attention.key"),
        (r"value(?:_global)?|value_proj|v_proj|v_lin|self_attn\.linear_v|to_v(?:alue)?", "attention.value"),
        (r"(?:add_v|layout_value|project_v|projection_value|v_head)(?:_proj)?", "attention.value"),
        (rf"{_ATTENTION}\.(?:q|wq|wq_[ab]|Wq)", "attention.query"),
        (rf"{_ATTENTION}\.(?:k|wk|Wk)", "attention.key"),
        (rf"{_ATTENTION}\.(?:v|wv|Wv)", "attention.value"),
        (
            r"attention\.output\.dense|attention\.(?:out|output)|self_attn\.output|o_proj|out_lin|self_attn\.linear_out|to_out(?:\.0)?|attn_out",
            "attention.output",
        ),
        (
            r"attention\.layout_output\.dense|attention_out|post_proj|(?:attention|self_attn)\.post|to_add_out",
            "attention.output",
        ),
        (rf"{_ATTENTION}\.(?:out_proj|o|wo|Wo|wo_[ab]|c_proj|proj|dense|projection|projection_layer)", "attention.output"),
        (r"(?:\w*attn|attention|cross_attention)\.(?:out_proj|output_proj)|self_attention\.dense", "attention.output"),
        # MLP.
        (
            r"(?:feed_forward\d?|ffn|mlp|\d+)\.linear_?1|ffw_layer_1|ff(?:_context)?\.(?:net\.0\.proj|linear_in)|proj_mlp",
            "mlp.up",
        ),
        (r"(?:feed_forward\d?|ffn|mlp|\d+)\.linear_?2|ffw_layer_2|ff(?:_context)?\.(?:net\.2|linear_out)", "mlp.down"),
        (r"(?:lang_inter|visn_inter|layout_intermediate)\.dense|feed_forward\.intermediate|w_in\.w_1|ffn\.proj_up", "mlp.up"),
        (r"(?:lang_output|visn_output|layout_output)\.dense|feed_forward\.output|ffn\.(?:w_out|proj_down)", "mlp.down"),
        (r"w_in\.w_0|ffn\.proj_up_gate", "mlp.gate"),
        (r"pwconv1|pointwise_conv1", "mlp.up"),
        (r"pwconv2|pointwise_conv2", "mlp.down"),
        (r"gate_up_proj|up_gate_proj|mlp\.Wi|ff_proj|\w*(?:moe|mlp)\.input_linear", "mlp.gate_up"),
        (r"gate_proj|(?:DenseReluDense|mlp)\.wi_0|w1|fc12", "mlp.gate"),
        (r"up_proj|intermediate(?:_query)?\.dense|intermediate_dense|c_fc|dense_h_to_4h|lin1|fc1|fc11|fc_in|w3|v1", "mlp.up"),
        (r"(?:DenseReluDense|mlp)\.wi(?:_1)?|expert_\d+\.wi|mlp\.(?:linear_fc1|dense1|in_proj)|ff\.layer_1", "mlp.up"),
        (r"albert_layers\.\d+\.ffn", "mlp.up"),
        (
            r"down_proj|output(?:_query)?\.dense|output_dense|dense_4h_to_h|lin2|fc2|fc_out|w2|ffn_output|\d+\.ff_out",
            "mlp.down",
        ),
        (r"(?:DenseReluDense|mlp|expert_\d+)\.wo|mlp\.(?:c_proj|Wo|linear_fc2|dense2|out_proj)|ff\.layer_2", "mlp.down"),
        (r"\w*(?:moe|mlp)\.output_linear", "mlp.down"),
    )
)
_COMPILED = tuple((re.compile(pattern), role) for pattern, role in _RULES)
_EXPERT_INDEX = re.compile(r"\[\d+\]$")
_INNER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
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
    return _role_of(_INNER_NUMBER.sub("0", _EXPERT_INDEX.sub("", name)))


@lru_cache(maxsize=4096)
def _role_of(name: str) -> str:
    """The role of a name whose layers and experts all have the number 0: a mixture of experts has tens of thousands of others."""
    return next((role for pattern, role in _COMPILED if pattern.search(name)), "other")


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
    """Whether an adapter is usually put on modules of this role: attention, other token mixers and MLP, not embeddings, heads or the
    unknown."""
    return role.startswith(("attention.", "mixer.", "mlp."))
