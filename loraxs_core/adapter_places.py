"""An adapter's tensors and the places that PEFT makes for them in a model: matched by name, accounted for, filled.

The places are what PEFT itself would save for this configuration on this model, so the same account serves every method, and a
model without numbers as well as a loaded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_core.account import Account, balance, counted, some
from loraxs_core.adapter_names import PREFIX, ModulePaths
from loraxs_core.errors import AdapterError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_core.adapter_folder import AdapterFolder
    from loraxs_core.checkpoint import Checkpoint

ADVICE = "give the base and the settings it was trained with, or save it again with PEFT's save_pretrained."
# What transformers' and PEFT's loaders raise for files and settings that do not suit them.
LOADER_ERRORS = (
    ValueError, RuntimeError, KeyError, TypeError, OSError, AttributeError, ImportError, NotImplementedError, AssertionError, IndexError,
)  # fmt: skip


@dataclass(frozen=True)
class Matched:
    """found: place -> key in the file. strangers: keys without a place of their own, which PEFT stacks into one on loading.
    places: name -> tensor of everything that the adapter adds to the model. account: of both; it balances unless there are strangers.
    """

    found: dict[str, str]
    strangers: tuple[str, ...]
    places: Mapping[str, torch.Tensor]
    account: Account

    @property
    def in_base(self) -> tuple[str, ...]:
        """The places that are parameters of the base itself: trained biases, a resized embedding."""
        return tuple(place for place in self.found if place not in self.places)


def wrap(adapter: AdapterFolder, model: PreTrainedModel, *, base: str, empty: bool = False) -> PeftModel:
    """`model` with the places of the adapter, not filled yet. base: what the model is called here, whatever it was where the adapter
    was trained. empty: without numbers, as the model itself.

    Raises AdapterError for a method that has no weights to place.
    """
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.peft_model import (
        PeftModelForQuestionAnswering,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
    )

    import loraxs_core.tuner  # noqa: F401  registers LoRA-XS with PEFT

    if adapter.method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(f"{adapter.path} is for the method {adapter.method!r}, which this version of PEFT does not know.")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.method].from_pretrained(adapter.path)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise AdapterError(
            f"{adapter.path} is a {adapter.method} adapter, which adds tokens to the input and changes no weight; use it through PEFT."
        )
    config.inference_mode, config.base_model_name_or_path = True, base
    # PEFT's classes for these tasks save the head without being told; the others add nothing that a file could hold.
    wrappers = {
        "SEQ_CLS": PeftModelForSequenceClassification,
        "TOKEN_CLS": PeftModelForTokenClassification,
        "QUESTION_ANS": PeftModelForQuestionAnswering,
    }
    wrapper: type[PeftModel] = wrappers.get(adapter.task_type or "", PeftModel)
    return wrapper(model, config, low_cpu_mem_usage=empty)


def match(adapter: AdapterFolder, model: PeftModel, checkpoint: Checkpoint) -> Matched:
    """Which place of `model` (as `wrap` gives it) each tensor of the adapter belongs in.

    Raises AdapterError, with the count and two names, unless each has one and each place its tensor, of its shape and finite.
    """
    from peft import get_peft_model_state_dict

    from loraxs_core.tuner.given import places_alone

    state = model.state_dict(keep_vars=True)
    with places_alone():
        saved = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    places = {key.removeprefix(PREFIX): tensor for key, tensor in saved.items()}
    own = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    paths = ModulePaths(name for name, _ in model.base_model.model.named_modules())
    found: dict[str, str] = {}
    strangers: list[str] = list(adapter.names.twice)
    for name, key in adapter.names.keys.items():
        known = adapter.names.names[name]
        spellings = (name, f"{paths.find(known.module)}.{known.part}")
        place = next((one for one in spellings if one in places), next((one for one in spellings if one in own), None))
        if place is None or place in found:
            strangers.append(key)
        else:
            found[place] = key
    _refuse_infinite(adapter)
    _refuse_misfits(adapter, checkpoint, found, places | own)
    account = Account(
        str(adapter.path),
        f"the {type(model.get_base_model()).__name__} of {checkpoint.name} with its adapter_config.json",
        len(adapter.file.entries),
        unplaced=tuple(strangers),
        unfilled=tuple(name for name in places if name not in found),
    )
    # Files of mixtures of experts hold LoRAs expert by expert, which PEFT stacks on loading: their names are settled by it.
    if not (strangers and adapter.method == "LORA" and _converts(model)):
        account.refuse(ADVICE)
    return Matched(found, tuple(strangers), places, account)


def fill(adapter: AdapterFolder, model: PeftModel, matched: Matched) -> None:
    """Puts every tensor of the adapter into its place. Raises AdapterError unless PEFT says that it did."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    numbers = load_file(adapter.file.path)
    state = model.state_dict(keep_vars=True)
    tensors = {f"{PREFIX}{place}": numbers[key] for place, key in matched.found.items()}
    tensors |= {key: numbers[key] for key in matched.strangers}
    try:
        outcome = set_peft_model_state_dict(model, tensors, "default")
    except KeyError:  # of a module saved whole that the file does not hold
        matched.account.refuse(ADVICE)
        raise
    gone = set(outcome.missing_keys)
    filled = {id(tensor) for key, tensor in state.items() if key not in gone}
    empty = [name for name in matched.account.unfilled if id(matched.places[name]) not in filled]
    lost = (matched.strangers or outcome.unexpected_keys) if outcome.unexpected_keys else ()
    Account(str(adapter.path), matched.account.result, len(numbers), unplaced=tuple(lost), unfilled=tuple(empty)).refuse(ADVICE)
    paths = ModulePaths(name for name, _ in model.base_model.model.named_modules())
    for module, key in adapter.names.alphas.items():  # kohya-ss's own, which may differ from module to module
        layer = model.base_model.model.get_submodule(paths.find(module))
        layer.scaling["default"] = float(numbers[key]) / layer.r["default"]


