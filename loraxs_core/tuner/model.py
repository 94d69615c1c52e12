"""LoRA-XS as a PEFT tuner: which modules get which layer, what is saved, what is checked when it is loaded."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psutil
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from loraxs_core.adapter_names import PREFIX, without_wrappers
from loraxs_core.errors import AdapterError
from loraxs_core.tuner.combining import combine, combined_config, copy_whole_modules, refuse_combination, refuse_unknown
from loraxs_core.tuner.config import LoraXSConfig
from loraxs_core.tuner.cores import refuse_name
from loraxs_core.tuner.kinds import Embedding, Linear
from loraxs_core.tuner.layer import LoraXSLayer
from loraxs_core.tuner.mixed_batch import BASE, Mixture
from loraxs_core.tuner.placed import Placed, where_to_look
from loraxs_core.tuner.portable import AdapterSet
from loraxs_core.tuner.targets import paper_targets


class LoraXSModel(BaseTuner):
    """A model with LoRA-XS layers (arXiv 2405.17604).

    Args: as every PEFT tuner: model, config, adapter_name, low_cpu_mem_usage.

    >>> from transformers import BertConfig, BertModel
    >>> from peft import get_peft_model
    >>> from loraxs_core.tuner import LoraXSConfig
    >>> tiny = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=40)
    >>> model = get_peft_model(BertModel(tiny), LoraXSConfig(r=4))
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
    64
    """

    prefix: str = "loraxs_"
    tuner_layer_cls = LoraXSLayer

    def _prepare_adapter_config(self, peft_config: LoraXSConfig, model_config: dict) -> LoraXSConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(paper_targets(self.model))
        return peft_config

    def _create_and_replace(
        self,
        peft_config: LoraXSConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, LoraXSLayer):
            target.update_layer(adapter_name, config=peft_config, inference_mode=adapter_name not in self.active_adapters)
            return
        extra: dict[str, Any] = {}
        with suppress(AttributeError):  # torchao needs it to quantise again after a merge
            path = operator.attrgetter("hf_quantizer.quantization_config.get_apply_tensor_subclass")
            extra["get_apply_tensor_subclass"] = path(self.model)
        new = self._new_layer(peft_config, adapter_name, target, current_key, **extra)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    @staticmethod
    def _new_layer(config: LoraXSConfig, adapter_name: str, target: nn.Module, name: str, **extra: Any) -> nn.Module:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(base, nn.Embedding):
            return Embedding(target, adapter_name, name, config=config, **extra)
        if isinstance(base, Conv1D):
            config.fan_in_fan_out = True
            return Linear(target, adapter_name, name, config=config, fan_in_fan_out=True, **extra)
        if isinstance(base, nn.Linear):
            return Linear(target, adapter_name, name, config=config, fan_in_fan_out=False, **extra)
        raise AdapterError(
            f"{name} is a {type(base).__name__}; LoRA-XS adapts nn.Linear, transformers' Conv1D and nn.Embedding. "
            "Leave it out of target_modules."
        )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # A module saved whole takes its place back as it is. PEFT would read the `weight` of it, which a head of several
            # layers, such as RoBERTa's, does not have.
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)
            if isinstance(new_module, LoraXSLayer):
                for adapter_name, config in [*new_module.awaiting_file.items()]:
                    new_module.await_file(adapter_name, config)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        refuse_name(adapter_name)
        sought = where_to_look(config)
        beside = None if args or any(kwargs.values()) else self._layers_by_targets.get(sought)
        if beside is not None:
            layers = beside.add(adapter_name, config, active=adapter_name in self.active_adapters)
        else:
            with _nothing_left_of(model, adapter_name):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            layers = [one for one in model.modules() if isinstance(one, LoraXSLayer) and adapter_name in one.r]
        if not config.inference_mode:
            _refuse_tied(layers)
        if config.revision is None:  # the bases are those of one commit
            config.revision = getattr(getattr(model, "config", None), "_commit_hash", None)
        _build_all(layers)
        self.adapter_sets[adapter_name] = AdapterSet.bind(model, adapter_name, config, layers)
        if beside is None:
            if sought is not None:
                self._layers_by_targets[sought] = Placed(layers, config)
            _keep_out_of_ddp(model, self.prefix)

    # What is known of the adapters; made when first asked for, because PEFT injects the first adapter before there is an `__init__` of ours.
    @property
    def adapter_sets(self) -> dict[str, AdapterSet]:
        return self.__dict__.setdefault("_adapter_sets", {})

    @property
    def _layers_by_targets(self) -> dict[Hashable, Placed]:
        return self.__dict__.setdefault("_placed", {})

    def knows_places_of(self, sought: Hashable | None) -> bool:
        """Whether there are layers already for a configuration that looks in the same places (`where_to_look`)."""
        return sought in self._layers_by_targets

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter out. One that is not active leaves its own layers and nothing else is looked at."""
        shared = self.adapter_sets.pop(adapter_name, None)
        config = self.peft_config.get(adapter_name)
        if shared is None or config is None or config.modules_to_save or adapter_name in self.active_adapters:
            super().delete_adapter(adapter_name)
            return
        if any(adapter_name in layer.merged_adapters for layer in shared.layers.values()):
            raise ValueError(f"Cannot delete adapter(s) ['{adapter_name}'] while they are merged. Please unmerge them first.")
        del self.peft_config[adapter_name]
        for layer in shared.layers.values():
            layer.delete_adapter(adapter_name)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's. Raises AdapterError for an adapter that there is none of, where PEFT merges nothing."""
        self._refuse_unknown(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """As PEFT's. Raises AdapterError for an adapter that there is none of, where PEFT takes all out and merges nothing."""
        self._refuse_unknown(adapter_names)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _refuse_unknown(self, adapter_names: list[str] | None) -> None:
        if isinstance(adapter_names, list):  # anything else is PEFT's to refuse
            refuse_unknown(self.peft_config, adapter_names)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Holds R in float32, or, where that is not wanted, in the 16 bits of the base's weights or of the adapter's file."""
        if adapter_name in self.adapter_sets:
            for layer in self.adapter_sets[adapter_name].layers.values():
                layer.hold_core(adapter_name, self.peft_config[adapter_name], single=autocast_adapter_dtype)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: LoraXSConfig, adapter_name: str, state_dict: dict, unwanted_adapter_names: list[str]
    ) -> dict:
        entries = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        # PEFT goes by the paths of modules, which FSDP around a single layer lengthens and the keys of its state dict do not show.
        endings = (f".loraxs_R.{adapter_name}", f".loraxs_proof.{adapter_name}")
        entries = entries | {key: value for key, value in state_dict.items() if key.endswith(endings)}
        return AdapterSet.of(model, adapter_name).to_save(entries, state_dict, model)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: LoraXSConfig, adapter_name: str, state_dict: dict
    ) -> dict:
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        # PEFT goes by the model's own keys, into which wrappers put themselves (a compiled base: `_orig_mod`).
        places = {without_wrappers(key): key for key in model.state_dict()}
        loaded = AdapterSet.of(model, adapter_name).from_file(remapped, model, places)
        # PEFT takes its prefix off where no parameter's name begins with it. FSDP puts itself before it, and not into its keys.
        hidden = not any(name.startswith(PREFIX) for name, _ in model.named_parameters())
        return {
            PREFIX + key if hidden and key in places and key.startswith(PREFIX) else key: one for key, one in loaded.items()
        }

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any):
        """Hands ``adapter_names`` (one per sample) to every layer for the time of one forward or generate call."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted(set(adapter_names) - self.peft_config.keys() - {BASE})
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        for name in set(adapter_names) - {BASE}:
            self.adapter_sets[name].check()
        copies = _copies_of_each_sample(kwargs)
        encoder = self.model.get_encoder() if copies > 1 and hasattr(self.model, "get_encoder") else None
        # Generation repeats every sample for the decoder, not for an encoder.
        once = set() if encoder is None or encoder is self.model else set(encoder.modules())
        given = Mixture(adapter_names)
        repeated = given if copies == 1 else Mixture([name for name in adapter_names for _ in range(copies)])
        handles = []
        for module in self.modules():
            mixture = given if module in once else repeated
            if isinstance(module, LoraXSLayer):
                hook = partial(_pass_names, adapter_names=mixture)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                hook = partial(_pass_names, adapter_names=_with_modules_here(module, mixture.names))
            else:
                continue
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "linear",
        *,
        density: float | None = None,
        majority_sign_method: str = "total",
        **of_svd: Any,
    ) -> None:
        """A new adapter that combines `adapters`, as PEFT's LoRA has it. It has the first one's configuration, with every module that
        any of them adapts.

        combination_type: ``linear`` (``cat`` and ``svd`` are the same here) is the weighted sum of their dW, exact, because they share A
        and B: R_new = sum of weight * scaling * R / scaling_new. ``ties``, ``dare_linear``, ``dare_ties`` and ``magnitude_prune`` work
        on the scaled R as PEFT's do on LoRA's factors; they need `density`, the share of numbers to keep. of_svd: what steers an SVD for
        LoRA; refused, since there is none.

        Raises AdapterError when an adapter is unknown, or when they differ in vectors or sigma in some module, or have bases
        of their own (turned to match another machine's), since their sum then has no R; and when several have modules trained whole.
        """
        settings = combination_type, density, majority_sign_method
        refuse_combination(self.peft_config, adapters, weights, adapter_name, *settings, of_svd)
        layers = {name: module for name, module in self.model.named_modules() if isinstance(module, LoraXSLayer)}
        self.peft_config[adapter_name] = combined_config(layers, adapters, self.peft_config)
        self.inject_adapter(self.model, adapter_name)
        copy_whole_modules(self.model, adapters, adapter_name)
        for layer in layers.values():
            if adapter_name in layer.r:
                combine(layer, adapter_name, adapters, weights, *settings)


