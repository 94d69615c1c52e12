"""What `LoraXSConfig` adapts when it names no targets: the same layers as the workbench's ``paper``, found in the model in memory."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_core.errors import AdapterError
from loraxs_core.inventory import TensorInfo, inventory
from loraxs_core.targets import is_paper_role, shortest_patterns


def paper_targets(model: nn.Module) -> list[str]:
    """PEFT's ``target_modules`` for what the paper adapts in this architecture (see `loraxs_core.targets.select_targets`).

    Adapters that are on it already do not count as layers. Raises AdapterError where there is no attention or MLP layer.
    """
    config = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    if own := settings.get("loraxs_targets"):
        return list(own)
    shapes = _matrices(model)
    weights = inventory({f"{name}.weight": TensorInfo(shape, "float32") for name, shape in shapes.items()}, settings)
    wanted = [
        weight.name
        for weight in weights
        if weight.name in shapes and weight.is_adaptable and is_paper_role(weight.role, settings.get("model_type", ""))
    ]
    if not wanted:
        raise AdapterError(
            f"{type(model).__name__} has no layer that is known for attention or MLP, so LoRA-XS cannot tell what to adapt; name "
            "target_modules in LoraXSConfig."
        )
    return shortest_patterns(wanted, shapes)


def _matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Module path -> shape as stored, of every linear layer; a quantised one has the shape of what it stands for."""
    found: dict[str, tuple[int, int]] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{name}.")
            module = module.get_base_layer()
        if isinstance(module, Conv1D):
            found[name] = tuple(module.weight.shape)
        elif isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
    return found
