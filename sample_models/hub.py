"""Models from the hub: safetensors only, only the shards that are needed, into the hub's own cache, with progress in bytes.

Everything goes through huggingface_hub, so its cache, its login, its mirrors and its offline switch are respected.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from loraxs_core.checkpoint import INDEX, tensors_of
from loraxs_core.errors import ModelNotFound
from loraxs_core.progress import Progress, ProgressCallback

CONFIGS = ("config.json", "adapter_config.json")  # a model's folder has the first, an adapter's the second
WHOLE = "model.safetensors"
# What a model's folder needs beside its weights; pickled weights, ONNX exports and the like stay on the hub.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


def fetch_from_hub(
    repo_id: str,
    *,
    weights: bool = True,
    module: str | None = None,
    download: bool = True,
    progress: ProgressCallback | None = None,
) -> Path:
    """The folder of a hub model in the hub's cache, weights as safetensors only.

    A complete snapshot in the cache is used as it is, without asking the network. weights: off where config.json and the other
    small files will do; the folder may hold none then. module: fetch only the shards that hold this module
    (`loraxs_core.checkpoint.tensors_of`); the folder may lack the others then. Raises ModelNotFound in one sentence when it is not
    there and cannot be fetched (unknown id, gated, offline, no safetensors, no such module).
    """
    cached = cached_folder(repo_id, module) or (None if weights else _snapshot(repo_id))
    if cached:
        return cached
    if not download:
        raise ModelNotFound(f"{repo_id} is not in the hub's cache on this machine; download it first.")
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return _downloaded(repo_id, weights, module, progress)
    except GatedRepoError as error:
        raise ModelNotFound(f"{repo_id} is gated on the hub: accept its licence there and run `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"The hub has no model {repo_id!r} that you may read; check the id, or run `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, _transport_error(), OSError, RuntimeError) as error:
        raise ModelNotFound(
            f"{repo_id} is not on this machine and cannot be fetched from the hub ({type(error).__name__}); connect, or give the "
            "path of a folder that holds the model."
        ) from error


def _transport_error() -> type[Exception]:
    """What the HTTP library under huggingface_hub raises when no answer comes: httpx2 from its version 2 on, httpx before."""
    try:
        from httpx2 import HTTPError
    except ImportError:
        from httpx import HTTPError
    return HTTPError


def cached_folder(repo_id: str, module: str | None = None) -> Path | None:
    """The snapshot in the hub's cache, if every weight file it needs (for `module` alone, when given) is there."""
    snapshot = _snapshot(repo_id)
    if snapshot is None:
        return None
    wanted = weight_files([path.name for path in snapshot.iterdir()], snapshot / INDEX, module)
    return snapshot if wanted and all((snapshot / name).is_file() for name in wanted) else None


def _snapshot(repo_id: str) -> Path | None:
    """The snapshot in the hub's cache, if at least its config.json is there, or an adapter's."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = (try_to_load_from_cache(repo_id, name) for name in CONFIGS)
        config = next((path for path in found if isinstance(path, str)), None)
    except HFValidationError:
        return None
    return Path(config).parent if config else None


def weight_files(names: list[str], index: Path, module: str | None = None) -> list[str]:
    """Which of a repository's files hold its weights: the single file, else the shards of the index, else every safetensors.

    module: of the shards of the index, those with tensors of this module alone.
    """
    if WHOLE in names:
        return [WHOLE]
    if INDEX in names:
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            tensors = shards if module is None else tensors_of(shards, module)
            return sorted({str(shards[tensor]) for tensor in tensors})
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return []
    return sorted(name for name in names if name.endswith(".safetensors"))


def _downloaded(repo_id: str, with_weights: bool, module: str | None, progress: ProgressCallback | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    tell = progress or (lambda _: None)
    started = time.monotonic()
    tell(Progress(0, 1, f"asking the hub for {repo_id}", started))
    commit = HfApi().model_info(repo_id).sha
    listed = snapshot_download(repo_id, revision=commit, ignore_patterns=["*/*"], dry_run=True)
    sizes = {file.filename: file.file_size or 0 for file in listed}
    small = snapshot_download(
        repo_id, revision=commit, allow_patterns=list(SMALL_FILES), ignore_patterns=["*/*"], tqdm_class=_bar()
    )
    is_adapter = (Path(small) / "adapter_config.json").is_file()  # small, and nothing without its weights
    if not with_weights and (Path(small) / "config.json").is_file() and not is_adapter:
        _remember(repo_id)
        return Path(small)
    weights = weight_files(list(sizes), Path(small) / INDEX, module)
    if module is not None and not weights and weight_files(list(sizes), Path(small) / INDEX):
        raise ModelNotFound(f"{repo_id} stores no numbers of a layer {module!r}; `loraxs inspect {repo_id}` lists its layers.")
    missing = [name for name in weights if name not in sizes]
    if missing or not weights:
        what = (
            f"lacks {missing[0]}, which its index names" if missing else "has no safetensors weights (pickled ones are refused)"
        )
        raise ModelNotFound(f"{repo_id} on the hub {what}; choose another model, or convert it to safetensors first.")
    done, total = 0, sum(sizes[name] for name in weights)
    for name in weights:
        message = f"downloading {name} of {repo_id}"
        bar = _bar(lambda count, message=message, before=done: tell(Progress(before + count, total, message, started)))
        hf_hub_download(repo_id, name, revision=commit, tqdm_class=bar)
        done += sizes[name]
        tell(Progress(done, total, message, started))
    _remember(repo_id)
    return Path(small)


def _remember(repo_id: str) -> None:
    """A commit leaves no trace of its branch; this notes which one "main" was, so that the next time needs no network."""
    from huggingface_hub import snapshot_download

    snapshot_download(repo_id, allow_patterns=list(CONFIGS), tqdm_class=_bar())


def _bar(report=None) -> type:
    """A class that huggingface_hub takes for a tqdm bar and that draws nothing: `report` is told the bytes so far."""

    class Bar:
        def __init__(self, *args: Any, total=None, initial=0, **kwargs: Any):
            self.iterable = args[0] if args else ()
            self.total, self.n = total, initial

        def update(self, count=1):
            self.n += count or 0
            if report:
                report(self.n)

        def __enter__(self):
            return self

        def __exit__(self, *error: Any):
            return None

        def __iter__(self):
            return iter(self.iterable)

        def __getattr__(self, name):  # close, refresh, set_description and whatever else a bar can be told
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **kwargs: None

    return Bar
