"""The model of a trial: a frozen base with a freshly initialised head, the same for every method of one seed.

Three kinds. For a task whose answers are written, a decoder stays the language model that it is, without a head. Any encoder or decoder becomes transformers' ``AutoModelForSequenceClassification`` (a pair of texts is read as one
sequence). A sentence encoder (a checkpoint of sentence-transformers, such as MiniLM) keeps the use it was trained for: each text
is read alone, its token vectors are averaged, and a pair is compared through |u - v| and u * v (Conneau et al. 2017,
arXiv 1705.02364), because it has never seen two texts in one sequence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from xxhash import xxh3_128

from analyzers.compare.sentence_model import SentenceModel
from analyzers.compare.tasks import CAUSAL, CLASSIFICATION, Task
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.config_bounds import refuse_impossible
from loraxs_core.errors import CheckpointError, WeightsMissing, is_out_of_memory
from loraxs_core.file_sums import file_sum

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
HEAD_STD = 0.02  # of a new head's weights; transformers' own initializer_range in BERT, RoBERTa and Llama


@dataclass
class Prepared:
    """model: everything frozen but the head. head: the names of the head's modules; none where answers are written. separate: whether it is a `SentenceModel`,
    which reads pairs one by one, and whose encoder alone gets the adapter. task_type: PEFT's."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    head: list[str]
    separate: bool
    task_type: str


def prepare(checkpoint: Checkpoint, task: Task, seed: int) -> Prepared:
    """`load`, with a head whose numbers depend on the head's shape and `seed` alone."""
    found = load(checkpoint, task)
    initialise_head(found.model, found.head, seed)
    return found


def load(checkpoint: Checkpoint, task: Task) -> Prepared:
    """Loads `checkpoint` in float32, frozen, with a head for `task` that `initialise_head` has yet to fill.

    Raises WeightsMissing for an architecture without weights, CheckpointError when transformers cannot load model or tokenizer, or
    the two do not fit each other.
    """
    if checkpoint.folder is None or not checkpoint.has_weights:
        raise WeightsMissing(
            f"{checkpoint.name} is an architecture without weights, so it cannot be fine-tuned; give a model that has them."
        )
    tokenizer = _tokenizer(checkpoint)
    writes = task.kind == CAUSAL
    if writes:
        _refuse_encoder(checkpoint, task)
    separate = is_sentence_encoder(checkpoint) and not writes
    head: list[str] = []
    try:
        if writes:
            model = _language_model(checkpoint, tokenizer)
        elif separate:
            model, head = _sentence_model(checkpoint, task), ["head"]
        else:
            model, head = _sequence_classifier(checkpoint, task, tokenizer)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "to write answers" if writes else "with a classification head"
        raise CheckpointError(f"transformers cannot load {checkpoint.name} {what}: {first}") from error
    _refuse_longer_tokenizer(checkpoint, tokenizer, model.encoder if separate else model)
    model.requires_grad_(False)
    return Prepared(
        model, tokenizer, head, separate, "CAUSAL_LM" if writes else "FEATURE_EXTRACTION" if separate else "SEQ_CLS"
    )


def _refuse_encoder(checkpoint: Checkpoint, task: Task) -> None:
    """Raises CheckpointError for a model that cannot write: one that transformers has no language model for, or an encoder."""
    from transformers.models.auto import modeling_auto as known

    kind = str(checkpoint.config.get("model_type", ""))
    writes = kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    reads = kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not checkpoint.config.get("is_decoder")
    if not writes or reads:
        raise CheckpointError(
            f"{task.label} is for decoders, which write their answers, and {checkpoint.name} ({kind or 'of no known kind'}) is none; choose "
            "a decoder such as smollm2-135m, or another task."
        )


def _language_model(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, checkpoint)
    model.config.use_cache = False  # nothing is written while it trains
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model


