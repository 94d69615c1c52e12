"""A method of the user's own: any configuration that PEFT knows, as its adapter_config.json holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analyzers.methods.method import AdapterSpec, Method
from analyzers.methods.peft_configs import make_config

if TYPE_CHECKING:
    from peft import PeftConfig

FROM_SVD = ("LORAXS", "LORA_XS", "PSOFT", "TINYLORA")
STARTS_FROM_SVD = ("pissa", "olora", "corda", "eva", "loftq")  # what PEFT's init_lora_weights may begin with
STARTS_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of these, what takes the start out of the base weights
GUESS = 1e-3  # the learning rate of a kind that no method here is of


def own_method(name: str, values: Mapping, methods: Mapping[str, Method]) -> Method:
    """The configuration `values` (`peft_configs.plain_config`) as a method called `name`.

    methods: those there are; the nearest of the same kind lends its learning rate. The configuration says ranks and scaling itself, and
    targets where it names any; else they are the comparison's.
    """
    kind, start = str(values["peft_type"]), str(values.get("init_lora_weights", ""))
    like = _nearest(values, methods)
    return Method(
        name,
        name,
        f"A configuration of the user's own, of PEFT's type {kind}.",
        "the user's own",
        like.learning_rate if like else GUESS,
        rate_source=f"{like.label}'s" if like else "a guess",
        causal=like.rate(causal=True) if like else None,
        peft_type=kind,
        ranked=False,
        config=lambda spec: _config(values, spec),
        starts_from_svd=kind in FROM_SVD or start.startswith(STARTS_FROM_SVD),
        starts_from_data=methods["eva"].starts_from_data if start == "eva" else None,
        changes_base=kind == "LORA" and start.startswith(STARTS_FROM_BASE),
        lora_family=kind == "LORA",
    )


def _nearest(values: Mapping, methods: Mapping[str, Method]) -> Method | None:
    if values["peft_type"] == "LORA":
        if str(values.get("init_lora_weights", "")).startswith("pissa"):
            return methods["pissa"]
        return methods["dora" if values.get("use_dora") else "rslora" if values.get("use_rslora") else "lora"]
    return next((one for one in methods.values() if one.peft_type and one.peft_type == values["peft_type"]), None)


def _config(values: Mapping, spec: AdapterSpec) -> PeftConfig:
    whole = [*(values.get("modules_to_save") or ()), *(spec.modules_to_save or ())]
    own: dict[str, object] = {"modules_to_save": list(dict.fromkeys(whole)) or None, "base_model_name_or_path": None}
    if not values.get("target_modules"):
        own["target_modules"] = list(spec.target_modules)
    return make_config(values, spec.task_type or "FEATURE_EXTRACTION", **own)
