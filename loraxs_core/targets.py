"""Which weights an adapter goes on, and the shortest way to say so to PEFT."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loraxs_core.architecture import as_loaded, module_keys
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import CheckpointError
from loraxs_core.roles import short_name

# What the LoRA-XS paper and its code adapt, by architecture (arXiv 2405.17604): query, value, attention output and output
# dense in RoBERTa; every linear layer of a decoder. DeBERTa-v1 fuses query, key and value.
PAPER_ROLES_ENCODER = {"attention.query", "attention.value", "attention.qkv", "attention.output", "mlp.down"}
ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "vit", "xlm-roberta",
}  # fmt: skip


def is_paper_role(role: str, model_type: str) -> bool:
    """Whether arXiv 2405.17604 adapts an attention or MLP layer of this role in such a model.

    >>> is_paper_role("attention.key", "roberta"), is_paper_role("attention.key", "llama")
    (False, True)
    """
    return model_type not in ENCODERS or role in PAPER_ROLES_ENCODER


def select_targets(checkpoint: Checkpoint, targets: str | Sequence[str] = "paper") -> list[Weight]:
    """The weights an adapter goes on, in the order of the inventory.

    targets: ``paper`` (what arXiv 2405.17604 adapts in this architecture; a config may carry its own list under
    ``loraxs_targets``), ``all-linear`` (every attention and MLP matrix), or module names, suffixes of them (``q_proj``) or
    roles (``mlp.down``), as a list or separated by commas. A suffix matches at a dot, as in PEFT's ``target_modules``.

    They are those of `loraxs_core.architecture.as_loaded`: the modules that transformers makes of the file. Embeddings are taken
    where a name says so. Raises CheckpointError when the model has nothing to adapt, when one of the targets matches nothing, or
    when two matrices that share their numbers are both asked for.
    """
    checkpoint = as_loaded(checkpoint)
    adaptable = [weight for weight in checkpoint.weights if weight.is_adaptable]
    if not adaptable:
        raise CheckpointError(f"{checkpoint.name} has no attention or MLP layer that an adapter could go on.")
    if isinstance(targets, str):
        targets = [part.strip() for part in targets.split(",") if part.strip()]
    targets = list(targets)
    if targets == ["paper"]:
        own = checkpoint.config.get("loraxs_targets")
        if not own:
            return [weight for weight in adaptable if is_paper_role(weight.role, checkpoint.model_type)]
        targets = list(own)
    if targets == ["all-linear"]:
        return adaptable
    if not targets:
        raise CheckpointError("No target modules were given; name some, or use 'paper' or 'all-linear'.")
    candidates = [weight for weight in checkpoint.weights if weight.kind in ("linear", "conv1d", "embedding")]
    chosen: set[str] = set()
    for target in targets:
        found = {weight.name for weight in candidates if _matches(weight, target)}
        if not found:
            leaves = ", ".join(sorted({weight.name.rpartition(".")[2] for weight in adaptable}))
            raise CheckpointError(f"No layer of {checkpoint.name} matches the target {target!r}; its layers end in {leaves}.")
        chosen |= found
    both = next((weight for weight in candidates if weight.name in chosen and weight.tied_to in chosen), None)
    if both:
        raise CheckpointError(
            f"{both.name} and {both.tied_to} of {checkpoint.name} are one matrix (tied): two adapters on it cannot be merged or "
            "exported; take one of them as a target."
        )
    return [weight for weight in candidates if weight.name in chosen]


def target_patterns(checkpoint: Checkpoint, chosen: Collection[Weight]) -> list[str]:
    """PEFT's ``target_modules`` for `chosen`: one suffix for all layers where that matches nothing else, whole names otherwise.

    They are those of the modules in memory, where transformers renames what is on disk, and do not depend on the head the model
    is loaded with.
    """
    keys = module_keys(checkpoint)
    return shortest_patterns([keys[weight.name] for weight in chosen], keys.values())


def shortest_patterns(wanted: Sequence[str], modules: Collection[str]) -> list[str]:
    """PEFT's ``target_modules`` for the modules `wanted`: suffixes that match none of the other `modules`, or whole names.

    >>> shortest_patterns(["h.0.attn.c_proj", "h.1.attn.c_proj"], ["h.0.attn.c_proj", "h.1.attn.c_proj", "h.0.mlp.c_proj"])
    ['attn.c_proj']
    """
    suffixes = {name: short_name(name) for name in wanted}
    # Every end of every other module, so that thousands of layers are looked through once.
    taken = {end for name in modules if name not in suffixes for end in _ends(name)}
    return list(dict.fromkeys(name if suffix in taken else suffix for name, suffix in suffixes.items()))


def _ends(name: str) -> list[str]:
    """`name` and what is left of it after each dot."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _matches(weight: Weight, target: str) -> bool:
    return _is_suffix(weight.name, target) or weight.role == target


def _is_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")