def is_sentence_encoder(checkpoint: Checkpoint) -> bool:
    """Whether the folder is one of sentence-transformers that averages token vectors (its modules.json and pooling say so)."""
    if checkpoint.folder is None:
        return False
    try:
        modules = json.loads((checkpoint.folder / "modules.json").read_text(encoding="utf-8"))
        pooling = next(module["path"] for module in modules if str(module["type"]).endswith("Pooling"))
        settings = json.loads((checkpoint.folder / pooling / "config.json").read_text(encoding="utf-8"))
        return bool(settings.get("pooling_mode_mean_tokens")) or settings.get("pooling_mode") == "mean"
    except (OSError, ValueError, StopIteration, KeyError, TypeError, AttributeError):
        return False


def head_modules(model: PreTrainedModel, missing: Iterable[str] = ()) -> list[str]:
    """What has to be trained anew: the modules beside the base model (``classifier``, ``score``, ...), and those inside it whose
    parameters the checkpoint lacks (`missing`), such as BERT's pooler: frozen at random it would only garble."""
    prefix = model.base_model_prefix
    beside = [name for name, module in model.named_children() if name != prefix and any(True for _ in module.parameters())]
    parameters = {name for name, _ in model.named_parameters()}
    inside = {name.rpartition(".")[0]: None for name in missing if name in parameters and name.split(".")[0] not in beside}
    return [*beside, *inside]


def initialise_head(model: nn.Module, head: list[str], seed: int) -> None:
    """Fills the head anew: weights N(0, 0.02^2) from `seed`, biases 0, norms 1; makes it trainable. In place.

    Always, even where the checkpoint brings a head: that one was trained for something else, and a comparison starts level.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in head:
        for module in model.get_submodule(name).modules():
            for kind, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(True)
                with torch.no_grad():
                    if parameter.dim() >= 2:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * HEAD_STD)
                    else:
                        parameter.fill_(1.0 if kind == "weight" else 0.0)


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        # Without any of its files transformers makes an empty one, to which every word is unknown.
        if not any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES):
            raise FileNotFoundError(checkpoint.folder)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    except Exception as error:  # its loaders raise whatever their formats' parsers do
        raise CheckpointError(
            f"{checkpoint.name} has no tokenizer that transformers can load; a fine-tune needs one beside the weights."
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(f"The tokenizer of {checkpoint.name} has neither a padding nor an end token.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.files_digest, tokenizer.model_name = _tokenizer_files(checkpoint), checkpoint.name  # for `tokens`
    return tokenizer


def _tokenizer_files(checkpoint: Checkpoint) -> str:
    """The content of every file that a tokenizer may be read from, configuration included, as 32 hexadecimal digits."""
    digest = xxh3_128()
    for path in sorted(checkpoint.folder.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".jinja", ".bpe") and "index" not in path.name and path.is_file():
            digest.update(repr((path.name, file_sum(path))).encode())
    return digest.hexdigest()


def _refuse_longer_tokenizer(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raises CheckpointError where a text may become a token that the model has no vector for: training would break at that text."""
    last = max(tokenizer.get_vocab().values(), default=0)
    rows = model.get_input_embeddings().weight.shape[0]
    if last >= rows:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.name} gives ids up to {last:,} and the model has embeddings for {rows:,}; "
            "save it with the tokenizer that it was trained with, or after resize_token_embeddings."
        )


def _load(kind: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    refuse_impossible(checkpoint.config, checkpoint.name)
    return kind.from_pretrained(
        checkpoint.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False, **options
    )


def _sentence_model(checkpoint: Checkpoint, task: Task) -> SentenceModel:
    from transformers import AutoModel

    return SentenceModel(_load(AutoModel, checkpoint), task, task.pairs)


def _sequence_classifier(
    checkpoint: Checkpoint, task: Task, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    from transformers import AutoModelForSequenceClassification

    model, loading = _load(
        AutoModelForSequenceClassification,
        checkpoint,
        num_labels=task.outputs,
        problem_type="single_label_classification" if task.kind == CLASSIFICATION else "regression",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, head_modules(model, sorted(loading["missing_keys"]))
