"""From tensor names and shapes to weight matrices: what each is for, which way it is stored, what it is tied to.

The same function serves safetensors headers and a model built on the meta device, so both give the same inventory. Knows names
and shapes only; reads nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_core.roles import ROLES, is_adaptable, layer_of, role_of

# Architectures whose c_attn, c_proj, c_fc and q_attn are transformers' Conv1D, stored (in x out).
CONV1D_MODELS = {"clvp", "clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
CONV1D_LEAVES = {"c_attn", "c_proj", "c_fc", "q_attn"}

# Architectures whose 3-D expert stacks are (experts, in, out); elsewhere they are (experts, out, in). Asked only where the
# model's width does not tell, as in a square matrix.
TRANSPOSED_EXPERTS = {"aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "openai_privacy_filter"}

# The attribute under which a transformers head model keeps its base model: the first component that names differ by.
BASE_PREFIXES = {
    "albert", "bert", "bloom", "deberta", "distilbert", "electra", "gpt_neox", "model", "mpnet", "roberta", "transformer", "vit",
}  # fmt: skip

# Where the output matrix is called something other than `lm_head` in the checkpoint.
_HEADS = {
    "albert": "predictions.decoder",
    "bert": "cls.predictions.decoder",
    "camembert": "lm_head.decoder",
    "deberta": "cls.predictions.decoder",
    "deberta-v2": "cls.predictions.decoder",
    "distilbert": "vocab_projector",
    "electra": "generator_lm_head",
    "gpt_neox": "embed_out",
    "modernbert": "decoder",
    "mpnet": "lm_head.decoder",
    "roberta": "lm_head.decoder",
    "xlm-roberta": "lm_head.decoder",
}
_WITH_VOCABULARY_HEAD = re.compile(r"(?:LMHeadModel|ForCausalLM|ForMaskedLM|ForConditionalGeneration|ForPreTraining)$")
_TOKEN_TABLE = re.compile(r"(?:^|\.)(?:embed_tokens|wte|shared|word_embeddings|embed_in|tok_embeddings)$")
# An expert that is a module of its own: `block_sparse_moe.experts.3.w1`, `mlp.experts.expert_3.wi`.
_EXPERT_MODULE = re.compile(r"\.experts\.(?:expert_)?\d+\.")
# A 3-D stack of experts: `mlp.experts.down_proj`, Granite's `block_sparse_moe.input_linear.weight`, Step's `moe.up_proj.weight`.
_EXPERT_STACK = re.compile(r"expert|(?:moe|mlp)\.(?:input_linear|output_linear|(?:gate|up|down)_proj)(?:\.weight)?$")
# DBRX writes its experts one below another into one matrix.
_DBRX_STACK = re.compile(r"\.ffn\.experts\.mlp\.(?:w1|v1|w2)$")


@dataclass(frozen=True)
class Weight:
    """One weight matrix of a model, W0 (out x in).

    name: module path, such as ``encoder.layer.0.attention.self.query``; an expert of a 3-D stack ends in ``[i]``.
    role: one of `loraxs_core.roles.ROLES`.
    shape: (out, in), whichever way it is stored.
    dtype: as PyTorch spells it, ``bfloat16``.
    kind: ``linear``, ``conv1d`` (stored transposed), ``embedding``, ``expert`` (one of a mixture's, a module of its own or a
    slice of a 3-D stack), ``parameter`` (a matrix that is no module's ``weight``, such as ``in_proj_weight``) or ``part`` (some
    rows of a fused projection).
    layer: depth in the stack, None outside it.
    bias: whether the module has a bias vector.
    tensor: its key in the checkpoint; empty where the weight is tied to another.
    expert: index along the first axis of a 3-D stack.
    tied_to: the name of the weight this one shares its numbers with.
    transposed: whether the tensor holds (in x out).
    part: which part of a fused projection it is, such as ``query``; empty for the whole.
    """

    name: str
    role: str
    shape: tuple[int, int]
    dtype: str
    kind: str = "linear"
    layer: int | None = None
    bias: bool = False
    tensor: str = ""
    expert: int | None = None
    tied_to: str | None = None
    transposed: bool = False
    part: str = ""

    @property
    def parameters(self) -> int:
        """Numbers held by this matrix: out x in (0 when it is tied to another, which holds them)."""
        return 0 if self.tied_to else self.shape[0] * self.shape[1]

    @property
    def full_rank(self) -> int:
        """min(out, in): the number of singular values, and the largest rank an adapter can have here."""
        return min(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies activations (a linear layer or an expert), rather than being looked up."""
        return self.kind != "embedding"

    @property
    def is_adaptable(self) -> bool:
        """Whether an adapter can be put on its module and usually is: attention and MLP layers that are modules of their own."""
        return self.kind in ("linear", "conv1d") and is_adaptable(self.role)

    @property
    def key(self) -> str:
        """Its name without the base model's prefix: the same whatever head the model is loaded with (see `pattern_key`)."""
        return pattern_key(self.name)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's shape and its dtype as PyTorch spells it; whether a stack's matrices are (out x in), None if as usual."""

    shape: tuple[int, ...]
    dtype: str
    out_first: bool | None = None


def inventory(tensors: Mapping[str, TensorInfo], config: Mapping) -> list[Weight]:
    """Every weight matrix among `tensors` (checkpoint names), in the order of depth, and the tied head the names leave out.

    2-D tensors whose name ends in ``weight`` and 3-D expert stacks count; biases, norms and convolutions are no matrices. Roles
    come from names; what no rule knows has the role ``other`` and is listed all the same.
    """
    conv1d = _has_conv1d(tensors, config)
    weights: list[Weight] = []
    for tensor, info in tensors.items():
        if 0 in info.shape:
            continue
        if (stack := stack_shape(tensor, info.shape, config)) != info.shape:
            info = dataclasses.replace(info, shape=stack)
        if len(info.shape) == 2 and tensor.endswith("weight"):
            name = tensor.removesuffix(".weight")
            kind = "parameter" if name == tensor else _kind(name, conv1d)
            shape = info.shape[::-1] if kind == "conv1d" else info.shape
            bias = f"{tensor.removesuffix('weight')}bias" in tensors
            weights.append(
                Weight(name, role_of(name), shape, info.dtype, kind, layer_of(name), bias, tensor, transposed=kind == "conv1d")
            )
        elif len(info.shape) == 3 and _EXPERT_STACK.search(tensor):
            stack = tensor.removesuffix(".weight")
            role, layer = role_of(stack), layer_of(stack)
            turned = _is_turned(info, role, config) if info.out_first is None else not info.out_first
            shape = info.shape[:0:-1] if turned else info.shape[1:]
            bias = any(f"{stack}{ending}" in tensors for ending in ("_bias", ".bias"))
            weights.extend(
                Weight(f"{stack}[{index}]", role, shape, info.dtype, "expert", layer, bias, tensor, index, transposed=turned)
                for index in range(info.shape[0])
            )
    weights.sort(key=_depth_first)
    return _with_tied_head(weights, config)


def pattern_key(name: str) -> str:
    """A module path without the base model's attribute in front, so that it matches by suffix under any head.

    PEFT matches ``rank_pattern`` keys as suffixes at a dot; ``bert.encoder.layer.0…`` would miss a bare BertModel, while
    ``encoder.layer.0…`` matches both.

    >>> pattern_key("bert.encoder.layer.0.output.dense")
    'encoder.layer.0.output.dense'
    >>> pattern_key("model.layers.0.mlp.down_proj")
    'layers.0.mlp.down_proj'
    """
    first, dot, rest = name.partition(".")
    return rest if dot and first in BASE_PREFIXES else name


def _model_type(config: Mapping) -> str:
    return str(config.get("model_type") or "")


def stack_shape(name: str, shape: tuple[int, ...], config: Mapping) -> tuple[int, ...]:
    """`shape`, or (experts, rows, columns) of a matrix that holds a mixture's experts one below another (DBRX)."""
    if len(shape) != 2 or _model_type(config) != "dbrx" or not _DBRX_STACK.search(name):
        return shape
    settings = config.get("ffn_config")
    experts = settings.get("moe_num_experts") if isinstance(settings, Mapping) else None
    if not isinstance(experts, int) or isinstance(experts, bool) or experts < 1 or shape[0] % experts:
        return shape
    return experts, shape[0] // experts, shape[1]


