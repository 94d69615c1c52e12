"""An adapter's folder as a store keeps it: the plan and the row."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from loraxs_core.adapter_folder import ADAPTER_CONFIG, ADAPTER_FILE, AdapterFolder
from loraxs_core.adapter_names import LORAXS, PREFIX
from loraxs_core.errors import AdapterError
from loraxs_core.paths import user_path
from loraxs_core.store.plans import Plan, planned
from loraxs_core.tuner.folder import read_adapter


def taken(folder: str | os.PathLike) -> tuple[Plan, dict[str, bytes], bytes]:
    """(plan, what is shared by checksum, row) of the adapter in `folder`, after the checks that reading it makes.

    Names of tensors that a wrapper around the model lengthened (torch.compile, FSDP, DDP) are read as what they stand for. Raises
    AdapterError in one sentence for what is missing, damaged, edited, or not LoRA-XS.
    """
    raw = AdapterFolder(user_path(folder))
    if raw.method != LORAXS:
        raise AdapterError(
            f"{raw.path} is a {raw.method} adapter; the store holds LoRA-XS adapters. loraxs convert makes one of a LoRA."
        )
    if raw.names.twice:
        raise AdapterError(f"{raw.path} holds {raw.names.twice[0]} twice; save it again with PEFT's save_pretrained.")
    tensors = load_file(raw.file.path)
    called = {f"{PREFIX}{name}": tensors[key] for name, key in raw.names.keys.items()}
    if called.keys() == tensors.keys():
        read_adapter(raw.path)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            save_file(called, Path(temporary) / ADAPTER_FILE, metadata={"format": "pt"})
            (Path(temporary) / ADAPTER_CONFIG).write_bytes((raw.path / ADAPTER_CONFIG).read_bytes())
            read_adapter(temporary)
    plan, shared = planned(raw.config, called)
    return plan, shared, plan.row(called)
