"""Into LoRA-XS, from LoRA adapters and full fine-tunes (out of it: `export`, `merging`).

A and B are fixed by the base weight, so R is a least-squares problem with a closed form (`loraxs_core.bases.optimal_r`).
How much of ΔW a rank keeps is known for every rank at once, because the bases are nested; it is reported beside the best any
rank-r matrix could keep, so that one sees what the frozen basis costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loraxs_core.architecture import as_loaded, module_names, weight_of_module
from loraxs_core.bases import Bases, bases, placement
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.deltas import changes_base, difference, open_adapter
from loraxs_core.errors import AdapterError, CheckpointError, SettingsError
from loraxs_core.inventory import Weight
from loraxs_core.loading import AdapterFolder
from loraxs_core.progress import Progress, ProgressCallback
from loraxs_core.svd import singular_values
from loraxs_core.targets import select_targets

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
    """What a conversion kept. projections: per weight. out: the adapter folder written, None when only the curves were asked for."""

    source: str
    projections: tuple[Projection, ...]
    out: Path | None = None

    @property
    def kept(self) -> float:
        """Share of Σ‖ΔW‖²_F that the chosen ranks keep."""
        return _weighted(self.projections, [one.kept_at_rank for one in self.projections])

    @property
    def best(self) -> float:
        """Share of Σ‖ΔW‖²_F that the best matrices of the same ranks would keep."""
        return _weighted(self.projections, [one.best_at_rank for one in self.projections])

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
    update = _update(source, base, targets)
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
    return Conversion(update.label, tuple(projections), Path(out) if out is not None else None)


@dataclass(frozen=True)
class _Change:
    """One changed module. module: its path in the adapter's file. delta: its weight in the update. weight: in the base."""

    module: str
    delta: Weight
    weight: Weight


@dataclass(frozen=True)
class _Update:
    """What is to be converted: a checkpoint of weight differences, and the adapter it came from, if any."""

    label: str
    checkpoint: Checkpoint
    changes: tuple[_Change, ...]
    adapter: AdapterFolder | None = None


def _update(source: str | Path | Checkpoint, base: Checkpoint, targets: str) -> _Update:
    if isinstance(source, Checkpoint):
        update = difference(as_loaded(source), base)
        paths = module_names(base)
        wanted = {weight.name for weight in select_targets(base, targets)}
        changes = [(paths[one.name], one, base.weight(one.name)) for one in update.linear if one.name in wanted]
        return _Update(f"{source.name} minus {base.name}", update, tuple(_Change(*one) for one in changes))
    adapter = AdapterFolder(source)
    _refuse(adapter)
    update = open_adapter(adapter.path)
    changes = []
    for delta in update.linear:
        try:
            _, weight = weight_of_module(base, delta.name, adapter.task_type)
        except CheckpointError:
            weight = None
        if weight is None or weight.kind not in ("linear", "conv1d") or weight.shape != delta.shape:
            raise AdapterError(
                f"{adapter.path} adapts {delta.name} ({delta.shape[0]}x{delta.shape[1]}), which {base.name} does not have in that "
                "shape; give the base it was trained on."
            )
        changes.append(_Change(delta.name, delta, weight))
    return _Update(f"LoRA adapter {adapter.path.name}", update, tuple(changes), adapter)


def _refuse(adapter: AdapterFolder) -> None:
    """Adapters whose file does not hold everything they changed."""
    bias, start = adapter.config.get("bias", "none"), adapter.config.get("init_lora_weights")
    if bias != "none":
        raise AdapterError(
            f"{adapter.path} trained biases (bias={bias!r}), which a LoRA-XS adapter cannot hold; merge it instead."
        )
    if changes_base(start):
        raise AdapterError(
            f"{adapter.path} was initialised by {start}, which changes the base weights too; save it as a plain LoRA first "
            "(PEFT's path_initial_model_for_weight_conversion)."
        )


def _project(
    change: _Change, update: Checkpoint, base: Checkpoint, rank: int | None, energy: float | None
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
    frozen = bases(base.read(weight), top, name=weight.name)
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


def _write(out: Path, update: _Update, cores: dict[str, np.ndarray], frozen: dict[str, Bases]) -> None:
    from loraxs_core.tuner import LoraXSConfig
    from loraxs_core.tuner.config import common_rank
    from loraxs_core.tuner.folder import write_adapter

    adapter = update.adapter
    r, other = common_rank({name: len(core) for name, core in cores.items()})
    config = LoraXSConfig(
        r=r,
        rank_pattern=other,
        target_modules=sorted(cores),
        modules_to_save=adapter.config.get("modules_to_save") if adapter else None,
        task_type=adapter.task_type if adapter else None,
        base_model_name_or_path=adapter.config.get("base_model_name_or_path") if adapter else None,
    )
    write_adapter(out, config, cores, frozen, head=adapter.head() if adapter else None)


def _weighted(projections: tuple[Projection, ...], shares: list[float]) -> float:
    weights = [one.norm**2 for one in projections]
    return float(np.dot(weights, shares) / sum(weights))
