"""`MemorySettings`: everything about a fine-tune that its GPU memory depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from analyzers.methods import METHODS, AdapterSpec, method
from analyzers.optimizers import OPTIMIZERS
from loraxs_core.errors import SettingsError
from loraxs_core.targets import ENCODERS, select_targets, target_patterns

if TYPE_CHECKING:
    from analyzers.plans import RankPlan
    from loraxs_core.checkpoint import Checkpoint

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
QUANTIZE = ("4bit", "8bit")
TASKS = {
    "causal-lm": "CAUSAL_LM",
    "sequence-classification": "SEQ_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
}
# Beyond any fine-tune; PyTorch cannot count the bytes of much larger tensors, and transformers names every class.
MOST = {
    "batch": 10**7,
    "sequence": 10**7,
    "gradient_accumulation": 10**7,
    "gpus": 10**6,
    "labels": 10**6,
    "rank": 10**6,
}
SHARDINGS = ("ddp", "zero2", "zero3", "fsdp")
# Architectures whose positions are relative: the number of positions in their config does not limit the sequence.
# DeBERTa has a table of them only where its config says `position_biased_input`, which v2 and v3 do not; its distances are clipped.
RELATIVE_POSITIONS = {"bloom", "longt5", "mt5", "t5", "umt5"}
# Rows of the table of positions that are none: models that count from one after the padding token's number.
OFFSET_POSITIONS = dict.fromkeys(
    (
        "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    ),
    2,
)  # fmt: skip


@dataclass(frozen=True)
class MemorySettings:
    """A fine-tune whose memory is asked for.

    method: a key of `analyzers.methods.METHODS`. rank: of every module; the method's default when None. plan: a rank plan, which
    says targets, ranks and scaling instead. targets: see `loraxs_core.targets.select_targets`. batch, sequence: sequences a step
    and GPU, tokens each (the longest of the batch). padding: whether sequences of the batch are padded to that length; None: as
    usual, when there are several. base_dtype, adapter_dtype: ``bf16``, ``fp16`` or ``fp32`` of frozen weights and of trained ones
    (a full fine-tune trains in base_dtype). mixed_precision: run under ``torch.autocast`` in bf16 (Trainer's ``bf16=True``).
    gradient_accumulation: micro-batches a step. quantize: ``4bit`` (NF4) or ``8bit`` (LLM.int8) base; double_quantization: of the
    4-bit constants. optimizer: a key of `analyzers.optimizers.OPTIMIZERS`. task: a key of `TASKS`; the checkpoint's own kind when None. keep_logits:
    the training loop holds on to the model's outputs during the backward pass (Trainer does not). use_cache: the model builds a
    key-value cache in training too (Trainer switches it off). dropout: of the adapter. labels: classes of a classifier. attention:
    ``sdpa``, ``eager`` or None for transformers' choice. gpus, sharding: how many GPUs, and one of `SHARDINGS`. options: further
    arguments of PEFT's configuration. full_trace: trace every layer instead of extrapolating from few. trust_remote_code: run the
    Python code in the checkpoint's folder where transformers does not know the architecture (see `loraxs_core.remote_code`).
    """

    method: str = "lora-xs"
    rank: int | None = None
    plan: RankPlan | None = None
    targets: str | Sequence[str] = "paper"
    batch: int = 1
    sequence: int = 512
    padding: bool | None = None
    base_dtype: str = "bf16"
    adapter_dtype: str = "fp32"
    mixed_precision: bool = False
    gradient_checkpointing: bool = False
    gradient_accumulation: int = 1
    quantize: str | None = None
    double_quantization: bool = True
    optimizer: str = "adamw"
    task: str | None = None
    labels: int = 2
    keep_logits: bool = False
    use_cache: bool = False
    dropout: float = 0.0
    attention: str | None = None
    gpus: int = 1
    sharding: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    full_trace: bool = False
    trust_remote_code: bool = False

    def __post_init__(self):
        """Raises SettingsError in one sentence for a value that no fine-tune can have."""
        method(self.method)
        for name, most in MOST.items():
            value = getattr(self, name)
            if name == "rank" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name.replace('_', ' ')} must be a whole number of at least 1, not {value!r}.")
            if value > most:
                raise SettingsError(f"{name.replace('_', ' ')} must be at most {most:,}, not {value:,}.")
        for name in ("base_dtype", "adapter_dtype"):
            _one_of(name, getattr(self, name), DTYPES)
        _one_of("quantize", self.quantize, QUANTIZE, none=True)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("task", self.task, TASKS, none=True)
        _one_of("attention", self.attention, ("sdpa", "eager"), none=True)
        _one_of("sharding", self.sharding, SHARDINGS, none=True)
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be at least 0 and below 1, not {self.dropout!r}.")
        if self.sharding and self.gpus == 1:
            raise SettingsError(
                f"{self.sharding!r} spreads a fine-tune over several GPUs; give at least 2, or leave sharding out."
            )
        if self.quantize and self.method == "full":
            raise SettingsError("A quantised base cannot be trained in full; choose an adapter method or leave quantize out.")

    @property
    def padded(self) -> bool:
        """Whether the batch has padding, and so a mask."""
        return self.batch > 1 if self.padding is None else self.padding

    def but(self, **changes: Any) -> MemorySettings:
        """These settings with some values replaced."""
        return replace(self, **changes)

    def task_type(self, checkpoint: Checkpoint) -> str:
        """PEFT's task type: the one asked for, or what the checkpoint is made for."""
        return TASKS[self.task] if self.task else default_task(checkpoint)

    def adapter(self, checkpoint: Checkpoint) -> AdapterSpec | None:
        """What PEFT is to build; None for methods without an adapter. Raises CheckpointError when targets match nothing."""
        method = METHODS[self.method]
        if method.config is None:
            return None
        if self.plan is not None:
            spec = self.plan.spec(self.method)
            # By module name, not by the plan's regular expressions: a shallow copy of the model keeps the names of its layers.
            ranks = dict(self.plan.ranks) if method.per_layer_ranks else {}
            return replace(spec, ranks=ranks, dropout=self.dropout, options={**spec.options, **self.options})
        chosen = select_targets(checkpoint, self.targets)
        rank = self.rank or method.default_rank
        if method.rank_within_matrix:
            smallest = min(chosen, key=lambda weight: min(weight.shape))
            if rank > min(smallest.shape):
                raise SettingsError(
                    f"Rank {rank} is larger than the matrix {smallest.name} ({smallest.shape[0]} x {smallest.shape[1]}); "
                    f"at most {min(smallest.shape)}."
                )
        return AdapterSpec(
            self.method, target_patterns(checkpoint, chosen), rank=rank, dropout=self.dropout, options=dict(self.options)
        )

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises SettingsError when this model cannot be run with these settings."""
        limit = position_limit(checkpoint)
        if limit and self.sequence > limit:
            raise SettingsError(
                f"{checkpoint.name} has positions for {limit} tokens, fewer than a sequence of {self.sequence}; "
                f"choose at most {limit}."
            )


def position_limit(checkpoint: Checkpoint) -> int | None:
    """The longest sequence that the model has positions for; None where positions are relative or the config does not say."""
    config = text_config(checkpoint)
    if checkpoint.model_type in RELATIVE_POSITIONS or config.get("position_biased_input") is False:
        return None
    for key in ("max_position_embeddings", "n_positions"):
        limit = config.get(key)
        if isinstance(limit, int) and limit > 0:
            return limit - OFFSET_POSITIONS.get(checkpoint.model_type, 0)
    return None


def text_config(checkpoint: Checkpoint) -> Mapping:
    """config.json as far as it is about text: a model of images and text has a config of its own for each."""
    inner = checkpoint.config.get("text_config")
    return {**checkpoint.config, **inner} if isinstance(inner, Mapping) else checkpoint.config


def default_task(checkpoint: Checkpoint) -> str:
    """PEFT's task type of the model's own class: an encoder is fine-tuned as a classifier, everything else as what it is.

    Encoders are those that the paper's targets know, and what transformers has a classifier for and no causal model (ModernBERT).
    """
    from transformers.models.auto import modeling_auto as known

    if checkpoint.config.get("is_encoder_decoder"):
        return "SEQ_2_SEQ_LM"
    kind = checkpoint.model_type
    if kind in ENCODERS:
        return "SEQ_CLS"
    classifies = kind in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    return "SEQ_CLS" if classifies and kind not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "CAUSAL_LM"


def _one_of(name: str, value, allowed, *, none: bool = False) -> None:
    if value in allowed or (none and value is None):
        return
    raise SettingsError(f"Unknown {name.replace('_', ' ')} {value!r}; there are {', '.join(allowed)}.")
