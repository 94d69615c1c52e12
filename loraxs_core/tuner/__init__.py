"""LoRA-XS as a PEFT method. Importing this package makes PEFT know it; importing it again, or reloading it, is harmless.

from peft import get_peft_model
from loraxs_core.tuner import LoraXSConfig

model = get_peft_model(model, LoraXSConfig(r=16))
"""

from __future__ import annotations

from aenum import extend_enum
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from loraxs_core.adapter_names import PEFT_TYPE

PREFIX = "loraxs_"


def _extend_peft_types() -> PeftType:
    """The member of PEFT's closed enum of methods that stands for LoRA-XS."""
    if "LORAXS" not in PeftType.__members__:
        extend_enum(PeftType, "LORAXS", "LORAXS")
    return PeftType.LORAXS


def _register() -> None:
    """Tells PEFT which classes implement LoRA-XS. A reload replaces them; `register_peft_method` would refuse to."""
    kind = _extend_peft_types()
    if kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        PEFT_TYPE_TO_CONFIG_MAPPING[kind] = LoraXSConfig
        PEFT_TYPE_TO_TUNER_MAPPING[kind] = LoraXSModel
        PEFT_TYPE_TO_PREFIX_MAPPING[kind] = PREFIX
    else:
        register_peft_method(name="loraxs", config_cls=LoraXSConfig, model_cls=LoraXSModel, prefix=PREFIX)
    PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = LoraXSConfig  # what files call the method, for those who have not come this far
    quick_load.install()
    peft_helpers.install()


_extend_peft_types()

from loraxs_core.tuner import peft_helpers, quick_load  # noqa: E402
from loraxs_core.tuner.config import LoraXSConfig  # noqa: E402  (its class body needs the enum member)
from loraxs_core.tuner.folder import Adapter, ModuleCheck, read_adapter, verify_adapter, write_adapter  # noqa: E402
from loraxs_core.tuner.layer import LoraXSLayer  # noqa: E402
from loraxs_core.tuner.model import LoraXSModel  # noqa: E402
from loraxs_core.tuner.portable import saved_tensors  # noqa: E402
from loraxs_core.tuner.signing import resign, sign  # noqa: E402
from loraxs_core.tuner.verifying import verifying  # noqa: E402

_register()

__all__ = [
    "Adapter",
    "LoraXSConfig",
    "LoraXSLayer",
    "LoraXSModel",
    "ModuleCheck",
    "read_adapter",
    "resign",
    "saved_tensors",
    "sign",
    "verify_adapter",
    "verifying",
    "write_adapter",
]