def _refuse_infinite(adapter: AdapterFolder) -> None:
    from safetensors.torch import load_file

    numbers = load_file(adapter.file.path)
    bad = [key for key, tensor in numbers.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise AdapterError(
            f"{counted(len(bad), 'tensor')} of {adapter.path} {'holds' if len(bad) == 1 else 'hold'} NaN or infinite numbers: "
            f"{some([key.removeprefix(PREFIX) for key in bad])}; its training diverged or the file is damaged, take an earlier "
            "checkpoint of it."
        )


def _refuse_misfits(
    adapter: AdapterFolder,
    checkpoint: Checkpoint,
    found: Mapping[str, str],
    places: Mapping[str, torch.Tensor],
) -> None:
    held = {
        place: adapter.file.entries[key].shape for place, key in found.items() if ".loraxs_" not in place
    }  # which its tuner checks
    account = balance(str(adapter.path), held, checkpoint.name, {name: tuple(places[name].shape) for name in held})
    for name, (here, there) in account.misfits.items():
        module, _, factor = name.removesuffix(".weight").rpartition(".")
        axis = {"lora_A": 0, "lora_embedding_A": 0, "lora_B": 1, "lora_embedding_B": 1}.get(factor)
        if axis is not None and len(here) == len(there) == 2 and here[1 - axis] == there[1 - axis]:
            raise AdapterError(
                f"{module} has rank {here[axis]} in {adapter.file.path.name} and {there[axis]} in adapter_config.json (r, rank_pattern) of "
                f"{adapter.path}; restore the config that was saved with it."
            )
        if len(here) == len(there) and here[1:] == there[1:] and _is_vocabulary(there[0], checkpoint):
            resized = [one.removesuffix(".weight") for one, (rows, _) in account.misfits.items() if rows[0] == here[0]]
            raise AdapterError(
                f"{some(sorted(resized))} {'has' if len(resized) == 1 else 'have'} {here[0]:,} rows in {adapter.path} and {there[0]:,} in {checkpoint.name}: the "
                f"vocabulary was resized for training; resize the base first (model.resize_token_embeddings({here[0]}), "
                "save_pretrained) and give that folder."
            )
    account.refuse("give the base it was trained on.")


def _is_vocabulary(rows: int, checkpoint: Checkpoint) -> bool:
    return any(weight.kind == "embedding" and weight.shape[0] == rows for weight in checkpoint.weights) or rows in (
        weight.shape[0] for weight in checkpoint.weights if weight.role == "head"
    )


def _converts(model: PeftModel) -> bool:
    """Whether transformers keeps this architecture's weights under other names, or stacked, so that PEFT converts old files."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    return get_checkpoint_conversion_mapping(getattr(model.get_base_model().config, "model_type", "")) is not None
