"""Which layers stand out from a scan: by how concentrated their energy is, and by how unlike their peers they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

FAR = 3.5  # modified z-score of an outlier (Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993)
PEERS = 8  # layers of one role and shape that it takes to speak of a usual deviation
# Of fewer, the one farthest out is judged by Dixon's Q: its gap to the next over the range of all; more than this is beyond chance,
# two-sided at 95 % (Rorabacher, Analytical Chemistry 63, 1991, table 2). Fewer than the least here tell nothing.
DIXON = {5: 0.710, 6: 0.625, 7: 0.568}


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

    In units of the median absolute deviation over 0.6745, which equals the standard deviation of normal values. Where most layers
    agree exactly, none is one. Of fewer than `PEERS` layers one at most, by `DIXON`, and none of fewer than that table begins with.
    """
    found = []
    for (role, _), peers in frame[frame["sigma_max"] > 0].groupby(["role", "shape"], sort=False):
        values = peers[metric].astype(float)
        usual = values.median()
        spread = (values - usual).abs().median() / 0.6745
        if not spread > 0:
            continue
        scores = (values - usual).abs() / spread
        outside = scores > FAR if len(peers) >= PEERS else _apart(values)
        found += [
            (score, Outlier(name, role, value, usual))
            for name, value, score, out in zip(peers["name"], values, scores, outside, strict=True)
            if out
        ]
    return [outlier for _, outlier in sorted(found, key=lambda pair: -pair[0])]


def _apart(values: pd.Series) -> list[bool]:
    """Which of a few values stands apart from all others, by Dixon's Q; none or one."""
    ordered = values.sort_values()
    below, above = ordered.iloc[1] - ordered.iloc[0], ordered.iloc[-1] - ordered.iloc[-2]
    limit = DIXON.get(len(values), 1.0) * (ordered.iloc[-1] - ordered.iloc[0])
    farthest = ordered.index[0 if below > above else -1]
    return [max(below, above) > limit and index == farthest for index in values.index]
