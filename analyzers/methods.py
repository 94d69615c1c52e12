"""The fine-tuning methods the workbench compares: what PEFT calls them, what they need, where their defaults come from.

One registry for sizes, memory and trials alike. Adding a method is adding one entry to `METHODS`. The configuration itself is
always PEFT's own class (ours for LoRA-XS); it is built only when asked for, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraxs_core.errors import SettingsError

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter to be built, in terms that every method understands.

    method: a key of `METHODS`. target_modules: PEFT suffixes or whole module names. rank: the rank of every module.
    ranks: module name -> rank where it differs (PEFT's ``rank_pattern``). alpha_over_r: the scaling, the same in every module;
    None takes the method's own default. task_type: PEFT's, such as ``SEQ_CLS`` or ``CAUSAL_LM``. modules_to_save: trained and
    saved whole. options: further arguments of the method's PEFT configuration.
    """

    method: str
    target_modules: Sequence[str]
    rank: int = 16
    ranks: Mapping[str, int] = field(default_factory=dict)
    alpha_over_r: float | None = None
    dropout: float = 0.0
    task_type: str | None = None
    modules_to_save: Sequence[str] | None = None
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return METHODS[self.method].alpha_over_r if self.alpha_over_r is None else self.alpha_over_r


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    config: makes the PEFT configuration of an `AdapterSpec`; None for methods without an adapter (full, head-only).
    learning_rate: where a search over learning rates starts for this method (docs/compare.md has the search on MiniLM and STS-B;
    ``head-only``: the rate of the head in every method). alpha_over_r: its customary scaling.
    ranked: whether a rank means anything to it. per_layer_ranks: whether it honours ranks that differ between modules.
    source: where method and defaults come from.
    """

    name: str
    label: str
    summary: str
    source: str
    learning_rate: float
    alpha_over_r: float = 1.0
    ranked: bool = True
    per_layer_ranks: bool = False
    default_rank: int = 8
    config: Callable[[AdapterSpec], PeftConfig] | None = None


def method(name: str) -> Method:
    """The method called `name`. Raises SettingsError listing those there are."""
    try:
        return METHODS[name]
    except KeyError:
        raise SettingsError(f"Unknown method {name!r}; there are {', '.join(METHODS)}.") from None


def peft_config(spec: AdapterSpec) -> PeftConfig | None:
    """PEFT's configuration of `spec`; None for methods that add no adapter. Raises SettingsError for an unknown method."""
    build = method(spec.method).config
    return build(spec) if build else None


def _common(spec: AdapterSpec) -> dict:
    return {
        "target_modules": list(spec.target_modules),
        "task_type": spec.task_type,
        "modules_to_save": list(spec.modules_to_save) if spec.modules_to_save else None,
        **spec.options,
    }


def _lora(spec: AdapterSpec, **extra) -> PeftConfig:
    from peft import LoraConfig

    # PEFT keeps alpha when rank_pattern changes the rank; alpha_pattern keeps alpha / r equal instead.
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.scaling * spec.rank,
        lora_dropout=spec.dropout,
        rank_pattern=dict(spec.ranks),
        alpha_pattern={name: spec.scaling * rank for name, rank in spec.ranks.items()},
        **extra,
        **_common(spec),
    )


def _lora_xs(spec: AdapterSpec) -> PeftConfig:
    from loraxs_core.tuner import LoraXSConfig

    return LoraXSConfig(
        r=spec.rank, alpha=spec.scaling * spec.rank, dropout=spec.dropout, rank_pattern=dict(spec.ranks), **_common(spec)
    )


def _vera(spec: AdapterSpec) -> PeftConfig:
    from peft import VeraConfig

    return VeraConfig(
        r=spec.rank, vera_dropout=spec.dropout, projection_prng_key=spec.seed, **{"save_projection": True, **_common(spec)}
    )


def _ia3(spec: AdapterSpec) -> PeftConfig:
    from peft import IA3Config

    common = _common(spec)
    # PEFT wants the feed-forward modules spelt as the targets are, which may be whole names.
    asked = common.pop("feedforward_modules", ())
    feedforward = [
        target for target in common["target_modules"] if any(target == name or target.endswith(f".{name}") for name in asked)
    ]
    return IA3Config(**common, feedforward_modules=feedforward)


def _tinylora(spec: AdapterSpec) -> PeftConfig:
    from peft import TinyLoraConfig

    return TinyLoraConfig(r=spec.rank, **_common(spec))


def _psoft(spec: AdapterSpec) -> PeftConfig:
    from peft import PsoftConfig

    return PsoftConfig(r=spec.rank, psoft_alpha=spec.scaling * spec.rank, psoft_dropout=spec.dropout, **_common(spec))


METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method("full", "Full fine-tune", "Every weight is trained.", "-", 2e-5, ranked=False),
        Method("head-only", "Head only", "The frozen base with a trained head: the control.", "-", 3e-3, ranked=False),
        Method(
            "lora-xs",
            "LoRA-XS",
            "A and B frozen from the SVD of the weight; only the r x r matrix R is trained.",
            "arXiv 2405.17604",
            1e-2,
            per_layer_ranks=True,
            default_rank=16,
            config=_lora_xs,
        ),
        Method("lora", "LoRA", "Trained A and B of rank r.", "arXiv 2106.09685", 2e-3, 2.0, per_layer_ranks=True, config=_lora),
        Method(
            "vera",
            "VeRA",
            "Shared random A and B, two trained vectors a module.",
            "arXiv 2310.11454",
            4e-2,
            default_rank=256,
            config=_vera,
        ),
        Method(
            "rslora",
            "rsLoRA",
            "LoRA scaled by 1/sqrt(r).",
            "arXiv 2312.03732",
            5e-4,
            2.0,
            config=lambda spec: _lora(spec, use_rslora=True),
        ),
        Method(
            "dora",
            "DoRA",
            "LoRA on the direction, a trained magnitude a row.",
            "arXiv 2402.09353",
            5e-4,
            2.0,
            per_layer_ranks=True,
            config=lambda spec: _lora(spec, use_dora=True),
        ),
        Method(
            "pissa",
            "PiSSA",
            "LoRA started from the top singular triples.",
            "arXiv 2404.02948",
            5e-4,
            per_layer_ranks=True,
            config=lambda spec: _lora(spec, init_lora_weights="pissa_niter_16"),
        ),
        Method("ia3", "IA3", "One trained scale a feature.", "arXiv 2205.05638", 3e-3, ranked=False, config=_ia3),
        Method("tinylora", "TinyLoRA", "R as a few trained numbers times fixed matrices.", "PEFT 0.21", 4e-3, config=_tinylora),
        Method("psoft", "PSOFT", "An orthogonal r x r rotation between SVD factors.", "PEFT 0.21", 1e-3, config=_psoft),
    )
}

# What the product is about; the page and the demo compare these unless told otherwise.
MAIN_METHODS = ("lora", "vera", "lora-xs")
