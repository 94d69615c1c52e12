"""LoRA-SB's start of a LoRA-XS adapter (arXiv 2411.19557): A and B from the first update that a full fine-tune would make.

The update is approximated as AdamW's first step, ``-step * sign(g)``, g the gradient of W0 summed over some batches. Its truncated SVD
``U S V^T`` gives ``B = U``, ``A = V^T`` and ``R = S / scaling``, so that the adapter begins where that step, at rank r, leads. Trained is R
alone, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from peft.utils.other import transpose
from torch import nn

from loraxs_core.errors import AdapterError
from loraxs_core.svd import truncated_svd
from loraxs_core.tuner.layer import LoraXSLayer


def start_from_gradients(
    model: nn.Module, losses: Callable[[], Iterable[torch.Tensor]], step: float, adapter_name: str = "default"
) -> None:
    """Gives the LoRA-XS adapter `adapter_name` on `model` the start of LoRA-SB. In place; the base weights stay as they are.

    losses: gives the loss of one batch after the other, each computed when it is asked for, on `model` or on something around it. step: the
    learning rate of training's first step. Nothing is left out by chance meanwhile (the model is in evaluation mode), and the adapter does
    nothing. The sum of the gradients of all adapted weights is held on the CPU in float32; one batch's are let go layer by layer. The
    configuration has to say ``save_bases=True``, because no SVD of the base weights gives A and B again. Where its ``start_follows`` was set
    before the adapter was put on the model, the weights' own SVD, which nothing would use, is not computed.

    Raises AdapterError where that is not so, for a weight that takes no gradient (quantised), or one that the losses do not reach.
    """
    layers = {name: layer for name, layer in model.named_modules() if _has(layer, adapter_name)}
    if not layers:
        raise AdapterError(f"There is no LoRA-XS adapter {adapter_name!r} to start from gradients.")
    config = next(iter(layers.values())).adapter_set[adapter_name].config
    if not config.save_bases:
        raise AdapterError("A start from gradients needs LoraXSConfig(save_bases=True): A and B have to be saved with R.")
    training = model.training
    model.eval()
    for layer in layers.values():
        layer.loraxs_R[adapter_name].data.zero_()
    try:
        with _gradients(layers) as summed:
            for loss in losses():
                loss.backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    if missed := [name for name in layers if name not in summed]:
        raise AdapterError(
            f"The loss does not reach {missed[0]} ({len(missed)} of {len(layers)} adapted layers); leave them out."
        )
    for name, layer in layers.items():
        _start(layer, adapter_name, transpose(summed.pop(name), layer.fan_in_fan_out), step, name)
    config.start_follows = False


def _has(module: nn.Module, adapter_name: str) -> bool:
    return isinstance(module, LoraXSLayer) and adapter_name in module.loraxs_R


@contextmanager
def _gradients(layers: dict[str, LoraXSLayer]) -> Iterator[dict[str, torch.Tensor]]:
    """Inside the block, every backward pass adds the gradients of the base weights to what is given: name -> sum, on the CPU in float32."""
    summed: dict[str, torch.Tensor] = {}
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    for name, weight in weights.items():
        if not weight.is_floating_point() or layers[name].quantization_backend is not None or weight.device.type == "meta":
            raise AdapterError(
                f"{name} takes no gradient, because its weight is quantised or elsewhere; start from the SVD instead."
            )
    before = {name: weight.requires_grad for name, weight in weights.items()}

    def taker(name: str) -> Callable[[torch.Tensor], None]:
        def take(weight: torch.Tensor) -> None:
            gradient = weight.grad.to("cpu", torch.float32)
            summed[name] = summed[name].add_(gradient) if name in summed else gradient.clone()
            weight.grad = None

        return take

    hooks = [weight.requires_grad_(True).register_post_accumulate_grad_hook(taker(name)) for name, weight in weights.items()]
    try:
        yield summed
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in weights.items():
            weight.requires_grad_(before[name])


def _start(layer: LoraXSLayer, adapter_name: str, gradient: torch.Tensor, step: float, name: str) -> None:
    """gradient: (out, in) of W0."""
    if not torch.isfinite(gradient).all():
        raise AdapterError(f"The gradient of {name} is not finite; the first update of a full fine-tune is not known.")
    update = gradient.sign_().mul_(-step).numpy()
    U, S, Vt = (torch.from_numpy(part.copy()) for part in truncated_svd(update, layer.r[adapter_name], name=name))
    layer.adopt(adapter_name, Vt, U)
    R = layer.loraxs_R[adapter_name]
    R.data.copy_(torch.diag(S / layer.scaling[adapter_name]))
