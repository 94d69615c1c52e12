"""The processes that train one trial together (``accelerate launch``): which of them this is, and what they tell one another.

Of one process alone everything here is trivial. torch.distributed does the rest.
"""

from __future__ import annotations

import re
from typing import Any

TRANSPORT = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer")


def rank() -> int:
    """0 for the first process, and for one that works alone."""
    import torch.distributed as distributed

    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def size() -> int:
    """How many there are."""
    import torch.distributed as distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another of the processes has gone: torch's own kind of error, or what its transports write."""
    import torch.distributed as distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and TRANSPORT.search(str(error)) is not None
    )


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def wait() -> None:
    """Until all are here."""
    if size() > 1:
        import torch.distributed as distributed

        distributed.barrier()


def decided(wish: bool) -> bool:
    """What the first process wishes, in all of them."""
    if size() == 1:
        return wish
    import torch.distributed as distributed

    said = [wish]
    distributed.broadcast_object_list(said, src=0)
    return bool(said[0])


def gathered(value: Any) -> list[Any]:
    """Everybody's `value`, by rank."""
    if size() == 1:
        return [value]
    import torch.distributed as distributed

    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, value)
    return found
