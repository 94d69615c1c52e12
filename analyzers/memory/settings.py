"""`MemorySettings`: everything about a fine-tune that its GPU memory depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from analyzers.memory.optimizer_rules import check_optimizer
from analyzers.memory.trainers import trainer
from analyzers.memory.versions import Software, software
from analyzers.methods import METHODS, AdapterSpec, method
from analyzers.methods.peft_configs import plain_config
from analyzers.optimizers import OPTIM_NAMES, OPTIMIZERS
from loraxs_core.errors import SettingsError
from loraxs_core.targets import ENCODERS, select_targets, target_patterns

if TYPE_CHECKING:
    from peft import PeftConfig

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
    "eval_batch": 10**7,
    "eval_predictions": 10**7,
    "labels": 10**6,
    "rank": 10**6,
}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
LOSSES = {
    "transformers": "the model's own, over all logits",
    "trl": "TRL's, fused with the output matrix (SFTTrainer's default)",
    "liger": "Liger's fused linear cross entropy",
    "cut-cross-entropy": "cut cross entropy",
}
PREFERENCES = {
    "dpo": "DPO; the reference is the model without its adapter, or a second model where there is none",
    "dpo-model": "DPO with a second model as reference",
    "dpo-precomputed": "DPO with the reference's log-probabilities computed beforehand",
}
SHARDINGS = ("ddp", "zero2", "zero3", "fsdp")
# Architectures whose positions are relative: the number of positions in their config does not limit the sequence.
# DeBERTa has a table of them only where its config says `position_biased_input`, which v2 and v3 do not; its distances are clipped.
RELATIVE_POSITIONS = {"bloom", "longt5", "mt5", "t5", "umt5"}
# Architectures whose positions are angles, although old config files of theirs say nothing of them.
ROTARY = {"llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite", "gpt_neox", "stablelm"}
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
    """A fine-tune whose memory is asked for. What is left out is what a user of transformers' ``Trainer`` gets; `preset` starts from
    another training loop.

    What is trained. method: a key of `analyzers.methods.METHODS`. rank: of every module; the method's default when None. plan: a
    rank plan, which says targets, ranks and scaling instead. targets: see `loraxs_core.targets.select_targets`. peft_config: any of
    PEFT's configurations, or the values of an adapter_config.json, instead of all these. dropout: of the adapter. options: further
    arguments of PEFT's configuration. task: a key of `TASKS`; the checkpoint's own kind when None. labels: classes of a classifier.

    The batch. batch, sequence: sequences a step and GPU, tokens each (the longest of the batch). padding: whether they are padded to
    that length; None: as usual, when there are several. padding_free: all of them one after another in one row (packing).
    gradient_accumulation: micro-batches a step.

    Precision. base_dtype, adapter_dtype: ``bf16``, ``fp16`` or ``fp32`` of frozen weights (the checkpoint's own when None) and of
    the adapter's (a full fine-tune, a head and ``modules_to_save`` train in base_dtype). mixed_precision: run under
    ``torch.autocast`` in bf16 (Trainer's ``bf16=True``). quantize: ``4bit`` (NF4) or ``8bit`` (LLM.int8) base; double_quantization:
    of the 4-bit constants; kbit_prepared: after PEFT's ``prepare_model_for_kbit_training``, which casts what is not quantised to fp32.

    The step. optimizer: a key of `analyzers.optimizers.OPTIMIZERS`, or a name that ``TrainingArguments.optim`` knows; optim_args,
    optim_target_modules: as `TrainingArguments` has them (the rank of GaLore and APOLLO, and what they project). loss: a key of
    `LOSSES`. preference: a key of `PREFERENCES`; a batch then is of pairs. gradient_checkpointing; reentrant_checkpointing: ``use_reentrant``, None: as the version of transformers has it, which
    matters to FSDP alone. attention: one of `ATTENTIONS` or None for transformers' choice. keep_logits: the loop holds on
    to the model's outputs during the backward pass (Trainer does not). use_cache: the model builds a key-value cache in training too
    (Trainer switches it off). empty_cache: the loop empties PyTorch's cache after a step (``torch_empty_cache_steps``).
    expandable_segments: of PyTorch's allocator (``PYTORCH_CUDA_ALLOC_CONF``). offload_optimizer, offload_activations: to the CPU.

    eval_batch: sequences a step of the evaluation between training steps; None: there is none. eval_predictions: sequences of it whose
    logits wait on the GPU: with ``compute_metrics`` or ``predict`` all of the set, or ``eval_accumulation_steps`` batches.

    gpus, sharding: how many GPUs, and one of `SHARDINGS`. transformers_version, torch_version: where they are not the installed ones
    (see `versions.Software`). full_trace: trace every layer instead of extrapolating from few. trust_remote_code: run the Python
    code in the checkpoint's folder where transformers does not know the architecture (see `loraxs_core.remote_code`).
    """

    method: str = "lora-xs"
    rank: int | None = None
    plan: RankPlan | None = None
    targets: str | Sequence[str] = "paper"
    peft_config: Mapping[str, object] | PeftConfig | None = None
    batch: int = 8
    sequence: int = 512
    padding: bool | None = None
    padding_free: bool = False
    base_dtype: str | None = None
    adapter_dtype: str = "fp32"
    mixed_precision: bool = False
    gradient_checkpointing: bool = False
    reentrant_checkpointing: bool | None = None
    gradient_accumulation: int = 1
    quantize: str | None = None
    double_quantization: bool = True
    kbit_prepared: bool = False
    optimizer: str = "adamw-fused"
    optim_args: str = ""
    optim_target_modules: str | Sequence[str] = "all-linear"
    loss: str = "transformers"
    preference: str | None = None
    task: str | None = None
    labels: int = 2
    keep_logits: bool = False
    use_cache: bool = False
    empty_cache: bool = False
    expandable_segments: bool = False
    offload_optimizer: bool = False
    offload_activations: bool = False
    dropout: float = 0.0
    attention: str | None = None
    eval_batch: int | None = None
    eval_predictions: int = 0
    gpus: int = 1
    sharding: str | None = None
    transformers_version: str | None = None
    torch_version: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    full_trace: bool = False
    trust_remote_code: bool = False

    @classmethod
    def preset(cls, name: str = "trainer", **given) -> MemorySettings:
        """What the training loop `name` (a key of `trainers.TRAINERS`) sets, but for what is `given`."""
        return cls(**trainer(name).fill(given))

    def __post_init__(self):
        """Raises SettingsError in one sentence for a value that no fine-tune can have."""
        method(self.method)
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is None and name in ("rank", "eval_batch"):
                continue
            least = 0 if name == "eval_predictions" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingsError(f"{name.replace('_', ' ')} must be a whole number of at least {least}, not {value!r}.")
            if value > most:
                raise SettingsError(f"{name.replace('_', ' ')} must be at most {most:,}, not {value:,}.")
        _one_of("base_dtype", self.base_dtype, DTYPES, none=True)
        _one_of("adapter_dtype", self.adapter_dtype, DTYPES)
        _one_of("quantize", self.quantize, QUANTIZE, none=True)
        object.__setattr__(self, "optimizer", OPTIM_NAMES.get(self.optimizer, self.optimizer))
        check_optimizer(
            self.optimizer,
            self.optim_args,
            accumulation=self.gradient_accumulation,
            gpus=self.gpus,
            sharding=self.sharding,
            offloaded=self.offload_optimizer,
        )
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("loss", self.loss, LOSSES)
        _one_of("preference", self.preference, PREFERENCES, none=True)
        if self.preference and self.loss != "trl":
            raise SettingsError("TRL's DPOTrainer has a fused loss of its own and no other is known here; give the loss 'trl'.")
        if self.preference and self.padding_free:
            raise SettingsError("TRL's DPOTrainer pads its pairs; leave padding_free out.")
        if self.eval_predictions and not self.eval_batch:
            raise SettingsError("eval_predictions are kept during an evaluation; give its eval_batch as well.")
        _one_of("task", self.task, TASKS, none=True)
        _one_of("attention", self.attention, ATTENTIONS, none=True)
        _one_of("sharding", self.sharding, SHARDINGS, none=True)
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be at least 0 and below 1, not {self.dropout!r}.")
        if self.sharding and self.gpus == 1:
            raise SettingsError(
                f"{self.sharding!r} spreads a fine-tune over several GPUs; give at least 2, or leave sharding out."
            )
        software(self.transformers_version, self.torch_version)
        if self.peft_config is not None:
            if self.plan is not None:
                raise SettingsError("Give a PEFT configuration or a plan, not both: each says targets and ranks.")
            object.__setattr__(self, "peft_config", plain_config(self.peft_config))
        elif self.quantize and self.method == "full":
            raise SettingsError("A quantised base cannot be trained in full; choose an adapter method or leave quantize out.")

    @property
    def padded(self) -> bool:
        """Whether the batch has padding, and so a mask."""
        if self.padding_free:
            return False
        return self.rows[0] > 1 if self.padding is None else self.padding

    @property
    def rows(self) -> tuple[int, int]:
        """(sequences, tokens of each) as the model gets them."""
        if self.padding_free:
            return 1, self.batch * self.sequence
        return self.batch * (2 if self.preference else 1), self.sequence

    @property
    def reentrant(self) -> bool:
        """Whether layers are checkpointed reentrantly."""
        return self.software.reentrant if self.reentrant_checkpointing is None else self.reentrant_checkpointing

    @property
    def software(self) -> Software:
        """What versions other than the installed ones do otherwise."""
        return software(self.transformers_version, self.torch_version)

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is added, rather than weights of the model trained."""
        return self.peft_config is not None or METHODS[self.method].config is not None

    @property
    def label(self) -> str:
        """What is trained, in a word."""
        return str(self.peft_config["peft_type"]).lower() if self.peft_config is not None else self.method

    def resolved(self, checkpoint: Checkpoint) -> MemorySettings:
        """These settings with the checkpoint's own precision where none is given, and as DeepSpeed changes them: it casts the whole
        model to the low precision instead of running it under autocast."""
        found = self if self.base_dtype else self.but(base_dtype=own_dtype(checkpoint))
        if found.mixed_precision and found.sharding in ("zero2", "zero3"):
            found = found.but(mixed_precision=False, base_dtype="bf16", adapter_dtype="bf16")
        return found

    def but(self, **changes: Any) -> MemorySettings:
        """These settings with some values replaced."""
        return replace(self, **changes)

    def task_type(self, checkpoint: Checkpoint) -> str:
        """PEFT's task type: the one asked for, or what the checkpoint is made for."""
        return TASKS[self.task] if self.task else default_task(checkpoint)

    def adapter(self, checkpoint: Checkpoint) -> AdapterSpec | Mapping | None:
        """What PEFT is to build: a specification, or the values of a configuration of its own; None for methods without an adapter.
        Raises CheckpointError when targets match nothing."""
        if self.peft_config is not None:
            return self.peft_config
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
        if self.preference and self.task_type(checkpoint) != "CAUSAL_LM":
            raise SettingsError(
                f"TRL's DPOTrainer trains causal models, and {checkpoint.name} is taken as none; give another task."
            )
        limit = position_limit(checkpoint)
        if limit and self.sequence > limit and not has_rotary_positions(checkpoint):
            raise SettingsError(
                f"{checkpoint.name} has positions for {limit} tokens, fewer than a sequence of {self.sequence}; "
                f"choose at most {limit}."
            )

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        """What is unusual about running this model with these settings, in sentences."""
        limit = position_limit(checkpoint)
        if limit and self.sequence > limit:
            return [
                f"{checkpoint.name} was made for {limit} tokens; {self.sequence} run, since its positions are computed, but it was not "
                "trained on them."
            ]
        return []


def has_rotary_positions(checkpoint: Checkpoint) -> bool:
    """Whether positions are angles that are computed for any length (RoPE), not rows of a table."""
    config = text_config(checkpoint)
    rotary = (
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "rotary_pct",
        "rotary_dim",
        "rotary_emb_base",
        "partial_rotary_factor",
    )
    return any(config.get(key) is not None for key in rotary) or checkpoint.model_type in ROTARY


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


def own_dtype(checkpoint: Checkpoint) -> str:
    """The precision that ``from_pretrained`` loads the model in: what its config.json says; fp32 where it does not."""
    config = checkpoint.config
    said = str(config.get("dtype") or config.get("torch_dtype") or text_config(checkpoint).get("dtype") or "").removeprefix(
        "torch."
    )
    return next((short for short, name in DTYPES.items() if name == said), "fp32")


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