@contextmanager
def _nothing_left_of(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Takes an adapter out of the layers that have it already when a later one cannot have it."""
    try:
        yield
    except Exception:
        for layer in model.modules():
            if isinstance(layer, LoraXSLayer) and layer.active_adapters != [adapter_name]:
                layer.awaiting_bases = None
                layer.delete_adapter(adapter_name)
        raise


def _refuse_tied(layers: list[LoraXSLayer]) -> None:
    """Raises AdapterError when two layers of an adapter to be trained share one weight: no merged weight could serve both."""
    owner: dict[int, str] = {}
    for layer in layers:
        first = owner.setdefault(id(layer.get_base_layer().weight), layer.module_name)
        if first != layer.module_name:
            raise AdapterError(
                f"{first} and {layer.module_name} share one weight (tied), and both are targets: what they learn could never be "
                "merged or exported. Leave one of them out of target_modules, or untie them (tie_word_embeddings=False)."
            )


def _keep_out_of_ddp(model: nn.Module, prefix: str) -> None:
    """A and B are the same in every process; DistributedDataParallel need not send them with every step."""
    names = [name for name, _ in model.named_buffers() if f".{prefix}" in name]
    model._ddp_params_and_buffers_to_ignore = names + [f"base_model.model.{name}" for name in names]


def _build_all(layers: list[LoraXSLayer]) -> None:
    """Builds the bases that `layers` wait for, one matrix a core: BLAS gains less from threads of its own (spectra benchmark).

    Shows a progress bar when it takes long. As many at once as fit into half of the free memory.
    """
    for layer in layers:
        if not layer.needs_bases:
            layer.build_bases()
    waiting = [layer for layer in layers if layer.needs_bases]
    if not waiting:
        return
    # Largest first, so that no core is left with a large one at the end. An SVD in float64 holds about four copies.
    waiting.sort(key=lambda layer: math.prod(layer.weight_shape), reverse=True)
    need = 4 * 8 * math.prod(waiting[0].weight_shape)
    workers = max(
        1, min(len(waiting), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )
    workers = max(1, min(workers, int(psutil.virtual_memory().available / 2 // need)))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(layer.build_bases) for layer in waiting]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="SVD of base weights", delay=5):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copies_of_each_sample(generation: dict) -> int:
    """How many rows of a batch generate makes of one sample, by the arguments it is called with."""
    settings = generation.get("generation_config")
    wanted = [generation.get(name) or getattr(settings, name, None) or 1 for name in ("num_beams", "num_return_sequences")]
    return max(wanted)


def _with_modules_here(module: AuxiliaryTrainingWrapper, names: list[str]) -> list[str]:
    """`names` of a batch for a module saved whole: an adapter that has none of its own here uses the base's, where PEFT has a KeyError."""
    return [name if name in module._adapters else BASE for name in names]


def _pass_names(module: nn.Module, args: tuple, kwargs: dict, adapter_names: Mixture | list[str]) -> tuple[tuple, dict]:
    kwargs["adapter_names"] = adapter_names
    return args, kwargs
