"""EVA: LoRA whose A starts from the singular vectors of what each layer is fed, on the training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyzers.methods import lora
from analyzers.methods.method import AdapterSpec, FirstBatches, Method, Rate

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

EXPLAINED = 1.0  # PEFT's rho: 1 leaves every layer its rank, above it ranks are dealt out anew and no size is known beforehand


def config(spec: AdapterSpec) -> PeftConfig:
    from peft import EvaConfig

    return lora.config(spec, init_lora_weights="eva", eva_config=EvaConfig(rho=EXPLAINED, use_label_mask=False))


def start(model: PeftModel, first: FirstBatches) -> None:
    """PEFT's incremental SVD of the layers' inputs over the first batches, until it has converged; A becomes its vectors. In place."""
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    def forward(adapted: Any, batch: Any) -> None:
        adapted(**batch)

    initialize_lora_eva_weights(
        model, list(first.inputs()), forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
    )


METHODS = (
    Method(
        "eva",
        "EVA",
        "LoRA started from the singular vectors of the layers' inputs.",
        "arXiv 2410.07170",
        2e-3,
        2.0,
        rate_source="LoRA's, whose update it is",
        causal=Rate(2e-4, "LoRA's, whose update it is"),
        peft_type="LORA",
        config=config,
        written=lora.written,
        starts_from_svd=True,
        starts_from_data=start,
        lora_family=True,
        copies_output=True,
    ),
)
