"""Into LoRA-XS, from LoRA adapters and full fine-tunes (out of it: `export`, `merging`).

A and B are fixed by the base weight, so R is a least-squares problem with a closed form (`loraxs_core.bases.optimal_r`).
How much of ΔW a rank keeps is known for every rank at once, because the bases are nested; it is reported beside the best any
rank-r matrix could keep, so that one sees what the frozen basis costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loraxs_core.account import some
from loraxs_core.architecture import as_loaded
from loraxs_core.bases import Bases, bases, placement
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import AdapterError, SettingsError
from loraxs_core.inventory import Weight
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.svd import singular_values
from loraxs_core.updates import Change, LeftOut, Update, of_adapter, of_finetune

CURVE_RANKS = 256  # with a fixed rank, curves go up to this rank or four times the one asked for, to keep the SVD short


@dataclass(frozen=True)
class Projection:
    """What frozen bases hold of one weight difference.

    name: of the weight. norm: ‖ΔW‖_F. kept: (n,) share of ‖ΔW‖²_F that rank r = index + 1 of the frozen bases keeps.
    best: (n,) share that the best rank-r matrix keeps (Eckart-Young). rank: the rank chosen.
    """

    name: str
    norm: float
    kept: np.ndarray
    best: np.ndarray
    rank: int

    @property
    def kept_at_rank(self) -> float:
        return float(self.kept[self.rank - 1])

    @property
    def best_at_rank(self) -> float:
        return float(self.best[self.rank - 1])


@dataclass(frozen=True)
class Conversion:
    """What a conversion kept. projections: per weight. out: the adapter folder written, None when only the curves were asked for.

    left_out: what a fine-tune changed besides, which the adapter does not hold. whole: names of the tensors carried along as they
    are (modules saved whole, a classifier's head).
    """

    source: str
    projections: tuple[Projection, ...]
    out: Path | None = None
    left_out: tuple[LeftOut, ...] = ()
    whole: tuple[str, ...] = ()

    @property
    def kept(self) -> float:
        """Share of Σ‖ΔW‖²_F that the chosen ranks keep."""
        return _weighted(self.projections, [one.kept_at_rank for one in self.projections])

    @property
    def best(self) -> float:
        """Share of Σ‖ΔW‖²_F that the best matrices of the same ranks would keep."""
        return _weighted(self.projections, [one.best_at_rank for one in self.projections])

    @property
    def kept_of_everything(self) -> float:
        """As `kept`, but of all that changed: what is left out counts as lost, what is carried along whole not at all."""
        return self.kept * self._converted_share

    @property
    def _converted_share(self) -> float:
        moved = sum(one.norm**2 for one in self.projections)
        return moved / (moved + sum(one.norm**2 for one in self.left_out))

    def remarks(self, kept: float | None = None) -> list[str]:
        """What a reader of the figures has to know besides, a sentence each: what is not in the adapter, and what is in it whole.

        kept: the share kept of the converted matrices, where it is shown for another rank than `kept`'s.
        """
        share = (self.kept if kept is None else kept) * self._converted_share
        said = []
        if self.left_out:
            kinds: dict[str, list[LeftOut]] = {}
            for one in self.left_out:
                kinds.setdefault(one.kind, []).append(one)
            parts = [_moved(kind, found) for kind, found in kinds.items()]
            said.append(
                f"Changed too, and not in the adapter: {'; '.join(parts)}. The share kept is of the converted matrices alone; of "
                f"‖Δ‖² of everything that changed the adapter keeps {100 * share:.2g} %."
            )
        if self.whole:
            said.append(f"Carried along whole: {some(self.whole)}.")
        return said

    def out_of_reach(self, energy: float) -> list[str]:
        """The weights of which no rank keeps this share: a weight that is not square has directions outside its frozen bases."""
        return [one.name for one in self.projections if one.kept[-1] < energy * (1 - 1e-9)]

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(kept, best) in total for every uniform rank up to the shortest curve."""
        length = min(len(one.kept) for one in self.projections)
        return tuple(
            np.array([_weighted(self.projections, [getattr(one, which)[r] for one in self.projections]) for r in range(length)])
            for which in ("kept", "best")
        )


def convert(
    source: str | Path | Checkpoint,
    base: Checkpoint,
    *,
    rank: int | None = None,
    energy: float | None = None,
    targets: str = "all-linear",
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Conversion:
    """A LoRA-XS adapter whose ΔW is the nearest to that of `source`, for the bases of `base` and one rank, or one share of energy.

    source: the folder of a PEFT LoRA adapter (rank_pattern, alpha_pattern and rsLoRA are honoured), or a fine-tuned sibling of
    `base`, whose `targets` are converted. rank: the same in every module (less where the matrix is smaller). energy: per module,
    the smallest rank that keeps this share of ‖ΔW‖²_F, above 0 and at most 1 (full rank where none does, see
    `Conversion.out_of_reach`). out: folder to write the adapter to; without it only the curves are computed.

    Works on one matrix at a time; loads no model. Raises SettingsError for both or neither of rank and energy; AdapterError for
    an adapter whose change is not a matrix on this base (DoRA, trained biases, PiSSA and its kin), or that changes nothing.
    """
    if (rank is None) == (energy is None):
        raise SettingsError("Give either a rank or a share of the energy to keep.")
    if rank is not None and rank < 1:
        raise SettingsError(f"The rank must be at least 1, not {rank}.")
    if energy is not None and not 0 < energy <= 1:
        raise SettingsError(f"The share of energy to keep must be above 0 and at most 1, not {energy}.")
    base = as_loaded(base)
    update = of_finetune(as_loaded(source), base, targets) if isinstance(source, Checkpoint) else of_adapter(source, base)
    projections, cores, frozen = [], {}, {}
    report = progress or (lambda _: None)
    total = sum(one.weight.parameters for one in update.changes)
    done, start = 0, Progress(0, total)
    for change in update.changes:
        report(Progress(done, total, change.weight.name, start.started))
        projection, core, used = _project(change, update.checkpoint, base, rank, energy)
        done += change.weight.parameters
        if projection is not None:
            projections.append(projection)
            cores[change.module], frozen[change.module] = core, used
    report(Progress(total, total, "", start.started))
    if not projections:
        raise AdapterError(f"{update.label} changes nothing: every weight difference is zero.")
    if out is not None:
        _write(Path(out), update, cores, frozen)
    return Conversion(
        update.label, tuple(projections), Path(out) if out is not None else None, update.left_out, tuple(sorted(update.whole))
    )


def _project(
    change: Change, update: Checkpoint, base: Checkpoint, rank: int | None, energy: float | None
) -> tuple[Projection | None, np.ndarray | None, Bases | None]:
    """(what the bases keep of one ΔW, the optimal R, the bases)."""
    factors = update.factors(change.delta)
    weight, full = change.weight, change.weight.full_rank
    values = _singular_values(factors) if factors else _dense_values(update, change.delta)
    norm = float(np.linalg.norm(values))
    if norm == 0:
        return None, None, None
    # Energy may ask for any rank up to the full one; a fixed rank needs no more of the basis than its curve shows.
    top = full if rank is None else min(full, max(4 * rank, CURVE_RANKS))
    frozen = bases(base.read(weight), top, name=weight.name, model=base.name)
    U, Vt = frozen.U.astype(np.float64), frozen.Vt.astype(np.float64)
    core = (U.T @ factors[0]) @ (factors[1] @ Vt.T) if factors else U.T @ update.read(change.delta).astype(np.float64) @ Vt.T
    # ‖core[:r, :r]‖² for every r at once: the diagonal of its two-dimensional running sum.
    kept = np.minimum(np.diagonal(np.square(core).cumsum(0).cumsum(1)) / norm**2, 1.0)
    best = np.ones(top)
    share = np.square(values[:top]).cumsum() / norm**2
    best[: len(share)] = np.minimum(share, 1.0)
    if energy is None:
        chosen = min(rank, full)
    else:
        enough = np.flatnonzero(kept >= energy * (1 - 1e-9))
        chosen = int(enough[0]) + 1 if len(enough) else full
    used = frozen.head(chosen)
    # The optimum of `loraxs_core.bases.optimal_r`, from the core that the curve needed anyway: R = Uᵀ ΔW V diag(1/s_in).
    s_in, _ = placement(used.S.astype(np.float64), "input")
    inverse = np.divide(1.0, s_in, out=np.zeros_like(s_in), where=s_in > 1e-12 * s_in[0])
    return Projection(weight.name, norm, kept, best, chosen), core[:chosen, :chosen] * inverse, used


def _singular_values(factors: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of left @ right without forming it: those of the small core between their QR factors."""
    left, right = (np.linalg.qr(one, mode="r") for one in (factors[0], factors[1].T))
    return np.linalg.svd(left @ right.T, compute_uv=False)


def _dense_values(update: Checkpoint, delta: Weight) -> np.ndarray:
    return singular_values(update.read(delta), name=delta.name)


def _write(out: Path, update: Update, cores: dict[str, np.ndarray], frozen: dict[str, Bases]) -> None:
    from loraxs_core.tuner import LoraXSConfig
    from loraxs_core.tuner.config import common_rank
    from loraxs_core.tuner.folder import write_adapter

    r, other = common_rank({name: len(core) for name, core in cores.items()})
    config = LoraXSConfig(r=r, rank_pattern=other, target_modules=sorted(cores), **update.settings)
    write_adapter(out, config, cores, frozen, head=update.whole)


def _moved(kind: str, found: list[LeftOut]) -> str:
    """How far one kind of tensors moved, by the one that moved farthest.

    >>> _moved("norm", [LeftOut("model.norm.weight", "norm", 2.0, 0.5), LeftOut("layers.0.norm.weight", "norm", 0.1, 0.02)])
    '2 norms (model.norm.weight by 50 % of its norm)'
    """
    plural = {"new": "tensors that the base does not have", "matrix": "further matrices", "bias": "biases"}
    what = kind if len(found) == 1 and kind not in plural else plural.get(kind, f"{kind}s")
    worst = max(found, key=lambda one: (one.moved or 0.0, one.norm))
    far = f" by {100 * worst.moved:.2g} % of its norm" if worst.moved is not None else ""
    return f"{len(found)} {what} ({worst.name}{far})"


def _weighted(projections: tuple[Projection, ...], shares: list[float]) -> float:
    weights = [one.norm**2 for one in projections]
    return float(np.dot(weights, shares) / sum(weights))
