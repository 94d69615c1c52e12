"""Whether PEFT takes the adapters that a comparison asks for, tried on a model without numbers before anything begins.

Only what a user has chosen beyond the methods as they stand is tried: configurations of their own, ranks and targets. A model on PyTorch's
meta device takes hundredths of a second; what it cannot tell (values that are refused only with weights or data) still fails trial by trial.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyzers.compare.settings import SweepSettings
from analyzers.compare.tasks import CAUSAL, Task
from analyzers.compare.trial_settings import TrialSettings
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.config_bounds import refuse_impossible
from loraxs_core.errors import SettingsError, WorkbenchError, one_line
from sample_models import open_model

if TYPE_CHECKING:
    from torch import nn

REFUSALS = (ValueError, TypeError, NotImplementedError, re.error)  # of values; anything else may be for want of numbers


def refuse_unbuildable(settings: SweepSettings, task: Task) -> None:
    """Raises SettingsError where PEFT refuses an adapter of `settings` on its model, whatever its numbers. Where the model's architecture
    cannot be told here nothing is raised."""
    asked = list(_asked(settings))
    if not asked:
        return
    try:
        checkpoint = open_model(settings.model, weights=False, download=False)
        refuse_impossible(checkpoint.config, checkpoint.name)
    except WorkbenchError:  # said where the model is opened
        return
    for trial in asked:
        if refusal := _refusal(trial, checkpoint, task):
            raise SettingsError(f"{trial.variant} cannot be built on {checkpoint.name}: {refusal}; mend it or leave it out.")


def _asked(settings: SweepSettings) -> Iterator[TrialSettings]:
    """A trial of each variant that is to be tried."""
    trials = settings.trials()
    for trial in trials:
        chosen = trial.config is not None or trial.method in settings.ranks or settings.targets != "paper"
        starts_from_numbers = trial.kind.starts_from_svd or trial.kind.changes_base or trial.plan is not None
        if chosen and trial.seed == trials[0].seed and trial.kind.config is not None and not starts_from_numbers:
            yield trial


def _refusal(trial: TrialSettings, checkpoint: Checkpoint, task: Task) -> str:
    """What PEFT says against the adapter of `trial`, in one line; empty where it says nothing that can be told without numbers."""
    # Where start-up time needs it: a comparison of methods as they stand does not pay for torch here.
    from peft import get_peft_model

    from analyzers.compare.adapter import adapter_spec

    found = _without_numbers(checkpoint, task)
    if found is None:
        return ""
    model, head, task_type = found
    try:
        spec = adapter_spec(trial, checkpoint, head=head, task_type=task_type)
        config = trial.kind.configured(spec) if spec else None
    except SettingsError as error:
        return str(error).rstrip(".")
    if config is None:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the trial itself warns of
            get_peft_model(model, config)
    except REFUSALS as error:
        said = one_line(error).rstrip(".")
        return "" if "meta" in said.lower() else said
    except Exception:  # what asks for numbers is tried with them
        return ""
    return ""


def _without_numbers(checkpoint: Checkpoint, task: Task) -> tuple[nn.Module, list[str], str] | None:
    """(the model that a trial would adapt, its head's modules, PEFT's task type), on the meta device; None where it cannot be made."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from analyzers.compare.base_and_head import head_modules, is_sentence_encoder

    if checkpoint.folder is None:
        return None
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            if task.kind == CAUSAL:
                return AutoModelForCausalLM.from_config(config), [], "CAUSAL_LM"
            if is_sentence_encoder(checkpoint):
                return AutoModel.from_config(config), [], "FEATURE_EXTRACTION"
            config.num_labels = task.outputs
            model = AutoModelForSequenceClassification.from_config(config)
        return model, head_modules(model), "SEQ_CLS"
    except Exception:  # transformers' own reasons, which loading the model tells
        return None
