"""One GPU's share of a fine-tune spread over several, from the recording of the whole on one.

DDP keeps everything on every GPU and copies gradients into buckets. ZeRO-2 shards gradients and optimizer states; ZeRO-3 and
FSDP (full shard) shard the weights as well, and gather the layers in use whole: the one that runs and the one fetched ahead, and
what lies outside of layers (embeddings, head) all the time. Communication buffers are modelled, not traced. Sources: PyTorch's
`DistributedDataParallel` and `FullyShardedDataParallel` documentation; DeepSpeed's `deepspeed/runtime/zero/config.py`.
"""

from __future__ import annotations

from collections import Counter

from analyzers.memory.trace import Trace
from analyzers.units import MIB

# ZeRO-3: the one public figure with its settings lies 15 % above the estimate (benchmarks/memory_accuracy.py); ZeRO-2 has none.
WIDTH = {"ddp": 0.03, "zero2": 0.08, "zero3": 0.15, "fsdp": 0.08}
LABELS = {"ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp": "FSDP full shard"}
DDP_BUCKET = 25 * MIB  # bucket_cap_mb
ZERO_BUCKET = 500_000_000  # reduce_bucket_size and allgather_bucket_size, in numbers


def one_gpu(trace: Trace, sharding: str, gpus: int, *, trained_dtype_bytes: int) -> Trace:
    """The recording of one of `gpus` GPUs.

    sharding: ``ddp``, ``zero2``, ``zero3`` or ``fsdp``. trained_dtype_bytes: of a trained number (ZeRO keeps fp32 copies of 16-bit
    ones). Blocks of what is sharded shrink to their share; what communication needs is held from the start.
    """
    if gpus == 1:
        return trace
    held = _held(trace, sharding, gpus, trained_dtype_bytes)
    sharded = {
        "ddp": set(),
        "zero2": {"gradients", "optimizer"},
        "zero3": {"weights", "adapters", "gradients", "optimizer"},
        "fsdp": {"weights", "adapters", "gradients", "optimizer"},
    }[sharding]
    sizes = [-(-size // gpus) if _is_sharded(trace, number, sharded) else size for number, size in enumerate(trace.sizes)]
    new = Trace(
        sizes=sizes,
        births=list(trace.births),
        owners=list(trace.owners),
        events=list(trace.events),
        marks=list(trace.marks),
        labels=dict(trace.labels),
        roots=trace.roots,
    )
    before = len(new.events)
    for label, size in held.items():
        number = len(new.sizes)
        new.sizes.append(size)
        new.births.append(("communication", label))
        new.owners.append(None)
        new.labels[number] = label
        new.events.insert(0, number)
    added = len(new.events) - before
    new.marks = [(at + added, phase, layer) for at, phase, layer in new.marks]
    new.marks[0] = (0, *new.marks[0][1:])
    return new


def _is_sharded(trace: Trace, number: int, sharded: set[str]) -> bool:
    label = trace.labels.get(number)
    if label is not None:
        return label in sharded
    return bool(sharded) and trace.births[number][0] in ("clip", "optimizer")


def _held(trace: Trace, sharding: str, gpus: int, dtype_bytes: int) -> dict[str, int]:
    """Bytes, by part, of the buffers that live all the time."""
    gradients = _bytes_of(trace, "gradients")
    trained = sum(gradients.values())
    if sharding == "ddp":
        return {"gradients": trained + min(trained, DDP_BUCKET)}
    held = {}
    if sharding in ("zero2", "zero3"):
        held["temporaries"] = 2 * min(trained, ZERO_BUCKET * dtype_bytes)
        if dtype_bytes == 2:
            held["optimizer"] = 2 * trained // gpus
    if sharding in ("zero3", "fsdp"):
        whole = _bytes_of(trace, "weights") + _bytes_of(trace, "adapters")
        outside = whole.pop(None, 0)
        gathered = 2 * max(whole.values(), default=0) + max((size for layer, size in gradients.items() if layer), default=0)
        held["weights"] = outside
        held["temporaries"] = held.get("temporaries", 0) + gathered
    return {label: size for label, size in held.items() if size}


def _bytes_of(trace: Trace, label: str) -> Counter:
    """Bytes by layer (None outside of layers) of the blocks with this label; each gradient once, whatever the number of steps."""
    sums: Counter = Counter()
    alive: Counter = Counter()
    for event in trace.events:
        number = event if event >= 0 else ~event
        if trace.labels.get(number) != label:
            continue
        owner = trace.owners[number]
        alive[owner] += trace.sizes[number] if event >= 0 else -trace.sizes[number]
        sums[owner] = max(sums[owner], alive[owner])
    return sums
