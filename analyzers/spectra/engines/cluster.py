"""A Ray cluster whose machines share the checkpoint's file system: a layer a Ray task, retried where a worker dies.

Joins the cluster that ``RAY_ADDRESS`` names or that is running, or starts one on this machine. Ray is an optional extra.
"""

from __future__ import annotations

from collections.abc import Iterator

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.artefact import LayerSpectrum
from analyzers.spectra.engines.job import TICK_SECONDS, Job, Task
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import CheckpointError, RunError, SettingsError, WorkbenchError

RETRIES = 5  # of a layer whose worker died


def run(job: Job) -> Iterator[LayerSpectrum | None]:
    """Yields spectra as they are done, None in between.

    Raises SettingsError without Ray, RunError when the cluster gives up on a layer, and whatever a layer raises.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError("The ray engine needs Ray; install it with: pip install 'loraxs-workbench[cluster]'.") from error
    if job.checkpoint.folder is None:
        raise SettingsError(f"{job.checkpoint.name} is not a folder that other machines could read; use the local engine.")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, num_cpus=None if _running(ray) else job.jobs)
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_scan_layer)
    # Every machine opens the checkpoint by its path and checks that it sees the same files.
    source = (str(job.checkpoint.folder.resolve()), job.checkpoint.name, job.checkpoint.fingerprint)
    pending = {remote.remote(source, task.weight, job.accuracy): task for task in job.tasks}
    try:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=TICK_SECONDS)
            for reference in ready:
                task = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise RunError(f"The Ray cluster gave up on {task.weight.name} after {RETRIES} tries: {error}.") from error
                if isinstance(result, WorkbenchError):
                    raise result
                yield result
            if not ready:
                yield None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _running(ray) -> bool:
    """Whether there is a cluster to join, rather than one to start."""
    import os

    return bool(os.environ.get("RAY_ADDRESS")) or bool(ray._private.services.find_gcs_addresses())


def _scan_layer(source: tuple[str, str, str], weight: Weight, accuracy: Accuracy) -> LayerSpectrum | WorkbenchError:
    """Runs on a worker. Errors a person can mend come back as values, because Ray wraps what is raised."""
    from threadpoolctl import threadpool_limits

    folder, name, fingerprint = source
    try:
        checkpoint = Checkpoint.open(folder, name)
        if checkpoint.fingerprint != fingerprint:
            raise CheckpointError(f"{folder} holds other files on another machine of the cluster; share one file system.")
        with threadpool_limits(1):
            return Task(weight).run(checkpoint, accuracy)
    except WorkbenchError as error:
        return error
