"""What a handful of seeds can say: intervals, paired differences, how many seeds would be needed, many comparisons at once, words.

t_interval  p_value  paired  holm  seeds_needed  alike  verdict
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8  # the chance of seeing a difference that is there, for `seeds_needed`
POINT = 0.01  # a point of a metric that goes to 1
MOST_SEEDS = 10_000
POINTS = 2000  # of a numerical integral
SAME = 1e-9  # differences whose interval is narrower than this are all alike


def t_interval(
    values: np.ndarray | Sequence[float], confidence: float = CONFIDENCE, limits: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean of independent `values`, as far as it lies within `limits`.

    limits: the least and the largest value there can be. The mean over all seeds lies between them, so leaving out what lies
    beyond loses no coverage (Mandelkern, "Setting confidence intervals for bounded parameters", Statistical Science 2002). Fisher's
    z is not used: it would bound the back-transformed mean of z, which is not the mean that is reported, nor does it serve accuracy.
    One value says nothing about its spread: low = high = the value. NaN for none.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, mean, mean
    from scipy.stats import t

    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, max(mean - half, limits[0]), min(mean + half, limits[1])


def paired(differences: Sequence[float], limits: tuple[float, float] = (-np.inf, np.inf)) -> dict[str, float]:
    """What differences seed by seed say: seeds, difference (their mean), low, high (95 %, t), above, below (seeds of either sign), p
    (two-sided t-test that the mean is 0; NaN for one seed and for seeds that differ by the same, see `p_value`), seeds_needed."""
    values = np.asarray(differences, dtype=np.float64)
    mean, low, high = t_interval(values, limits=limits)
    return {
        "seeds": len(values),
        "difference": mean,
        "low": low,
        "high": high,
        "above": int((values > 0).sum()),
        "below": int((values < 0).sum()),
        "p": p_value(values),
        "seeds_needed": seeds_needed(values.tolist()),
    }


def p_value(values: np.ndarray) -> float:
    """Of the two-sided t-test that the mean of `values` is 0; NaN for fewer than two. Where all are 0 it is 1; where all are the same
    other number it is undefined: scores are shares of few examples, so two seeds agree by chance, and no spread is no certainty."""
    if len(values) < 2:
        return float("nan")
    spread = values.std(ddof=1)
    if spread < SAME:
        return 1.0 if abs(values.mean()) < SAME else float("nan")
    from scipy.stats import t

    return float(2 * t.sf(abs(values.mean()) * math.sqrt(len(values)) / spread, len(values) - 1))


def holm(p: Sequence[float]) -> list[float]:
    """`p` adjusted for having made so many comparisons (Holm, Scandinavian Journal of Statistics 1979): one that is below 0.05 is so
    with at most 5 % chance that any of those that are is wrong. Undefined ones stay so and count as no comparison."""
    values = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted, least = values.copy(), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * values[index]))
        adjusted[index] = least
    return adjusted.tolist()


def seeds_needed(differences: Sequence[float], size: float = POINT, power: float = POWER) -> float:
    """Seeds with which a paired t-test at 5 % sees a true mean difference of `size` with the chance `power`, where seeds scatter as the
    `differences` at hand do; NaN for fewer than two and where all are the same, infinity beyond `MOST_SEEDS`. From few seeds it is itself a rough figure: the
    spread of three is known to a factor of about 0.5 to 6."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    spread = float(values.std(ddof=1))
    if spread < SAME:
        return float("nan")
    low, high = 2, 2
    while _power(high, size, spread) < power:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return float("inf")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, size, spread) >= power else (middle + 1, high)
    return float(high)


def _power(seeds: int, size: float, spread: float) -> float:
    from scipy.stats import chi2, nct, norm, t

    edge, shift = t.ppf(0.5 + CONFIDENCE / 2, seeds - 1), size * math.sqrt(seeds) / spread
    power = float(nct.sf(edge, seeds - 1, shift) + nct.cdf(-edge, seeds - 1, shift))
    if math.isfinite(power):
        return power
    # SciPy's noncentral t is NaN far from its centre, with few seeds that hardly scatter: the mean over the spread that they may show.
    shown = np.sqrt(chi2.ppf((np.arange(POINTS) + 0.5) / POINTS, seeds - 1) / (seeds - 1))
    return float(np.mean(norm.sf(edge * shown - shift) + norm.cdf(-edge * shown - shift)))


def alike(row: Mapping) -> bool:
    """Whether in this row of `summary.paired_differences` several seeds all differ by the same, which is not 0: they show no spread, so
    its interval has no width and says nothing."""
    return bool(row["seeds"] > 1 and row["high"] - row["low"] < SAME <= abs(row["difference"]))


def verdict(row: Mapping) -> str:
    """A row of `summary.paired_differences` in words that say no more than its interval."""
    pair = f"{row['label']} and {row['against']}"
    if row["seeds"] == 0:
        return f"{pair} have no seed in common."
    if row["seeds"] == 1:
        where = "above" if row["difference"] > 0 else "below" if row["difference"] < 0 else "level with"
        by = f" by {abs(row['difference']):.4f}" if row["difference"] else ""
        return f"{row['label']} is {where} {row['against']}{by} with one seed, which cannot tell that from chance."
    if alike(row):
        where = "above" if row["difference"] > 0 else "below"
        return (
            f"{row['label']} is {where} {row['against']} by {abs(row['difference']):.4f} with each of {row['seeds']} seeds; that all agree to "
            "the last digit gives no interval."
        )
    interval = f"{row['low']:+.4f} to {row['high']:+.4f}, 95 %, {row['seeds']} seeds"
    if row["low"] <= 0 <= row["high"]:
        return f"No difference shown between {pair} ({interval})."
    least, most = sorted((abs(row["low"]), abs(row["high"])))
    line = (
        f"{row['label']} is {'above' if row['difference'] > 0 else 'below'} {row['against']} by {least:.4f} to {most:.4f} "
        f"(95 %, {row['seeds']} seeds)"
    )
    if row.get("p_holm", 0.0) >= 1 - CONFIDENCE:
        return f"{line}; among all the comparisons here that may be chance (Holm, p = {row['p_holm']:.2g})."
    return f"{line}."
