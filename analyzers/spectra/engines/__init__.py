"""Where the work of a scan is done: threads of this process, one accelerator, or a Ray cluster.

An engine takes a `Job` and yields each `LayerSpectrum` (or `NotFinite`) as it is done, and None about ten times a second so that its caller can
tell progress and ask whether to stop; it ends its work when the generator is closed.
"""

from analyzers.spectra.engines.job import TICK_SECONDS, Job, Result, Task, changed_file, refuse_changed

__all__ = ["TICK_SECONDS", "Job", "Result", "Task", "changed_file", "refuse_changed"]