def _is_turned(info: TensorInfo, role: str, config: Mapping) -> bool:
    """Whether the matrices of a stack are (in x out): told by the side that is as long as the model is wide.

    Checkpoints of one architecture can differ (Qwen3-VL's were turned when transformers 5 came), so the width comes first.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    width = next((text[name] for name in ("hidden_size", "d_model", "n_embd", "dim") if name in text), None)
    out, into = info.shape[1:]
    if role.startswith("mlp.") and out != into and width in (out, into):
        return width != (out if role == "mlp.down" else into)
    return _model_type(config) in TRANSPOSED_EXPERTS


def _has_conv1d(tensors: Mapping[str, TensorInfo], config: Mapping) -> bool:
    """Whether the model, or a part of it (the decoder of a captioner), is one of those with transformers' Conv1D.

    Where no config says what the model is, its biases do: they are as long as the side that is the output.
    """
    if _model_type(config):
        parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
        return any(_model_type(part) in CONV1D_MODELS for part in parts)
    for name, info in tensors.items():
        bias = tensors.get(f"{name.removesuffix('weight')}bias")
        if bias and name.endswith(("c_attn.weight", "c_fc.weight")) and len(info.shape) == 2 and info.shape[0] != info.shape[1]:
            return bias.shape == info.shape[1:]
    return False


def _kind(name: str, conv1d: bool) -> str:
    if role_of(name) == "embedding":
        return "embedding"
    if _EXPERT_MODULE.search(name):
        return "expert"
    if conv1d and name.rpartition(".")[2] in CONV1D_LEAVES:
        return "conv1d"
    return "linear"


def _with_tied_head(weights: list[Weight], config: Mapping) -> list[Weight]:
    """`weights` with the output matrix that shares the numbers of the input embedding.

    Such a head is usually not stored. transformers ties unless the config says otherwise, and a model with a vocabulary head
    but no stored one could not work untied. A stored copy is tied only when the config says so outright.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not any(_WITH_VOCABULARY_HEAD.search(str(name)) for name in architectures):
        return weights
    text = config.get("text_config") or {}
    says = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, Mapping) else None)
    table = next((weight for weight in weights if weight.kind == "embedding" and _TOKEN_TABLE.search(weight.name)), None)
    if says is False or table is None:
        return weights
    name = _HEADS.get(_model_type(config), "lm_head")
    stored = next((weight for weight in weights if weight.name.endswith(name)), None)
    tied = dataclasses.replace(table, name=name, role="head", kind="linear", layer=None, tensor="", tied_to=table.name)
    if stored is None:
        # ForPreTraining means a vocabulary head in BERT and a detector of replaced tokens in ELECTRA.
        return weights if _model_type(config) == "electra" and _is_detector(weights) else [*weights, tied]
    if says and stored.shape == table.shape:
        return [
            dataclasses.replace(tied, name=stored.name, bias=stored.bias) if weight is stored else weight for weight in weights
        ]
    return weights


def _is_detector(weights: list[Weight]) -> bool:
    return any(weight.name.startswith("discriminator_predictions") for weight in weights)


def _depth_first(weight: Weight) -> tuple:
    """Embeddings first, then the layers by depth and within each in the order a token meets them, then everything else."""
    parts = [
        (0, int(part), "") if part.isdigit() else (1, part != "encoder", part)  # an encoder comes before its decoder
        for part in re.split(r"[.\[\]]", weight.name)
        if part
    ]
    depth = next((index for index, part in enumerate(parts) if part[0] == 0), -1)
    group = 1 if depth >= 0 else 0 if weight.kind == "embedding" else 2
    return group, parts[: depth + 1], ROLES.index(weight.role), parts
