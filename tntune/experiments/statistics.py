"""Statistics of few seeds: means and paired differences with intervals, and what a test set can tell."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

from tntune.errors import SpecError

__all__ = [
    "CONFIDENCE",
    "Interval",
    "detectable",
    "discoveries",
    "mean_interval",
    "paired_interval",
    "verdict",
]

CONFIDENCE = 0.95
"""Of every interval; all are Student's t intervals over seeds."""

_POWER = 0.8


class Interval(NamedTuple):
    """A mean with its 95 % t interval.

    Attributes:
        mean: Of the values.
        low: Lower end; minus infinity for a single value.
        high: Upper end; infinity for a single value.
        sd: Standard deviation of the values, 0 for a single one.
        n: Number of values.

    Example:
        >>> mean_interval([1.0, 3.0]).mean
        2.0
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int


def mean_interval(values: Sequence[float]) -> Interval:
    """``mean ± t(n - 1) sd / sqrt(n)``: the interval that holds the mean of all seeds with 95 % confidence.

    Assumes that values over seeds are nearly normal.

    Raises:
        SpecError: Where there are no values.

    Example:
        >>> [round(x, 3) for x in mean_interval([0.9, 0.92, 0.94])[:3]]
        [0.92, 0.87, 0.97]
    """
    if not values:
        raise SpecError("an interval needs at least one value, not none")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 0.0, 1)
    sd = stdev(values)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, sd, n)


def paired_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Interval of the differences value by value: what the seeds share cancels.

    Raises:
        SpecError: Where the numbers of values differ.

    Example:
        >>> paired_interval([0.9, 0.8], [0.8, 0.7]).low > 0
        True
    """
    if len(values) != len(baseline):
        raise SpecError(f"pairs need as many values as baselines, not {len(values)} and {len(baseline)}")
    return mean_interval([value - base for value, base in zip(values, baseline, strict=True)])


def verdict(difference: Interval, *, higher_is_better: bool) -> str:
    """``"better"`` or ``"worse"`` where the interval of the difference excludes 0, else ``"not told apart"``.

    Example:
        >>> verdict(Interval(0.1, -0.01, 0.21, 0.1, 5), higher_is_better=True)
        'not told apart'
    """
    if difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def discoveries(differences: Sequence[Interval]) -> list[bool]:
    """Which of many differences hold where at most 5 % of those that are said to hold may be chance.

    Benjamini and Hochberg's procedure on the two-sided p of each t test; a single seed shows nothing.

    Example:
        >>> clear, doubtful = Interval(1.0, 0.9, 1.1, 0.08, 5), Interval(0.1, 0.01, 0.19, 0.07, 5)
        >>> nothing = [Interval(0.0, -1.0, 1.0, 0.8, 5)] * 8
        >>> discoveries([doubtful]), discoveries([clear, doubtful, *nothing])[:2]
        ([True], [True, False])
    """
    if not differences:
        return []
    adjusted = stats.false_discovery_control([_p(each) for each in differences])
    return [bool(p <= 1 - CONFIDENCE) for p in adjusted]


def _p(difference: Interval) -> float:
    """Of the t test that the mean is 0."""
    if difference.n == 1 or difference.mean == 0:
        return 1.0
    if difference.sd == 0:
        return 0.0
    t = abs(difference.mean) / (difference.sd / math.sqrt(difference.n))
    return float(2 * stats.t.sf(t, difference.n - 1))


def detectable(proportion: float, examples: int) -> float:
    """The least difference of two proportions that this many test examples show with 80 % power.

    ``(z_0.975 + z_0.8) sqrt(2 p (1 - p) / n)``: binomial standard errors of two models whose errors are taken
    as independent. Seeds do not help here: all are scored on the same examples.

    Example:
        >>> round(detectable(0.988, 200), 3)
        0.031
    """
    reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(_POWER))
    return reach * math.sqrt(2 * proportion * (1 - proportion) / examples)
