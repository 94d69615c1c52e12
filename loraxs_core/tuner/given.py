"""A and B that come from an adapter's file instead of the base weight's SVD (``LoraXSConfig(save_bases=True)``).

What is here asks nothing of the numbers: a pair that no SVD of W0 gives (from gradients, say) is held, saved and loaded alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from loraxs_core.bases import Bases, GivenBases, Identity, identify
from loraxs_core.errors import AdapterError
from loraxs_core.number_checksums import pair_checksum
from loraxs_core.proof import RESTORE, Fingerprint, Proof, fingerprint, is_sketch_of
from loraxs_core.tuner.checksums import Pair, Pairs, listed
from loraxs_core.tuner.cores import Cores

if TYPE_CHECKING:
    from loraxs_core.tuner.config import LoraXSConfig

UNKNOWN = Identity(0, 0, 0)  # of a weight that is not here
SAVED = "saved-"  # how the keys of such pairs begin
_places_alone: ContextVar[bool] = ContextVar("loraxs_places_alone", default=False)


@contextmanager
def places_alone() -> Iterator[None]:
    """Inside the block a state dict is asked for its names and shapes, so A and B that a file will bring are left empty in it."""
    token = _places_alone.set(True)
    try:
        yield
    finally:
        _places_alone.reset(token)


def are_wanted() -> bool:
    """Whether who asks for a state dict wants its numbers, see `places_alone`."""
    return not _places_alone.get()


class GivenLayer:
    """The part of a LoRA-XS layer that takes A and B as they are given. Attributes as of `LoraXSLayer`."""

    loraxs_R: Cores
    loraxs_A: BufferDict
    loraxs_B: BufferDict
    r: dict[str, int]
    basis_key: dict[str, str]
    trained_with: dict[str, Fingerprint]
    fingerprints: dict[str, Fingerprint]
    awaiting_bases: tuple[str, LoraXSConfig] | None
    sigma: dict[str, str]
    merged: bool
    awaiting_file: dict[str, LoraXSConfig]  # adapters whose A and B are to come with R
    _identity: Identity | None = None

    if TYPE_CHECKING:
        _place: Any
        _hold: Any
        base_matrix: Any
        build_bases: Any
        get_base_layer: Any
        weight_shape: Any

    def await_file(self, adapter_name: str, config: LoraXSConfig) -> None:
        """Makes room for the A and B of a file, under the names that they have in it: transformers puts tensors straight into modules."""
        r, (out, into) = self.r[adapter_name], self.weight_shape
        core = self.loraxs_R[adapter_name]
        if core.device.type == "meta":  # PEFT puts a new layer where the weight is
            self.loraxs_R[adapter_name] = nn.Parameter(torch.zeros_like(core, device=self.home()), core.requires_grad)
        dtype = torch.float64 if self._place()[1] == torch.float64 else torch.float32
        device = self.home()
        for held, shape in ((self.loraxs_A, (r, into)), (self.loraxs_B, (out, r))):
            held.register_buffer(adapter_name, torch.zeros(shape, dtype=dtype, device=device), persistent=True)
        self.basis_key[adapter_name] = adapter_name
        self.awaiting_file[adapter_name] = config

    def home(self) -> torch.device:
        """Where numbers of an adapter live whose base weight is elsewhere: where the layer computes, by accelerate's hook; else the CPU."""
        device = self._place()[0]
        if device.type != "meta":
            return device
        hook = getattr(self.get_base_layer(), "_hf_hook", None)
        place = getattr(hook, "execution_device", None)
        return torch.device("cpu" if place is None else place)

    def arrived(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The (A, B) that were put into the room made for them; None where there is none, or nothing came."""
        if adapter_name not in self.awaiting_file:
            return None
        A, B = self.loraxs_A[adapter_name], self.loraxs_B[adapter_name]
        return (A, B) if bool(A.any()) or bool(B.any()) else None

    def adopt(self, adapter_name: str, A: torch.Tensor, B: torch.Tensor, known: Fingerprint | None = None) -> None:
        """Gives an adapter A (r x in) and B (out x r), any finite numbers; adapters with equal ones share them.

        known: what a file says of them and of the weight they belong to; by default they belong to the weight that is here.
        """
        if known is None:
            found = GivenBases.of(numbers(A), numbers(B), self.local_identity() or UNKNOWN)
            known = fingerprint(found)
        device, (_, dtype) = self.home(), self._place()
        A, B = (one.detach().to(device=device, dtype=dtype).contiguous() for one in (A, B))
        key = f"{SAVED}{len(A)}-{pair_checksum(A, B):08x}{known.identity.exact:08x}"
        if key not in self.loraxs_A:
            self.loraxs_A[key], self.loraxs_B[key] = A, B
            self.fingerprints[key] = known
        if self.awaiting_bases is not None and self.awaiting_bases[0] == adapter_name:
            self.awaiting_bases = None
        self.awaiting_file.pop(adapter_name, None)
        old, self.basis_key[adapter_name] = self.basis_key.get(adapter_name), key
        self.trained_with[adapter_name] = known
        if old is not None and old != key:
            self._forget_basis(old)

    def use_bases(self, adapter_name: str, key: str, found: Bases, known: Fingerprint) -> None:
        """Gives an adapter bases as they were where it was trained (turned or flipped against those of this weight).

        key: of them, the same for all adapters that were trained there. known: their fingerprint there, which goes on being what a file
        of this adapter says.
        """
        self.fingerprints[key] = known
        self._hold(key, found, self.sigma[adapter_name])
        self.use_bases_of(adapter_name, key)

    def use_bases_of(self, adapter_name: str, key: str) -> None:
        """Lets an adapter share what `use_bases` put under `key`."""
        old = self.basis_key[adapter_name]
        self.awaiting_file.pop(adapter_name, None)
        self.basis_key[adapter_name] = key
        self.trained_with[adapter_name] = self.fingerprints[key]
        self._forget_basis(old)

    def _forget_basis(self, key: str) -> None:
        if key in self.loraxs_A and key not in self.basis_key.values():
            del self.loraxs_A[key]
            del self.loraxs_B[key]
            self.fingerprints.pop(key, None)

    def build_instead(self, adapter_name: str) -> None:
        """Builds the bases from the weight after all, for an adapter with which none came."""
        config = self.awaiting_file.pop(adapter_name)
        old = self.basis_key.pop(adapter_name)
        self._forget_basis(old)
        self.awaiting_bases = adapter_name, config
        self.build_bases()

    def local_identity(self) -> Identity | None:
        """Of the base weight that is here; None where it is not, or cannot be had back from under a merged adapter."""
        built = (known.identity for key, known in self.fingerprints.items() if not is_given(key))
        found = next(built, self._identity)
        if found is None and self.get_base_layer().weight.device.type != "meta":
            try:
                found = identify(self.base_matrix().to(device="cpu", dtype=torch.float32).numpy())[1]
            except AdapterError:
                return None
            self._identity = found
        return found

    def known_identity(self, adapter_name: str) -> Identity | None:
        """Of the weight that is here, as far as it can be told, for an adapter that is being loaded."""
        known = self.trained_with.get(adapter_name)
        return known.identity if known is not None and adapter_name not in self.awaiting_file else self.local_identity()


def is_given(key: str) -> bool:
    """Whether A and B under `key` are not as they are made from the weight that is here."""
    return key.startswith((SAVED, "own-"))


def paired(lefts: Mapping[str, torch.Tensor], rights: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    """Module name -> (A, B). Raises AdapterError where one of the two is missing."""
    if alone := sorted(lefts.keys() ^ rights.keys()):
        raise AdapterError(f"The file holds one of A and B of {listed(alone)} and not the other; the adapter is incomplete.")
    return {name: (A, rights[name]) for name, A in lefts.items()}


def refuse_other_pairs(frozen: Pairs, proof: Proof) -> None:
    """Raises AdapterError where A and B are not, as far as the proof's sketch tells, those that R was trained with."""
    strange = []
    for name, (A, B) in frozen.items():
        known, record = fingerprint(GivenBases.of(numbers(A), numbers(B), UNKNOWN)), proof.records[name]
        if not is_sketch_of(record.sketch, known.sketch[: len(record.sketch)]):
            strange.append(name)
    if strange:
        raise AdapterError(f"The saved A and B of {listed(sorted(strange))} are not those that R was trained with; {RESTORE}")


def of_the_base(trained: Mapping[str, Identity], weights: Mapping[str, Identity], quantised: bool) -> str:
    """What a loader of saved A and B says of the base: nothing where its weights are those of training, or copies in other precisions.

    trained: module name -> identity as recorded. weights: of those that are here. quantised: whether either is a quantised form.
    """
    unseen = [name for name in trained if name not in weights]
    if unseen:
        return (
            f"{len(unseen)} of {len(trained)} base weights are not here (offloaded, or on the meta device), so that they are those the "
            "adapter was trained with was not checked; its own numbers were: R, A and B are what was saved."
        )
    moved = sorted(name for name, one in trained.items() if not one.rounded_copy(weights[name]))
    if not moved or quantised:
        return ""
    return (
        f"{len(moved)} of {len(trained)} base weights are not those the adapter was trained with ({listed(moved)}). What it adds is to "
        "the last bit what was trained, because its A and B are in its file; what the model computes with it was never trained."
    )


def numbers(one: torch.Tensor) -> np.ndarray:
    """As NumPy array, in float32 or float64."""
    one = one.detach().cpu()
    return (one if one.dtype == torch.float64 else one.to(torch.float32)).numpy()


def pair_fingerprint(identity: Identity, sketch: np.ndarray, A: torch.Tensor, B: torch.Tensor) -> Fingerprint:
    """What a file says of a pair that it holds: `identity` of the weight and `sketch` (k, r) as its proof has them."""
    lengths = np.linalg.norm(numbers(A), axis=1) * np.linalg.norm(numbers(B), axis=0)
    return Fingerprint(identity, sketch, lengths.astype(np.float64))
