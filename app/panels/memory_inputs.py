"""What the memory panel asks: the training step, the methods to compare, and whether the model's own code may run.

The everyday questions are always in view, the rest under "More settings". All of them come back as keyword arguments of
`MemorySettings`, from which the command and the Python code beside the figures are spelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import streamlit as st

from analyzers.memory import MemorySettings, usual_length
from analyzers.memory.distributed import LABELS as SHARDINGS
from analyzers.memory.optimizer_rules import WITH_ARGUMENTS
from analyzers.memory.settings import DTYPES, LOSSES, OPTIMIZERS, PREFERENCES, TASKS, default_task
from analyzers.memory.trainers import TRAINERS
from analyzers.methods import MAIN_METHODS, METHODS
from app import state
from app.forms import bound
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.remote_code import code_digest, needs_code

# An option of None would be shown as no choice at all, so the usual one has a name and no value.
QUANTIZED = {"no": "no", "8bit": "8 bit (LLM.int8)", "4bit": "4 bit (NF4)"}
PADDING = {"usual": "as usual: if there are several", "yes": "yes, with a mask", "no": "no, all of one length"}
ATTENTION = {
    "usual": "transformers' choice",
    "sdpa": "sdpa",
    "eager": "eager: keeps tokens x tokens",
    "flash_attention_2": "flash_attention_2",
}
PRECISION = {"own": "the checkpoint's own", **DTYPES}
# Settings that a training loop presets, and the widgets that hold them, with what those call a value.
PRESET = {
    "batch": ("batch", {}),
    "sequence": ("sequence", {}),
    "padding": ("padding", {None: "usual", True: "yes", False: "no"}),
    "base_dtype": ("base-dtype", {None: "own"}),
    "adapter_dtype": ("adapter-dtype", {}),
    "mixed_precision": ("mixed-precision", {}),
    "gradient_checkpointing": ("checkpointing", {}),
    "optimizer": ("optimizer", {}),
    "loss": ("loss", {}),
    "preference": ("preference", {None: "usual"}),
    "keep_logits": ("keep-logits", {}),
    "use_cache": ("use-cache", {}),
    "empty_cache": ("empty-cache", {}),
}
# As those, of what no preset sets.
FURTHER = {"quantize": ("quantize", {None: "no"}), "gradient_accumulation": ("accumulation", {})}
CLASSES = {"usual": "the usual one for this model", **{name: name for name in TASKS}}
ORDER = list(dict.fromkeys((*MAIN_METHODS, *METHODS)))
DEFAULTS = MemorySettings()


def settings(checkpoint: Checkpoint) -> dict:
    """Keyword arguments of `MemorySettings`, all but method, rank, plan and targets."""
    everyday = _everyday(checkpoint)
    with st.expander("More settings", icon=":material/tune:"):
        more = _more(checkpoint, everyday)
    return everyday | more | _trust(checkpoint)


def methods(ranks: dict[str, dict]) -> dict[str, dict]:
    """Method -> what it is counted with (rank, plan or nothing) for the methods chosen; `ranks` says so for the main ones."""
    row = st.container(horizontal=True, vertical_alignment="bottom")
    chosen = row.multiselect(
        "Methods",
        ORDER,
        list(MAIN_METHODS),
        **bound("memory-methods", lambda name: METHODS[name].label),
        help="What cannot be traced is given by a closed form and marked so.",
    )
    shared = None
    if any(METHODS[name].ranked and name not in ranks for name in chosen):
        shared = row.number_input(
            "Rank of the others",
            1,
            8192,
            None,
            placeholder="its default",
            **bound("memory-rank"),
            width=190,
            help="Of the methods beyond LoRA, VeRA and LoRA-XS, whose ranks are above. Empty: each has its own default.",
        )
    return {name: ranks.get(name) or _further(name, shared) for name in ORDER if name in chosen}


class Question(NamedTuple):
    """One estimate. key: what tells it from all others, for a cache to go by."""

    key: tuple
    checkpoint: Checkpoint
    settings: MemorySettings


def question(checkpoint: Checkpoint, method: str, asked: dict, step: dict, targets: dict) -> Question:
    """The estimate of `method`, counted with `asked`, under the settings of the training step."""
    plan = asked.get("plan")
    named = step if plan else {**step, **asked, **targets}
    code = code_digest(checkpoint.folder) if step.get("trust_remote_code") else ""
    key = (checkpoint.fingerprint + code, method, state.identity(plan) if plan else "", tuple(sorted(named.items())))
    return Question(key, checkpoint, MemorySettings(method=method, plan=plan, **named))


def python(asked: dict) -> str:
    """`MemorySettings` of what was asked as source code, without what is the default anyway."""
    said = {name: value for name, value in asked.items() if name in ("batch", "sequence") or value != getattr(DEFAULTS, name)}
    return "MemorySettings(\n" + "".join(f"    {name}={value!r},\n" for name, value in said.items()) + ")"


def _further(method: str, rank: int | None) -> dict:
    return {"rank": int(rank or METHODS[method].default_rank)} if METHODS[method].ranked else {}


def _everyday(checkpoint: Checkpoint) -> dict:
    st.selectbox(
        "Training loop",
        list(TRAINERS),
        **bound("trainer", lambda name: TRAINERS[name].label),
        on_change=_preset,
        help="Fills in below what this loop does unless it is told otherwise; everything can be changed.",
    )
    batch, sequence = st.columns(2)
    return {
        "batch": int(batch.number_input("Sequences a step", 1, 4096, 8, **bound("batch"))),
        "sequence": int(sequence.number_input("Tokens each", 1, 1_048_576, usual_length(checkpoint), step=128, **bound("sequence"))),
        "base_dtype": _choice("Frozen weights in", PRECISION, "base-dtype", usual="own"),
        "adapter_dtype": st.selectbox("Adapter in", list(DTYPES), list(DTYPES).index(DEFAULTS.adapter_dtype), **bound("adapter-dtype", DTYPES.get)),
        "quantize": _choice("Quantised base", QUANTIZED, "quantize", usual="no"),
        "optimizer": st.selectbox("Optimizer", list(OPTIMIZERS), list(OPTIMIZERS).index(DEFAULTS.optimizer), **bound("optimizer", OPTIMIZERS.get)),
        "task": _choice("Model class", CLASSES, "memory-task"),
        "gradient_checkpointing": st.toggle(
            "Gradient checkpointing", **bound("checkpointing"), help="Activations of a layer are computed again in the backward pass: less memory, about 30 % more time."
        ),
    }  # fmt: skip


def _preset() -> None:
    """Fills in what the chosen training loop does."""
    chosen = MemorySettings.preset(st.session_state["trainer"])
    apply({name: getattr(chosen, name) for name in PRESET})


def apply(changes: Mapping[str, object]) -> None:
    """Puts settings into the inputs. changes: values by their name in `MemorySettings`. For a callback."""
    for name, value in changes.items():
        key, words = (PRESET | FURTHER)[name]
        st.session_state[key] = words.get(value, value)


def _choice(label: str, options: dict[str, str], key: str, *, usual: str = "usual", help: str | None = None) -> str | None:
    """A select box over `options` (value -> words); None for the usual one."""
    chosen = st.selectbox(label, list(options), **bound(key, options.get), help=help)
    return None if chosen == usual else chosen


def _more(checkpoint: Checkpoint, everyday: dict) -> dict:
    """What few change. A question that the others leave without a meaning (shards of one GPU) is not asked."""
    asked = _batch_and_loss() | _loop() | _lightened()
    if everyday["optimizer"] in WITH_ARGUMENTS:
        asked |= _arguments()
    if everyday["quantize"] == "4bit":
        asked |= _four_bits()
    if (TASKS[everyday["task"]] if everyday["task"] else default_task(checkpoint)) == "SEQ_CLS":
        asked["labels"] = int(st.number_input("Classes", 1, 100_000, 2, **bound("labels")))
    return asked | _evaluation() | _gpus()


def _batch_and_loss() -> dict:
    return {
        "padding": {"yes": True, "no": False}.get(_choice(
            "Padding", PADDING, "padding", help="A batch with padding has a mask; without one, attention runs as flash attention.",
        )),
        "attention": _choice("Attention", ATTENTION, "attention", help="Which of transformers' implementations computes it."),
        "padding_free": st.toggle(
            "Packed", **bound("padding-free"),
            help="All sequences of the batch in one row, none padded (packing, padding_free).",
        ),
        "loss": st.selectbox(
            "Loss", list(LOSSES), **bound("loss", LOSSES.get),
            help="Of a causal model. A fused one never holds all logits.",
        ),
        "preference": _choice(
            "Preferences", {"usual": "no", **PREFERENCES}, "preference",
            help="Training on pairs: both go through the model, and without gradients through a reference. A batch is of pairs.",
        ),
        "gradient_accumulation": int(st.number_input(
            "Micro-batches a step", 1, 4096, 1, **bound("accumulation"),
            help="Gradient accumulation: gradients live from the first micro-batch to the optimizer's step.",
        )),
        "dropout": st.number_input(
            "Dropout of the adapter", 0.0, 0.95, 0.0, step=0.05, **bound("dropout"),
            help="Its mask is kept for the backward pass: a byte for each number that enters an adapter.",
        ),
    }  # fmt: skip


def _loop() -> dict:
    return {
        "mixed_precision": st.toggle(
            "Mixed precision", **bound("mixed-precision"),
            help="torch.autocast in bfloat16, as Trainer's bf16=True; makes sense where the weights are float32.",
        ),
        "keep_logits": st.toggle(
            "Outputs are kept", **bound("keep-logits"),
            help="The training loop holds the model's outputs during the backward pass. Trainer does not; loops of one's own often do.",
        ),
        "use_cache": st.toggle(
            "Key-value cache", **bound("use-cache"),
            help="The model builds its cache in training too. Trainer switches it off (use_cache=False).",
        ),
        "empty_cache": st.toggle(
            "Cache is emptied", **bound("empty-cache"),
            help="The loop gives PyTorch's unused memory back after a step (torch_empty_cache_steps).",
        ),
    }  # fmt: skip


def _lightened() -> dict:
    return {
        "expandable_segments": st.toggle(
            "Expandable segments", **bound("expandable-segments"),
            help="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: less is held in vain.",
        ),
        "offload_optimizer": st.toggle(
            "Optimizer on the CPU", **bound("offload-optimizer"), help="Its states and its step.",
        ),
        "offload_activations": st.toggle(
            "Activations on the CPU", **bound("offload-activations"),
            help="What is saved for the backward pass waits there (TRL's activation_offloading).",
        ),
        "full_trace": st.toggle(
            "Trace every layer", **bound("full-trace"),
            help="Instead of repeating a recorded one: the same figures but for plans whose ranks differ from layer to layer; takes seconds.",
        ),
    }  # fmt: skip


def _arguments() -> dict:
    said = st.text_input(
        "Its arguments", "", placeholder="rank=64, update_proj_gap=200", **bound("optim-args"),
        help="TrainingArguments.optim_args of the optimizer chosen above: pairs with commas between them. Empty: transformers' own.",
    )  # fmt: skip
    return {"optim_args": said.strip()}


def _four_bits() -> dict:
    return {
        "double_quantization": st.toggle(
            "Double quantisation", value=True, **bound("double-quantization"),
            help="The constants of the 4-bit weights are quantised too: 0.4 bits a weight less.",
        ),
        "kbit_prepared": st.toggle(
            "Prepared for k-bit training", **bound("kbit-prepared"),
            help="PEFT's prepare_model_for_kbit_training: what is not quantised is cast to float32.",
        ),
    }  # fmt: skip


def _evaluation() -> dict:
    batch, kept = st.columns(2, vertical_alignment="bottom")
    sequences = batch.number_input(
        "Sequences an evaluation step", 1, 4096, None, placeholder="no evaluation", **bound("eval-batch"),
        help="per_device_eval_batch_size of an evaluation between training steps (eval_strategy). Empty: there is none.",
    )  # fmt: skip
    if sequences is None:
        return {}
    waiting = kept.number_input(
        "Predictions that wait", 0, 1_000_000, 0, **bound("eval-predictions"),
        help="Sequences whose logits stay on the GPU: with compute_metrics all of the set, or eval_accumulation_steps batches.",
    )  # fmt: skip
    return {"eval_batch": int(sequences), "eval_predictions": int(waiting)}


def _gpus() -> dict:
    gpus, sharding = st.columns(2)
    number = int(gpus.number_input("GPUs", 1, 4096, 1, **bound("gpus"), help="Figures are for one of them."))
    if number == 1:
        return {"gpus": number}
    return {"gpus": number, "sharding": sharding.selectbox("Spread by", list(SHARDINGS), **bound("sharding", SHARDINGS.get))}


def _trust(checkpoint: Checkpoint) -> dict:
    """Asked only where nothing else builds the model, off each time: no state is kept beyond this page and this model."""
    if not needs_code(checkpoint.config):
        return {}
    st.warning(
        "transformers does not know this architecture: building it means running the Python files in the model's folder, as you, "
        "with access to your files and network. Read them first, or be sure who wrote them.",
        icon=":material/warning:",
    )
    return {"trust_remote_code": st.toggle("Run this model's own code", key=f"trust-{checkpoint.fingerprint[:16]}")}
