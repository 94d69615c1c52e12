"""Estimates in the user's cache, so that the same question is answered at once the second time.

The key holds everything an estimate depends on: the config, the settings, the versions of PyTorch, transformers and PEFT, this
program's own code (`loraxs_core.cache`), and the code in the model's folder where that is allowed to run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import TYPE_CHECKING

from analyzers.memory.answer import MemoryEstimate
from loraxs_core.cache import Kept
from loraxs_core.remote_code import code_digest

if TYPE_CHECKING:
    from analyzers.memory.settings import MemorySettings
    from loraxs_core.checkpoint import Checkpoint

_CACHE = Kept("memory", ("loraxs_core", "analyzers"))


def key(checkpoint: Checkpoint, settings: MemorySettings) -> str:
    """Of everything that an estimate depends on."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    plan = settings.plan
    values["plan"] = plan and {"ranks": dict(plan.ranks), "targets": list(plan.targets), "alpha": plan.alpha_over_r}
    names = [(weight.name, weight.shape) for weight in checkpoint.weights]
    code = code_digest(checkpoint.folder) if settings.trust_remote_code else ""
    software = [f"{name} {version(name)}" for name in ("torch", "transformers", "peft")]
    content = [checkpoint.name, checkpoint.config, names, values, code, software]
    return _CACHE.key(json.dumps(content, sort_keys=True, default=str))


def load(key: str) -> MemoryEstimate | None:
    """The estimate kept under `key`; None when there is none that can be believed."""

    def decode(kept: dict, arrays: dict) -> MemoryEstimate:
        details = {(part, what): size for part, what, size in kept.pop("details")}
        for name in ("interval", "context", "reasons"):
            kept[name] = tuple(kept[name])
        return MemoryEstimate(**kept, details=details)

    return _CACHE.load(key, decode)


def save(key: str, estimate: MemoryEstimate, model: str, settings: MemorySettings) -> None:
    """Keeps `estimate` under `key`; a disk that cannot be written is no error."""
    kept = asdict(estimate)
    kept["details"] = [[*label, size] for label, size in estimate.details.items()]
    what = f"{settings.label}, batch {settings.batch}, sequence {settings.sequence}"
    _CACHE.save(key, meta=kept, model=model, what=what)
