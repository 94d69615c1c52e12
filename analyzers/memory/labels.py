"""What a block of memory is for, told from when and where it was born."""

from __future__ import annotations

import re

from analyzers.memory.trace import Trace
from loraxs_core.roles import LABELS, role_of

# The parts of a fine-tune's memory, in the order they are shown. They sum to the allocated peak.
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "attention", "loss_head", "temporaries")
PART_MEANING = {
    "weights": "the base model's weights, its constants included",
    "adapters": "everything the method adds, frozen bases and projections included",
    "gradients": "gradients of trained numbers",
    "optimizer": "the optimizer's states",
    "activations": "saved for the backward pass outside of attention: MLP, norms, residual stream",
    "attention": "saved for the backward pass inside attention: queries, keys, values, outputs, masks",
    "loss_head": "logits, their softmax and their gradients; predictions of an evaluation that wait",
    "temporaries": "gradients in flight, kernel workspaces, copies that live for one operation",
}

_ATTENTION = re.compile(r"(?:^|\.)(?:\w*attn|\w*attention|attention\.self)(?:\.|$)", re.IGNORECASE)
_ADAPTER_PART = re.compile(
    r"\.(?:base_layer|original_module|modules_to_save(?:\.\w+)?|\w+_(?:A|B|R|dropout|E|embedding_A)(?:\.\w+)?)$"
)
_LAYER = re.compile(r"^.*?\.\d+\.")


def part_of(phase: str, module: str, roots: frozenset[str]) -> tuple[str, str]:
    """(part, detail) of a block born in `phase` while `module` ran.

    roots: paths of the wrappers around the transformer: what is born in them, outside of every layer, is the loss. detail: the
    module within its layer, as a person would call it.
    """
    if phase == "inputs":
        return "activations", "inputs"
    if phase == "evaluation":
        return "loss_head", "predictions that wait"
    if phase == "loss-backward":
        return "loss_head", "gradients of logits"
    if phase in ("forward", "backward") and (module or phase == "forward"):
        if module in roots:
            return "loss_head", "loss"
        plain = plain_name(module)
        role = role_of(plain)
        if role == "head":
            return "loss_head", "logits"
        return ("attention" if role.startswith("attention.") or _ATTENTION.search(plain) else "activations"), _what(plain)
    return "temporaries", {"backward": "gradients in flight", "clip": "clipping", "optimizer": "optimizer step"}.get(
        phase, phase
    )


def plain_name(module: str) -> str:
    """The base model's name of a module: without PEFT's wrappers and the adapter's own parts."""
    while _ADAPTER_PART.search(module):
        module = _ADAPTER_PART.sub("", module)
    return module.removeprefix("reference.").removeprefix("base_model.model.")


def labels_of(trace: Trace) -> list[tuple[str, str]]:
    """(part, detail) of every block of a recording."""
    known: dict[tuple[str, str], tuple[str, str]] = {}
    result = []
    for number, birth in enumerate(trace.births):
        label = trace.labels.get(number)
        if label is None:
            if birth not in known:
                known[birth] = part_of(*birth, trace.roots)
            result.append(known[birth])
        elif label == "casts":
            result.append(("weights", "copies in the low precision"))
        elif label in ("weights", "adapters"):
            result.append((label, _what(plain_name(birth[1]))))
        else:
            result.append((label, PART_MEANING[label]))
    return result


def _what(module: str) -> str:
    """What a module is, as a person would call it: its role, or its path inside its layer."""
    role = role_of(module)
    return LABELS[role] if role != "other" else _LAYER.sub("", module) or module
