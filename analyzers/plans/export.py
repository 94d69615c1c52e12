"""A rank plan in the words of others: PEFT's configurations as JSON, CSV, a Python program. A plan knows nothing of these."""

from __future__ import annotations

import json

from analyzers.plans.plan import RankPlan
from analyzers.spreadsheet import csv
from loraxs_core.errors import PlanError

KINDS = ("lora-xs", "lora", "json", "csv", "python")


def text(plan: RankPlan, kind: str) -> str:
    """The plan as text: ``lora-xs`` or ``lora`` (PEFT configuration as JSON), ``json``, ``csv`` or ``python``.

    Raises PlanError for another kind.
    """
    match kind:
        case "json":
            return json.dumps(plan.to_dict(), indent=2, ensure_ascii=False)
        case "csv":
            return csv(plan.frame()).rstrip("\n")
        case "python":
            return snippet(plan)
        case "lora-xs" | "lora":
            config = plan.lora_xs_config() if kind == "lora-xs" else plan.lora_config()
            values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
            return json.dumps(values, indent=2, sort_keys=True, default=str)
    raise PlanError(f"Unknown export {kind!r}; there are {', '.join(KINDS)}.")


def snippet(plan: RankPlan) -> str:
    """A program that loads the model by whatever the user called it, and adapts it by this plan."""
    pattern = "".join(f"        {key!r}: {rank},\n" for key, rank in plan.rank_pattern.items())
    return f'''"""LoRA-XS on {plan.model}: {plan.trainable:,} trained numbers in {len(plan.ranks)} layers ({plan.strategy} ranks)."""

from peft import get_peft_model
from transformers import AutoModel  # or the class of your task, such as AutoModelForSequenceClassification

from loraxs_core.tuner import LoraXSConfig
from sample_models import open_model

model = AutoModel.from_pretrained(open_model({plan.model!r}).folder)
config = LoraXSConfig(
    r={plan.most_frequent_rank},
    alpha={plan.alpha_over_r * plan.most_frequent_rank!r},
    target_modules={list(plan.targets)!r},
    rank_pattern={{{chr(10) + pattern + "    " if pattern else ""}}},
)
model = get_peft_model(model, config)
model.print_trainable_parameters()
'''
