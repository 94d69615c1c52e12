"""A rank plan in the words of others: PEFT's configurations as JSON or YAML, axolotl's keys, CSV, a Python program. A plan knows nothing of these."""

from __future__ import annotations

import json

from analyzers.plans.plan import RankPlan
from analyzers.spreadsheet import csv
from loraxs_core.errors import PlanError

KINDS = ("lora-xs", "lora", "json", "csv", "python", "peft-yaml", "axolotl")


def text(plan: RankPlan, kind: str) -> str:
    """The plan as text: ``lora-xs`` or ``lora`` (PEFT configuration as JSON), ``json``, ``csv``, ``python``, ``peft-yaml``
    (the arguments of PEFT's LoraConfig) or ``axolotl`` (its YAML keys for LoRA).

    Raises PlanError for another kind, and for a scaling that axolotl cannot express.
    """
    match kind:
        case "json":
            return json.dumps(plan.to_dict(), indent=2, ensure_ascii=False)
        case "csv":
            return csv(plan.frame()).rstrip("\n")
        case "python":
            return snippet(plan)
        case "peft-yaml":
            return _yaml(_lora_arguments(plan))
        case "axolotl":
            return _axolotl(plan)
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


def _lora_arguments(plan: RankPlan) -> dict[str, object]:
    config = plan.lora_config()
    ranks = dict(config.rank_pattern)
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": list(plan.targets),
        **({"rank_pattern": ranks, "alpha_pattern": dict(config.alpha_pattern)} if ranks else {}),
    }


def _yaml(values: dict[str, object]) -> str:
    """Flat YAML; values in its flow style, which is JSON."""
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())


def _axolotl(plan: RankPlan) -> str:
    """Axolotl has one rank for all modules and no key for others: it takes ranks per layer from the adapter that it starts from."""
    given = _lora_arguments(plan)
    alpha = float(str(given["lora_alpha"]))
    if alpha != int(alpha):
        raise PlanError(
            f"axolotl takes whole numbers for lora_alpha, and this plan has {alpha:g}; choose another scaling alpha/r."
        )
    keys = {
        "adapter": "lora",
        "lora_r": given["r"],
        "lora_alpha": int(alpha),
        "lora_dropout": 0.0,
        "lora_target_modules": given["target_modules"],
    }
    if "rank_pattern" not in given:
        return _yaml(keys)
    return (
        "# axolotl has no key for ranks per layer: it keeps those of the adapter it starts from. Save a fresh one first:\n"
        "#   config = LoraConfig(**yaml.safe_load(open('plan.yaml')))      # loraxs plan ... --export peft-yaml > plan.yaml\n"
        "#   get_peft_model(model, config).save_pretrained('fresh-adapter')\n"
        + _yaml(keys | {"lora_model_dir": "./fresh-adapter"})
    )
