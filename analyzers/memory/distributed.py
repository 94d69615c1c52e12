"""One GPU's share of a fine-tune spread over several, from the recording of the whole on one.

DDP keeps everything on every GPU and copies gradients into buckets. ZeRO-2 shards gradients and optimizer states; ZeRO-3 and
FSDP (full shard) shard the weights as well, and gather the layers in use whole. Sources: PyTorch's `DistributedDataParallel` and
`torch/distributed/fsdp/_runtime_utils.py`; DeepSpeed's `deepspeed/runtime/zero/config.py`.

FSDP. What lies outside of layers (embeddings, head) is gathered from the first layer's forward to the end of the backward pass; a
layer while it runs; in the backward pass the one before it is fetched as well (``BACKWARD_PRE``; not where layers are checkpointed,
since recomputing them makes up another order), and gradients are whole until the layer is done. Under mixed precision what is gathered is in the low precision, and autocast has nothing left to cast. Where frozen
layers are checkpointed reentrantly, the hook that frees a layer (`_register_post_backward_reshard_only_hook`) holds on to the
layer's input and its gradient until the backward pass ends.

ZeRO. Buckets of gradients and of gathered weights live all the time. Of weights in 16 bit it keeps a copy in fp32 besides AdamW's two
states: 12 bytes a number. What the buffers of ZeRO-3 hold is modelled from its documentation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from analyzers.memory.trace import Layer, Trace
from analyzers.units import MIB

LABELS = {"ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp": "FSDP full shard"}
SHARDED = {
    "ddp": frozenset(),
    "zero2": frozenset({"gradients", "optimizer"}),
    "zero3": frozenset({"weights", "adapters", "gradients", "optimizer", "casts"}),
    "fsdp": frozenset({"weights", "adapters", "gradients", "optimizer"}),
}
DDP_BUCKET = 25 * MIB  # bucket_cap_mb
ZERO_BUCKET = 500_000_000  # reduce_bucket_size and allgather_bucket_size, in numbers


@dataclass(frozen=True)
class Sharding:
    """How a fine-tune is spread.

    kind: ``ddp``, ``zero2``, ``zero3`` or ``fsdp``. gpus: how many. trained_bytes: of a trained number. gathered: bytes of a gathered
    weight for each byte of the sharded one; 0.5 where weights in fp32 are gathered in 16 bit. held_input: bytes of a layer's input
    that FSDP keeps twice until the backward pass ends; 0 where it does not. prefetches: whether the next layer of the backward pass is
    fetched while one runs.
    """

    kind: str
    gpus: int
    trained_bytes: int
    gathered: float = 1.0
    held_input: int = 0
    prefetches: bool = True


def one_gpu(trace: Trace, sharding: Sharding) -> Trace:
    """The recording of one of the GPUs. Blocks of what is sharded shrink to their share; what communication needs is added."""
    if sharding.gpus == 1:
        return trace
    sizes = [_size(trace, number, size, sharding) for number, size in enumerate(trace.sizes)]
    shared = replace(
        trace,
        sizes=sizes,
        births=list(trace.births),
        owners=list(trace.owners),
        events=list(trace.events),
        marks=list(trace.marks),
        labels=dict(trace.labels),
    )
    if sharding.kind == "fsdp":
        return _Gathering(trace, shared, sharding).run()
    return _with_buffers(shared, _buffers(trace, sharding))


def _size(trace: Trace, number: int, size: int, sharding: Sharding) -> int:
    """Bytes of a block on one GPU."""
    label = trace.labels.get(number)
    sharded = SHARDED[sharding.kind]
    if label == "casts" and sharding.kind == "fsdp":
        return 1
    of_trained = trace.births[number][0] in ("clip", "optimizer") if label is None else label in sharded
    if not sharded or not of_trained:
        return size
    # ZeRO's states are in fp32, whatever the weights are in.
    wide = label == "optimizer" and sharding.kind in ("zero2", "zero3") and sharding.trained_bytes == 2 and size > 4
    return -(-size * (2 if wide else 1) // sharding.gpus)


def _with_buffers(trace: Trace, held: dict[str, int]) -> Trace:
    """`trace` with blocks that live all the time, by what they are counted to."""
    for label, size in held.items():
        number = len(trace.sizes)
        trace.sizes.append(size)
        trace.births.append(("communication", label))
        trace.owners.append(None)
        trace.labels[number] = label
        trace.events.insert(0, number)
    added = len(held)
    trace.marks[:] = [(at + added, phase, layer) for at, phase, layer in trace.marks]
    trace.marks[0] = (0, *trace.marks[0][1:])
    return trace


def _buffers(trace: Trace, sharding: Sharding) -> dict[str, int]:
    """Bytes, by part, of the buffers that live all the time under DDP and ZeRO."""
    gradients = _bytes_of(trace, "gradients")
    trained = sum(gradients.values())
    if sharding.kind == "ddp":
        return {"gradients": trained + min(trained, DDP_BUCKET)} if trained else {}
    held = {"temporaries": 2 * min(trained, ZERO_BUCKET * sharding.trained_bytes)}
    if sharding.trained_bytes == 2:
        held["optimizer"] = 2 * trained // sharding.gpus  # the copy in fp32
    if sharding.kind == "zero3":
        whole = _bytes_of(trace, "weights") + _bytes_of(trace, "adapters")
        outside = whole.pop(None, 0)
        held["weights"] = outside
        held["temporaries"] += 2 * max(whole.values(), default=0)
        held["temporaries"] += max((size for layer, size in gradients.items() if layer), default=0)
    return {label: size for label, size in held.items() if size}


class _Gathering:
    """Adds to a sharded recording what FSDP gathers, where the program comes to a layer and leaves it."""

    def __init__(self, trace: Trace, shared: Trace, sharding: Sharding):
        whole = _bytes_of(trace, "weights") + _bytes_of(trace, "adapters")
        self.whole: dict[Layer | None, int] = {layer: round(size * sharding.gathered) for layer, size in whole.items()}
        self.gradients = _bytes_of(trace, "gradients")
        self.old, self.sharding = shared, sharding
        self.new = replace(shared, events=[], marks=[])
        self.root: int | None = None
        self.held: list[int | None] = []
        self.fetched: dict[Layer, int] = {}

    def run(self) -> Trace:
        old, new = self.old, self.new
        marks = [*old.marks, (len(old.events), "end", None)]
        for at, (start, phase, layer) in enumerate(marks[:-1]):
            new.marks.append((len(new.events), phase, layer))
            inside = phase in ("forward", "loss-backward", "backward")
            if inside and self.root is None:
                self.root = self._born(self.whole.get(None, 0), "weights")
            elif not inside:
                self._leave()
            gradient = None
            if layer is not None and inside:
                self._fetch(layer)
                if phase == "backward":
                    before = self.sharding.prefetches and next(
                        (one for _, later, one in marks[at + 1 :] if later == "backward" and one != layer), None
                    )
                    if before:
                        self._fetch(before)
                    gradient = self._born(round(self.gradients[layer] * self.sharding.gathered), "gradients")
            new.events += old.events[start : marks[at + 1][0]]
            if layer is not None and inside:
                self._dies(gradient)
                following = marks[at + 1]
                if following[1:] != (phase, layer):
                    self._dies(self.fetched.pop(layer, None))
                    if phase == "backward" and self.sharding.held_input:
                        self.held += [self._born(self.sharding.held_input, "activations") for _ in range(2)]
        self._leave()
        return new

    def _leave(self) -> None:
        """The end of a backward pass: nothing is gathered any more."""
        for number in (*self.held, *self.fetched.values(), self.root):
            self._dies(number)
        self.held, self.fetched, self.root = [], {}, None

    def _fetch(self, layer: Layer) -> None:
        if layer not in self.fetched:
            number = self._born(self.whole.get(layer, 0), "temporaries")
            if number is not None:
                self.fetched[layer] = number

    def _born(self, size: int, label: str) -> int | None:
        if not size:
            return None
        new = self.new
        number = len(new.sizes)
        new.sizes.append(size)
        new.births.append(("communication", label))
        new.owners.append(None)
        new.labels[number] = label
        new.events.append(number)
        return number

    def _dies(self, number: int | None) -> None:
        if number is not None:
            self.new.events.append(~number)


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
