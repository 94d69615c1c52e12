"""LoRA-XS on one module: ``W = W0 + scaling * B R A``.

A (r x in) and B (out x r) are buffers made from W0 and never trained or saved; R (r x r) is the only parameter, kept in float32 whatever the base's precision.
The forward is written as three products through the r-dimensional space, so that autograd keeps only ``x A^T`` for the backward
pass: the input itself is needed for no gradient, because A is frozen.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from peft.utils.other import transpose
from torch import nn

from loraxs_core.bases import GROUP_GAP, Bases, bases, identify
from loraxs_core.errors import AdapterError
from loraxs_core.proof import Fingerprint, fingerprint
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.cores import Cores
from loraxs_core.tuner.given import GivenLayer
from loraxs_core.tuner.mixed_layer import MixedLayer
from loraxs_core.tuner.scaling import ScaledLayer


class LoraXSLayer(MixedLayer, ScaledLayer, GivenLayer, BaseTunerLayer, nn.Module):
    """What every LoRA-XS layer holds, keyed by adapter name.

    loraxs_R: the trained matrices. loraxs_A, loraxs_B: the frozen ones, keyed by what they were made from, because adapters of
    one weight share them: the first r rows of A and columns of B belong to an adapter of rank r. loraxs_proof: on one layer of
    an adapter, what its file says about all its bases (`loraxs_core.tuner.portable`).
    """

    adapter_layer_names = ("loraxs_R",)
    other_param_names = (
        "r",
        "scaling",
        "configured_scaling",
        "sigma",
        "basis_key",
        "loraxs_dropout",
        "loraxs_proof",
        "trained_with",
        "adapter_set",
        "awaiting_file",
    )

    def __init__(self, base_layer: nn.Module, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.module_name = name
        self.loraxs_R = Cores({})
        self.loraxs_A = BufferDict({}, persistent=False)
        self.loraxs_B = BufferDict({}, persistent=False)
        self.loraxs_proof = BufferDict({}, persistent=True)
        self.loraxs_dropout = nn.ModuleDict({})
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.configured_scaling: dict[str, float] = {}  # what `scaling` is unless somebody changed it
        self.sigma: dict[str, str] = {}
        self.basis_key: dict[str, str] = {}
        self.trained_with: dict[str, Fingerprint] = {}  # of the bases, for the proof
        self.fingerprints: dict[str, Fingerprint] = {}  # of A and B as they are held here, by what they were made from
        self.adapter_set: dict[str, Any] = {}  # the `AdapterSet` that the adapter's layers share
        self.awaiting_bases: tuple[str, LoraXSConfig] | None = None
        self.awaiting_file: dict[str, LoraXSConfig] = {}
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True  # of the layer's input; R meets numbers of its own precision in any case
        self.merged_adapters: list[str] = []
        self.kwargs = kwargs
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.fan_in_fan_out = False

    @property
    def needs_bases(self) -> bool:
        """Whether the adapter that `update_layer` added last waits for bases that no other adapter here has."""
        if self.awaiting_bases is None:
            return False
        adapter_name, config = self.awaiting_bases
        known = self.fingerprints.get(_basis_key(config, self.r[adapter_name]))
        return known is None or len(known.S) < self.r[adapter_name]

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(out, in) of W0; (number of embeddings, width) of an embedding table."""
        return self.out_features, self.in_features

    def base_matrix(self) -> torch.Tensor:
        """W0 (out x in) as the base layer computes with it: dequantised, and turned where it is stored (in, out).

        While adapters are merged into it, they are taken out of a copy. Raises AdapterError where that does not give the numbers from
        before the merge to the last bit, because bases would come out otherwise.
        """
        weight = self.get_base_weight().detach()
        if not self.merged:
            return transpose(weight, self.fan_in_fan_out)
        plain = transpose(self._without(weight, self.merged_adapters), self.fan_in_fan_out)
        found = identify(plain.to(device="cpu", dtype=torch.float32).numpy())[1]
        if not any(found.same_weight(known.identity) for known in self.fingerprints.values()):
            raise AdapterError(
                f"{self.module_name} has an adapter merged into its weight, which cannot be taken out to the last bit; unmerge it and "
                "load the base again before adding an adapter that needs other bases."
            )
        return plain

    def _without(self, weight: torch.Tensor, merged: list[str]) -> torch.Tensor:
        """`weight` with the dW of adapters taken out, the last merged first."""
        for adapter in reversed(merged):
            if adapter in self.r:
                plain = weight.detach().to(_core_dtype(weight.dtype)) - self.get_delta_weight(adapter).detach()
                weight = plain.to(weight.dtype)
        return weight

    def update_layer(self, adapter_name: str, *, config: LoraXSConfig, inference_mode: bool = False) -> None:
        """Adds the adapter `adapter_name` and draws R; A and B follow in `build_bases`.

        Raises AdapterError when the rank exceeds min(out, in).
        """
        r, full = config.rank_of(self.module_name), min(self.weight_shape)
        if r > full:
            out, into = self.weight_shape
            raise AdapterError(
                f"{self.module_name} is {out}x{into}, so its LoRA-XS rank can be at most {full}, not {r}; give it a smaller one in "
                "rank_pattern, or leave it out with exclude_modules."
            )
        follow = (config.bases_follow or config.start_follows) and adapter_name not in self.loraxs_A
        known = self.fingerprints.get(_basis_key(config, r))
        if self.merged and not follow and (known is None or len(known.S) < r):
            self.base_matrix()  # raises where the weight from before the merge cannot be had again
        self.r[adapter_name] = r
        self.scaling[adapter_name] = self.configured_scaling[adapter_name] = config.scaling_of(self.module_name)
        self.sigma[adapter_name] = config.sigma
        if config.dropout:
            self.loraxs_dropout[adapter_name] = nn.Dropout(p=config.dropout).train(self.training)
        device, dtype = self._place()
        if not follow:
            self.awaiting_bases = adapter_name, config  # built by `LoraXSModel.inject_adapter`, all layers side by side
        std = config.init_std if config.init_weights else 1 / math.sqrt(r)
        R = torch.zeros(r, r, dtype=_core_dtype(dtype), device=device)
        self.loraxs_R[adapter_name] = nn.Parameter(R.normal_(0.0, std) if device.type != "meta" else R)
        self.loraxs_R[adapter_name].requires_grad_(adapter_name in self.active_adapters and not inference_mode)
        if follow:
            self.await_file(adapter_name, config)

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Where A and B live and in which precision: the base layer's own, float32 where that is no float of 16 bits or more."""
        device, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            dtype = torch.float32
        return device or torch.device("cpu"), dtype

    def build_bases(self) -> None:
        """Makes, or shares, A and B of the adapter that `update_layer` added last.

        Raises NonFiniteWeights naming the module when W0 holds NaN or infinities.
        """
        if self.awaiting_bases is None:
            return
        adapter_name, config = self.awaiting_bases
        self.awaiting_bases = None
        r, (out, into) = self.r[adapter_name], self.weight_shape
        key = self.basis_key[adapter_name] = _basis_key(config, r)
        if self.get_base_layer().weight.device.type == "meta":
            _, dtype = self._place()
            if key not in self.loraxs_A or self.loraxs_A[key].shape[0] < r:
                self.loraxs_A[key] = torch.empty(r, into, dtype=dtype, device="meta")
                self.loraxs_B[key] = torch.empty(out, r, dtype=dtype, device="meta")
            return
        known = self.fingerprints.get(key)
        if known is None or len(known.S) < r:
            found = self.rebuild(config, r)
            known = self.fingerprints[key] = fingerprint(found)
            self._hold(key, found, config.sigma)
        self.trained_with[adapter_name] = known.head(r)

    def rebuild(self, config: LoraXSConfig, r: int, columns: int | None = None, gap: float = GROUP_GAP) -> Bases:
        """The bases of this weight for rank `r`, from the weight or the disk cache. Arguments as for `bases`."""
        matrix = self.base_matrix().to(device="cpu", dtype=torch.float32).numpy()
        return bases(
            matrix, r, vectors=config.vectors, seed=config.seed, name=self.module_name, columns=columns, gap=gap,
            model=config.base_model_name_or_path or "",
        )  # fmt: skip

    def _hold(self, key: str, found: Bases, sigma: str) -> None:
        device, dtype = self._place()
        A, B = found.pair(sigma)
        self.loraxs_A[key] = torch.from_numpy(A).to(device=device, dtype=dtype).contiguous()
        self.loraxs_B[key] = torch.from_numpy(B).to(device=device, dtype=dtype).contiguous()

    def set_adapter(
        self, adapter_names: str | list[str], inference_mode: bool = False, *, among: Iterable[str] | None = None
    ) -> None:
        """As PEFT's, which looks at every adapter at length; there may be thousands here. among: the adapters of which some R may want a
        gradient so far, all where that is not known, because anybody may have asked for one at R itself."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        held = self.loraxs_R._parameters
        wanted = set() if inference_mode else held.keys() & set(names)
        asked = list(held) if among is None else {*among, *names}
        trained = {name for name in asked if (R := held.get(name)) is not None and R.requires_grad}
        for name in trained ^ wanted:
            self.loraxs_R[name].requires_grad_(name in wanted)
        self._active_adapter = names

    def frozen(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, B) of an adapter: A (r x in), B (out x r), in the base layer's precision."""
        key, r = self.basis_key[adapter_name], self.r[adapter_name]
        return self.loraxs_A[key][:r], self.loraxs_B[key][:, :r]

    def delete_adapter(self, adapter_name: str) -> None:
        key = self.basis_key.get(adapter_name)
        super().delete_adapter(adapter_name)
        if key is not None:
            self._forget_basis(key)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Moves R to the base layer's device; its precision stays float32 whatever the base's is."""
        if adapter_name in self.r and self.loraxs_R[adapter_name].device.type != "meta":
            place, dtype = self._place()
            target = device or place
            if target.type != "meta":
                self.loraxs_R[adapter_name].data = self.loraxs_R[adapter_name].data.to(target, _core_dtype(dtype))

    def hold_core(self, adapter_name: str, config: LoraXSConfig, *, single: bool) -> None:
        """Holds R in float32 (`single`), or in the base weight's 16 bits, or those that it is stored in."""
        R = self.loraxs_R[adapter_name]
        if R.dtype == torch.float64 or (single and R.dtype == torch.float32):
            return
        _, base = self._place()
        dtype = _core_dtype(base) if single else base if base.itemsize == 2 else getattr(torch, config.save_dtype)
        if R.dtype != dtype:
            self.loraxs_R[adapter_name] = nn.Parameter(R.detach().to(dtype), requires_grad=R.requires_grad)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """``scaling * B R A`` in the layout of the base weight, float32 (float64 for a float64 base)."""
        self.check(adapter_name)
        A, B = self.frozen(adapter_name)
        dtype = _core_dtype(A.dtype)
        R = self.loraxs_R[adapter_name].to(device=A.device, dtype=dtype)
        delta = B.to(dtype) @ (R * self.scaling[adapter_name]) @ A.to(dtype)
        return transpose(delta, self.fan_in_fan_out)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds dW of the adapters (the active ones by default) to the base weight.

        safe_merge: work on a copy and refuse a result with NaN or infinities. Raises ValueError naming the module then.
        """
        for adapter in check_adapters_to_merge(self, adapter_names) or []:
            if adapter not in self.r:
                continue
            if self.quantization_backend is not None:
                warnings.warn(
                    f"Merging into the {self.quantization_backend.backend_name} weight of {self.module_name} rounds it again; the "
                    "merged model, and the model after unmerging, differ from this one by that rounding.",
                    UserWarning,
                    stacklevel=2,
                )
            weight = self.get_base_weight()
            merged = weight.to(_core_dtype(weight.dtype)) + self.get_delta_weight(adapter)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken (in {self.module_name})"
                )
            self.set_base_weight(merged.to(weight.dtype))
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Takes every merged dW out of the base weight again (up to the rounding of the base's precision)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", UserWarning, stacklevel=2)
            return
        weight = self._without(self.get_base_weight(), self.merged_adapters)
        self.merged_adapters.clear()
        self.set_base_weight(weight)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def check(self, adapter_name: str) -> None:
        """Verifies the adapter's bases if a proof arrived with its weights and has not been looked at yet."""
        if adapter_name in self.adapter_set:
            self.adapter_set[adapter_name].check()

    def requires_grad_(self, requires_grad: bool = True) -> LoraXSLayer:
        # transformers' load_adapter calls this on every adapter layer once the weights are in, and nothing else of ours.
        self._check_loaded()
        return super().requires_grad_(requires_grad)

    def train(self, mode: bool = True) -> LoraXSLayer:
        # Not even that where the adapter is to be trained (is_trainable=True): this is the next thing that happens to it.
        self._check_loaded()
        return super().train(mode)

    def _check_loaded(self) -> None:
        for adapter_name in list(self.loraxs_proof):  # held by one layer of an adapter, which asks for all of them
            self.adapter_set[adapter_name].check(loading=True)

    def _check_eager(self, adapter_name: str) -> None:
        """For an adapter that transformers put in to be trained and that is used before `train`. Compiled code holds nothing of it: a check
        in its graph would break it at every layer."""
        if not torch.compiler.is_compiling():
            self.check(adapter_name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch(x, adapter_names, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        active = [adapter for adapter in self.active_adapters if adapter in self.r]
        if active and self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        dtype = result.dtype
        for adapter in active:
            result = result + self._update(adapter, x).to(dtype)
        return result

    def _update(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """What the adapter adds for input `x`. ``inner`` (…, r), R in float32 beside it, is all that autograd keeps."""
        self._check_eager(adapter_name)
        A, B = self.frozen(adapter_name)
        if adapter_name in self.loraxs_dropout:
            x = self.loraxs_dropout[adapter_name](x)
        core = self.loraxs_R({adapter_name: self.scaling[adapter_name]})
        inner = self._inside(x, A, B).to(core.dtype)
        return self._outside(F.linear(inner, core if self.core_is_turned else core.mT), A, B)

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


def _basis_key(config: LoraXSConfig, r: int) -> str:
    """What A and B of one weight are made from. The first rows of a larger ``top`` basis are the smaller one; other choices depend on the
    rank."""
    variant = {"top": "", "random": f"-{r}-{config.seed}"}.get(config.vectors, f"-{r}")
    return f"{config.vectors}{variant}-{config.sigma}"


def _core_dtype(base: torch.dtype) -> torch.dtype:
    """The precision of R: float32 on any base but a float64 one."""
    return torch.float64 if base == torch.float64 else torch.float32
