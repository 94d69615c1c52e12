"""What one adapter weighs on disk: equal to the file that `save_pretrained` writes, to the byte, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from analyzers.checks import whole
from analyzers.methods import METHODS, AdapterSpec, method
from analyzers.methods.saved import PREFIX, Module, Saved, Tensor, item_bytes
from analyzers.storage.folder import base_name, card_bytes, config_bytes, loraxs_card_bytes
from analyzers.storage.layout import check_dtype, data_bytes, header_bytes
from analyzers.storage.tensors import (
    adapter_tensors,
    base_copies,
    fp32_paths,
    head_tensors,
    rank_of,
    whole_model,
)
from loraxs_core.architecture import AUTO_CLASSES, OWN, as_loaded, module_names
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, SettingsError
from loraxs_core.html import table
from loraxs_core.targets import select_targets, target_patterns

if TYPE_CHECKING:
    from analyzers.plans import RankPlan

# Words for the model class, besides PEFT's own task types.
TASKS = {
    "base": "FEATURE_EXTRACTION",
    "causal-lm": "CAUSAL_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}


MOST_RANK = 1_000_000


@dataclass(frozen=True)
class AdapterSize:
    """What `save_pretrained` writes for an adapter, in bytes.

    method: a key of `analyzers.methods.METHODS`. ranks: module path in the loaded model -> rank ({} for methods without ranks).
    dtype: precision of the saved numbers. task: PEFT's task type; None for the checkpoint's own class. trainable: trained numbers
    of the adapter, without heads. head_parameters: numbers of the modules trained and saved whole (a classifier). saved: numbers
    in the file. copied: those among them that are the base's own embedding or head, which PEFT writes along when it is a target
    (``save_embedding_layers=False`` leaves them out). proof_bytes: of data besides them (LoRA-XS's proof of the bases). shared: frozen numbers that all adapters of
    one base have in common (LoRA-XS's A and B, VeRA's projections): held once in memory however many adapters are served.
    trained_tensors: those that are trained, heads included, in the precision they are trained in. tensors: how many are
    written.
    header_bytes: length field, JSON header and padding. data_bytes: the numbers. config_bytes, card_bytes: adapter_config.json and
    README.md beside them (0 for full and head-only, and for a folder without config.json).
    """

    model: str
    method: str
    label: str
    ranks: Mapping[str, int] = field(repr=False)
    dtype: str
    task: str | None
    trainable: int
    head_parameters: int
    saved: int
    copied: int
    proof_bytes: int
    shared: int
    trained_tensors: tuple[Tensor, ...] = field(repr=False)
    tensors: int
    header_bytes: int
    data_bytes: int
    config_bytes: int = 0
    card_bytes: int = 0

    @property
    def file_bytes(self) -> int:
        """Length of adapter_model.safetensors (of the whole model's file for full fine-tuning)."""
        return self.header_bytes + self.data_bytes

    @property
    def number_bytes(self) -> int:
        """Bytes of the numbers alone, as papers count them: no header, no proof."""
        return self.data_bytes - self.proof_bytes

    @property
    def folder_bytes(self) -> int:
        """All files that save_pretrained writes for the adapter: numbers, configuration, model card."""
        return self.file_bytes + self.config_bytes + self.card_bytes

    @property
    def resident_bytes(self) -> int:
        """Memory of one more adapter being served, at its saved precision: its trained numbers and its head, nothing shared."""
        return (self.trainable + self.head_parameters) * item_bytes(self.dtype)

    @property
    def shared_bytes(self) -> int:
        """Memory that all adapters of this kind on one base take together, once."""
        return self.shared * item_bytes(self.dtype)

    @property
    def rank_text(self) -> str:
        """``16``; ``12 to 25`` where ranks differ; an em dash for methods without a rank."""
        if not self.ranks:
            return "\u2014"
        low, high = min(self.ranks.values()), max(self.ranks.values())
        return str(low) if low == high else f"{low} to {high}"

    def _repr_html_(self) -> str:
        rows = [
            ("trained numbers", self.trainable),
            ("numbers of the head", self.head_parameters),
            ("file (bytes)", self.file_bytes),
            ("of it header (bytes)", self.header_bytes),
            ("folder (bytes)", self.folder_bytes),
        ]
        return table(f"{self.label} on {self.model}, rank {self.rank_text}, {self.dtype}", ["of one adapter", ""], rows)

    def to_dict(self) -> dict:
        """Plain JSON values, `file_bytes` and the range of ranks included."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        ranks = values.pop("ranks")
        values["trained_tensors"] = len(self.trained_tensors)
        rank = next(iter(ranks.values())) if len(set(ranks.values())) == 1 else None
        return values | {
            "rank": rank,
            "rank_text": self.rank_text,
            "modules": len(ranks),
            "file_bytes": self.file_bytes,
            "folder_bytes": self.folder_bytes,
            "number_bytes": self.number_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class SizeSettings:
    """What an adapter is made of and how it is saved, for its size.

    rank: the same in every layer (the method's own default when neither it nor a plan is given). plan: its layers and ranks; a
    method without ranks per layer takes the most frequent one. targets: see `select_targets`; not used with a plan. dtype: of the
    saved adapter. task: PEFT's task type or a key of `TASKS`: the class the model is loaded with, which decides tensor names and
    whether a head is saved; None: the class the checkpoint itself names, no head. modules_to_save: saved whole besides the
    task's head. head_dtype: of those (`dtype` when left out; PEFT keeps heads at the base's precision).
    options: further arguments of the method's PEFT configuration, such as ``save_projection=False`` for VeRA.
    base: what was given to from_pretrained, for the configuration and the card; None: the model's folder or hub id.

    Raises SettingsError for an unknown task or dtype, and for a rank beside a plan.
    """

    rank: int | None = None
    plan: RankPlan | None = None
    targets: str | Sequence[str] = "paper"
    dtype: str = "float32"
    task: str | None = None
    modules_to_save: Sequence[str] = ()
    head_dtype: str | None = None
    options: Mapping[str, Any] | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        task_type(self.task)
        check_dtype(self.dtype)
        if self.rank is not None and self.plan is not None:
            raise SettingsError("Give a rank or a plan, not both.")


def adapter_size(
    checkpoint: Checkpoint, method: str = "lora-xs", *, settings: SizeSettings | None = None, **changes: Any
) -> AdapterSize:
    """The size of an adapter of `method` on `checkpoint`, without weights.

    >>> from sample_models import open_model
    >>> adapter_size(open_model("minilm"), "lora-xs", rank=16).trainable
    6144

    settings, changes: a `SizeSettings`, and fields of it to change, such as ``rank`` or ``plan``. Raises SettingsError for an unknown
    method, task or dtype, PlanError for a rank that does not fit or a plan of another model.
    """
    chosen = find_method(method)
    asked = replace(settings or SizeSettings(), **changes)
    task = task_type(asked.task)
    spec, modules = _modules(checkpoint, chosen.name, asked, task)
    saved, heads = _saved(checkpoint, spec, modules, asked, task)
    paths, own = {module.path for module in modules}, asked.head_dtype or asked.dtype
    copies = base_copies(checkpoint, spec.target_modules, paths, own, task)
    tensors = {**saved.tensors, **heads, **copies}
    beside = _beside(checkpoint, spec, modules, asked, tensors) if chosen.config and checkpoint.model_type else {}
    return AdapterSize(
        model=checkpoint.name,
        method=chosen.name,
        label=chosen.label,
        ranks={module.path: module.rank for module in modules} if chosen.ranked else {},
        dtype=asked.dtype,
        task=task,
        trainable=sum(tensor.numbers for tensor in saved.trained),
        head_parameters=sum(tensor.numbers for tensor in heads.values()),
        saved=sum(tensor.numbers for tensor in tensors.values() if tensor.is_float),
        copied=sum(tensor.numbers for tensor in copies.values()),
        proof_bytes=sum(tensor.nbytes for tensor in tensors.values() if not tensor.is_float),
        shared=saved.shared,
        trained_tensors=(*saved.trained, *heads.values()),
        tensors=len(tensors),
        header_bytes=header_bytes(tensors),
        data_bytes=data_bytes(tensors),
        **beside,
    )


def _saved(
    checkpoint: Checkpoint, spec: AdapterSpec, modules: list[Module], asked: SizeSettings, task: str | None
) -> tuple[Saved, dict[str, Tensor]]:
    """(what the method itself writes, the heads beside it); a full fine-tune's heads are in its own file."""
    if spec.method == "full":
        return whole_model(checkpoint, asked.dtype, task), {}
    prefix = PREFIX if METHODS[spec.method].config else ""
    heads = head_tensors(checkpoint, task, tuple(asked.modules_to_save), asked.head_dtype or asked.dtype, prefix=prefix)
    if spec.method != "head-only":
        return adapter_tensors(checkpoint, spec, modules, asked.dtype, task), heads
    if not heads:
        raise SettingsError("Head-only training needs a task with a head, such as sequence-classification, or modules_to_save.")
    return Saved({}), heads


def _beside(
    checkpoint: Checkpoint, spec: AdapterSpec, modules: list[Module], asked: SizeSettings, tensors: Mapping[str, Tensor]
) -> dict[str, int]:
    """The lengths of adapter_config.json and README.md."""
    base, task = asked.base or base_name(checkpoint), task_type(asked.task)
    options = dict(spec.options) | ({"save_dtype": asked.dtype} if METHODS[spec.method].is_loraxs else {})
    spec = replace(spec, modules_to_save=list(asked.modules_to_save) or None, options=options)
    return {
        "config_bytes": config_bytes(checkpoint, spec, task, base=base, conv1d=any(module.conv1d for module in modules)),
        "card_bytes": (
            loraxs_card_bytes(spec, task, base, tensors)
            if METHODS[spec.method].is_loraxs
            else card_bytes(METHODS[spec.method].lora_family, task, base)
        ),
    }


def task_type(task: str | None) -> str | None:
    """PEFT's task type for `task`, one of those or a key of `TASKS`. Raises SettingsError listing them."""
    found = TASKS.get(task, task) if task else None
    if found not in AUTO_CLASSES:
        raise SettingsError(f"Unknown task {task!r}; there are {', '.join(TASKS)}.")
    return found


find_method = method  # `method` is also the name of an argument here


def _modules(checkpoint: Checkpoint, name: str, asked: SizeSettings, task: str | None) -> tuple[AdapterSpec, list[Module]]:
    """The adapter to be built, and its modules by their path in the loaded model."""
    chosen, plan, options = METHODS[name], asked.plan, dict(asked.options or {})
    if chosen.config is None:  # the whole model or its head: no layers are chosen, and there need be none to choose
        return AdapterSpec(name, [], options=options), []
    if plan is not None:
        plan.check(checkpoint)
        spec = plan.spec(name, options=options)
        shapes = dict(plan.shapes)
    else:
        weights = select_targets(checkpoint, asked.targets)
        shapes = {weight.name: weight.shape for weight in weights}
        rank = whole(chosen.default_rank if asked.rank is None else asked.rank, "The rank", error=PlanError)
        if rank > MOST_RANK:
            raise PlanError(f"A rank of {rank:.3g} is larger than any matrix; give at most {MOST_RANK:,}.")
        spec = AdapterSpec(name, target_patterns(checkpoint, weights), rank=rank, options=options)
    paths = _paths(checkpoint, task)
    fp32 = fp32_paths(checkpoint, task, asked.dtype)
    kinds = {weight.name: weight.kind for weight in (*checkpoint.weights, *as_loaded(checkpoint).weights)}
    modules = []
    for layer, (out, inner) in shapes.items():
        if layer not in paths:
            raise SettingsError(f"The class that this task loads has no module {layer}; choose another task or other targets.")
        path = paths[layer]
        rank = plan.ranks[layer] if plan is not None and chosen.per_layer_ranks else rank_of(spec, path)
        if chosen.rank_within_matrix and rank > min(out, inner):
            raise PlanError(f"Rank {rank} is larger than the matrix {layer} ({out} x {inner}); at most {min(out, inner)}.")
        modules.append(Module(path, out, inner, rank, kinds[layer], fp32(f"{path}.weight")))
    return spec, modules


def _paths(checkpoint: Checkpoint, task: str | None) -> dict[str, str]:
    """Weight name -> module path; the names themselves for a folder without config.json, whose class nobody knows."""
    if task is None and not checkpoint.model_type:
        return {weight.name: weight.name for weight in checkpoint.weights}
    return module_names(checkpoint, task or OWN)
