"""Which layers stand out from a scan: by how concentrated their energy is, and by how unlike their peers they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

FAR = 3.5  # modified z-score of an outlier (Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993)
PEERS = 8  # layers of one role and shape that it takes to speak of a usual value


class Outlier(NamedTuple):
    """A layer unlike its peers. value: of the metric; usual: the median over the layers of its role."""

    name: str
    role: str
    value: float
    usual: float


class Spread(NamedTuple):
    """The share of its directions that a layer needs for 90 % of its energy: the least, the median and the largest over layers."""

    least: float
    middle: float
    most: float


def by_concentration(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Spectra.frame` whose matrix is not zero, those first that need the smallest share of their directions.

    Of the min(out, in) directions of a matrix, the share that holds 90 % of its energy; also as the column ``directions``, all
    there are.
    """
    some = frame[frame["sigma_max"] > 0]
    some = some.assign(directions=some[["out", "in"]].min(axis=1))
    return some.iloc[(some["rank_90"] / some["directions"]).argsort(kind="stable")]


def spread(frame: pd.DataFrame) -> Spread | None:
    """Over the layers of `Spectra.frame` that are not zero; None where all are."""
    some = by_concentration(frame)
    if some.empty:
        return None
    shares = some["rank_90"] / some["directions"]
    return Spread(float(shares.min()), float(shares.median()), float(shares.max()))


def unlike_peers(frame: pd.DataFrame, metric: str = "rank_90") -> list[Outlier]:
    """The layers whose `metric` is farther from the median of their role and shape than `FAR`, the farthest first.

    In units of the median absolute deviation over 0.6745, which equals the standard deviation of normal values. Roles of fewer
    than `PEERS` layers, and those where most layers agree exactly, have no outliers.
    """
    found = []
    for (role, _), peers in frame[frame["sigma_max"] > 0].groupby(["role", "shape"], sort=False):
        values = peers[metric].astype(float)
        usual = values.median()
        spread = (values - usual).abs().median() / 0.6745
        if len(peers) < PEERS or not spread > 0:
            continue
        scores = (values - usual).abs() / spread
        found += [
            (score, Outlier(name, role, value, usual))
            for name, value, score in zip(peers["name"], values, scores, strict=True)
            if score > FAR
        ]
    return [outlier for _, outlier in sorted(found, key=lambda pair: -pair[0])]
