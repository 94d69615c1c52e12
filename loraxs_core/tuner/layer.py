"""LoRA-XS on one module: ``W = W0 + scaling * B R A``.

A (r x in) and B (out x r) are buffers made from W0 and never trained or saved; R (r x r) is the only parameter, kept in float32 whatever the base's precision.
The forward is written as three products through the r-dimensional space, so that autograd keeps only ``x A^T`` for the backward
pass: the input itself is needed for no gradient, because A is frozen.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from peft.utils.other import transpose
from torch import nn

from loraxs_core.bases import GROUP_GAP, Bases, bases
from loraxs_core.errors import AdapterError
from loraxs_core.proof import Fingerprint, fingerprint
from loraxs_core.tuner.config import LoraXSConfig


class LoraXSLayer(BaseTunerLayer, nn.Module):
    """What every LoRA-XS layer holds, keyed by adapter name.

    loraxs_R: the trained matrices. loraxs_A, loraxs_B: the frozen ones, keyed by what they were made from, because adapters of
    one weight share them: the first r rows of A and columns of B belong to an adapter of rank r. loraxs_proof: on one layer of
    an adapter, what its file says about all its bases (`loraxs_core.tuner.portable`).
    """

    adapter_layer_names = ("loraxs_R",)
    other_param_names = ("r", "scaling", "sigma", "basis_key", "loraxs_dropout", "loraxs_proof", "trained_with", "adapter_set")

    def __init__(self, base_layer: nn.Module, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.module_name = name
        self.loraxs_R = nn.ParameterDict({})
        self.loraxs_A = BufferDict({}, persistent=False)
        self.loraxs_B = BufferDict({}, persistent=False)
        self.loraxs_proof = BufferDict({}, persistent=True)
        self.loraxs_dropout = nn.ModuleDict({})
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.sigma: dict[str, str] = {}
        self.basis_key: dict[str, str] = {}
        self.trained_with: dict[str, Fingerprint] = {}  # of the bases, for the proof
        self.adapter_set: dict[str, Any] = {}  # the `AdapterSet` that the adapter's layers share
        self.awaiting_bases: tuple[str, LoraXSConfig] | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.kwargs = kwargs
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.fan_in_fan_out = False

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(out, in) of W0; (number of embeddings, width) of an embedding table."""
        return self.out_features, self.in_features

    def base_matrix(self) -> torch.Tensor:
        """W0 (out x in) as the base layer computes with it: dequantised, and turned where it is stored (in, out).

        Raises AdapterError while an adapter is merged into it.
        """
        if self.merged:
            raise AdapterError(f"{self.module_name} has an adapter merged into its weight; unmerge it first.")
        return transpose(self.get_base_weight().detach(), self.fan_in_fan_out)

    def update_layer(self, adapter_name: str, *, config: LoraXSConfig, inference_mode: bool = False) -> None:
        """Adds the adapter `adapter_name` and draws R; A and B follow in `build_bases`.

        Raises AdapterError when the rank exceeds min(out, in).
        """
        if self.merged:
            raise AdapterError(f"{self.module_name} has an adapter merged into its weight; unmerge it before adding another.")
        r, full = config.rank_of(self.module_name), min(self.weight_shape)
        if r > full:
            out, into = self.weight_shape
            raise AdapterError(f"{self.module_name} is {out}x{into}, so its LoRA-XS rank can be at most {full}, not {r}.")
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.scaling_of(self.module_name)
        self.sigma[adapter_name] = config.sigma
        self.loraxs_dropout[adapter_name] = nn.Dropout(p=config.dropout) if config.dropout else nn.Identity()
        device, dtype = self._place()
        self.awaiting_bases = adapter_name, config  # built by `LoraXSModel.inject_adapter`, all layers side by side
        std = config.init_std if config.init_weights else 1 / math.sqrt(r)
        R = torch.zeros(r, r, dtype=_core_dtype(dtype), device=device)
        self.loraxs_R[adapter_name] = nn.Parameter(R.normal_(0.0, std) if device.type != "meta" else R)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

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
        device, dtype = self._place()
        r, (out, into) = self.r[adapter_name], self.weight_shape
        # The first rows of a larger ``top`` basis are the smaller one; other choices depend on the rank.
        variant = {"top": "", "random": f"-{r}-{config.seed}"}.get(config.vectors, f"-{r}")
        key = f"{config.vectors}{variant}-{config.sigma}"
        self.basis_key[adapter_name] = key
        if self.get_base_layer().weight.device.type == "meta":
            if key not in self.loraxs_A or self.loraxs_A[key].shape[0] < r:
                self.loraxs_A[key] = torch.empty(r, into, dtype=dtype, device="meta")
                self.loraxs_B[key] = torch.empty(out, r, dtype=dtype, device="meta")
            return
        sharing = [known for other, known in self.trained_with.items() if self.basis_key[other] == key and len(known.S) >= r]
        if sharing:
            self.trained_with[adapter_name] = sharing[0].head(r)
            return
        found = self.rebuild(config, r)
        self.trained_with[adapter_name] = fingerprint(found)
        self._hold(key, found, config.sigma, device, dtype)

    def rebuild(self, config: LoraXSConfig, r: int, columns: int | None = None, gap: float = GROUP_GAP) -> Bases:
        """The bases of this weight for rank `r`, from the weight or the disk cache. Arguments as for `bases`."""
        matrix = self.base_matrix().to(device="cpu", dtype=torch.float32).numpy()
        return bases(
            matrix, r, vectors=config.vectors, seed=config.seed, name=self.module_name, columns=columns, gap=gap,
            model=config.base_model_name_or_path or "",
        )  # fmt: skip

    def _hold(self, key: str, found: Bases, sigma: str, device: torch.device, dtype: torch.dtype) -> None:
        A, B = found.pair(sigma)
        self.loraxs_A[key] = torch.from_numpy(A).to(device=device, dtype=dtype).contiguous()
        self.loraxs_B[key] = torch.from_numpy(B).to(device=device, dtype=dtype).contiguous()

    def use_bases(self, adapter_name: str, found: Bases, known: Fingerprint) -> None:
        """Gives one adapter bases of its own, as they were where it was trained (turned or flipped against the others').

        known: their fingerprint there, which goes on being what a file of this adapter says.
        """
        device, dtype = self._place()
        old = self.basis_key[adapter_name]
        self.basis_key[adapter_name] = f"own-{adapter_name}"
        self.trained_with[adapter_name] = known
        self._hold(self.basis_key[adapter_name], found, self.sigma[adapter_name], device, dtype)
        self._forget_basis(old)

    def _forget_basis(self, key: str) -> None:
        if key in self.loraxs_A and key not in self.basis_key.values():
            del self.loraxs_A[key]
            del self.loraxs_B[key]

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
        if adapter_name in self.loraxs_R and self.loraxs_R[adapter_name].device.type != "meta":
            place, dtype = self._place()
            target = device or place
            if target.type != "meta":
                self.loraxs_R[adapter_name].data = self.loraxs_R[adapter_name].data.to(target, _core_dtype(dtype))

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
            if adapter not in self.loraxs_R:
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
                    f"NaN or infinities appeared while merging adapter {adapter} into {self.module_name}; it seems to be broken."
                )
            self.set_base_weight(merged.to(weight.dtype))
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Takes every merged dW out of the base weight again (up to the rounding of the base's precision)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", UserWarning, stacklevel=2)
            return
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.loraxs_R:
                weight = self.get_base_weight()
                plain = weight.to(_core_dtype(weight.dtype)) - self.get_delta_weight(adapter)
                self.set_base_weight(plain.to(weight.dtype))

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
        for shared in list(self.adapter_set.values()):
            shared.check(loading=True)

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
        active = [adapter for adapter in self.active_adapters if adapter in self.loraxs_R]
        if active and self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        dtype = result.dtype
        for adapter in active:
            result = result + self._update(adapter, x).to(dtype)
        return result

    def _mixed_batch(self, x: torch.Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Each sample through the adapter named for it; ``__base__`` and adapters without this module leave it alone."""
        if len(x) != len(adapter_names):
            raise ValueError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(adapter_names)} and "
                f"{len(x)} respectively."
            )
        if self.merged:
            raise ValueError("Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first.")
        result = self.base_layer(x, *args, **kwargs)
        rows: dict[str, list[int]] = {}
        for index, adapter in enumerate(adapter_names):
            rows.setdefault(adapter, []).append(index)
        for adapter, indices in rows.items():
            if adapter in self.loraxs_R:
                where = torch.tensor(indices, device=result.device)
                result = result.index_add(0, where, self._update(adapter, x[where.to(x.device)]).to(result.dtype))
        return result

    def _update(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """What the adapter adds for input `x`."""
        raise NotImplementedError

    def _through_core(self, adapter_name: str, inner: torch.Tensor) -> torch.Tensor:
        """``inner @ (scaling R)^T`` with R in float32. inner (…, r) is all that autograd keeps."""
        R = self.loraxs_R[adapter_name]
        return F.linear(self._cast_input_dtype(inner, R.dtype), R * self.scaling[adapter_name])

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


def _core_dtype(base: torch.dtype) -> torch.dtype:
    """The precision of R: float32 on any base but a float64 one."""
    return torch.float64 if base == torch.float64 else torch.float32


class Linear(LoraXSLayer):
    """LoRA-XS on nn.Linear, transformers' Conv1D, and their quantised kin."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, name: str, *, config: LoraXSConfig, fan_in_fan_out: bool, **kwargs: Any
    ) -> None:
        super().__init__(base_layer, name, **kwargs)
        self.fan_in_fan_out = fan_in_fan_out
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def _update(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        self._check_eager(adapter_name)
        A, B = self.frozen(adapter_name)
        inner = F.linear(self.loraxs_dropout[adapter_name](self._cast_input_dtype(x, A.dtype)), A)
        return F.linear(self._cast_input_dtype(self._through_core(adapter_name, inner), B.dtype), B)

    def __repr__(self) -> str:
        return "loraxs." + super().__repr__()


class Embedding(LoraXSLayer):
    """LoRA-XS on nn.Embedding: row i of the table gets ``scaling * B[i] R A``."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, name: str, *, config: LoraXSConfig, **kwargs: Any) -> None:
        super().__init__(base_layer, name, **kwargs)
        # PEFT calls the number of rows in_features; here the table is W0 (out x in) as it is stored.
        self.in_features, self.out_features = self.out_features, self.in_features
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def _update(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        self._check_eager(adapter_name)
        A, B = self.frozen(adapter_name)
        rows = F.embedding(x, B)
        R = self.loraxs_R[adapter_name]
        inner = self._cast_input_dtype(rows, R.dtype) @ (R * self.scaling[adapter_name])
        update = self._cast_input_dtype(inner, A.dtype) @ A
        scale = self._get_embed_scale()
        return update if scale is None else update * scale.to(update.dtype)

    def __repr__(self) -> str:
        return "loraxs." + super().__repr__()
