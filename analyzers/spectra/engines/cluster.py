"""A Ray cluster whose machines share the checkpoint's file system: a layer a Ray task, retried where a worker dies.

Joins the cluster that ``RAY_ADDRESS`` names or that is running, or starts one on this machine. Ray is an optional extra.
"""

from __future__ import annotations

from collections.abc import Generator

from threadpoolctl import threadpool_limits

from analyzers.spectra.accuracy import Accuracy
from analyzers.spectra.engines.job import TICK_SECONDS, Job, Result, Task, refuse_changed
from loraxs_core.checkpoint import Checkpoint, Weight
from loraxs_core.errors import RunError, SettingsError, WorkbenchError
from loraxs_core.ray_cluster import join_or_start

RETRIES = 5  # of a layer whose worker died


def run(job: Job) -> Generator[Result | None, None, None]:
    """Yields spectra as they are done, None in between.

    Raises SettingsError without Ray, RunError when the cluster gives up on a layer, and whatever a layer raises.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError("The ray engine needs Ray; install it with: pip install 'loraxs-workbench[cluster]'.") from error
    join_or_start(ray, job.jobs)
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_scan_layer)
    checkpoint = ray.put(_absolute(job.checkpoint))
    pending = {remote.remote(checkpoint, task.weight, job.accuracy): task for task in job.tasks}
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


def _absolute(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its files under paths that mean the same in every working directory."""
    for file in checkpoint.files.values():
        file.path = file.path.resolve()
    return checkpoint


def _scan_layer(checkpoint: Checkpoint, weight: Weight, accuracy: Accuracy) -> Result | WorkbenchError:
    """Runs on a worker. Errors a person can mend come back as values, because Ray wraps what is raised."""
    try:
        refuse_changed(checkpoint, weight)  # which a machine that sees another file system notices too
        with threadpool_limits(1):
            return Task(weight).run(checkpoint, accuracy)
    except WorkbenchError as error:
        return error
