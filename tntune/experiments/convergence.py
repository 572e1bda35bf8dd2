"""Does the tangent kernel at the start foretell how fast a training converges? Correlations over runs."""

from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

from tntune.experiments.record import Record

__all__ = ["Correlation", "correlations", "steps_to", "target_score"]

_SHARE = 0.9
_LEAST = 4  # records below which a correlation says nothing


class Correlation(NamedTuple):
    """Spearman's rank correlation of a number at the start with the steps to a target.

    Attributes:
        name: Of the number, a key of :attr:`tntune.experiments.Record.kernel`.
        rho: In [-1, 1]; negative where larger numbers go with fewer steps.
        p: Chance of one as large among unrelated numbers; runs of one method are not independent, so it is
            a lower bound at best.
        n: Runs.

    Example:
        >>> Correlation("cond_plus", 0.5, 0.1, 12).rho
        0.5
    """

    name: str
    rho: float
    p: float
    n: int


def target_score(records: Sequence[Record]) -> float:
    """The score that is 90 % of the way from the median start to the best validation score of all records."""
    best = max if records[0].higher_is_better else min
    starts = sorted(record.scores[0][1][record.score] for record in records)
    start = starts[len(starts) // 2]
    top = best(scores[record.score] for record in records for _, scores in record.scores)
    return start + _SHARE * (top - start)


def steps_to(record: Record, target: float) -> float:
    """The first evaluated step at which validation reaches a score; infinity where it never does."""
    sign = 1 if record.higher_is_better else -1
    reached = (step for step, scores in record.scores if sign * scores[record.score] >= sign * target)
    return float(next(reached, float("inf")))


def correlations(records: Sequence[Record]) -> tuple[Correlation, ...]:
    """Of every number of the kernels at the start with the steps to :func:`target_score`, over these runs.

    Runs that never arrive count as the slowest. Nothing is returned for fewer than four runs, or where all
    take the same steps.

    Example:
        >>> correlations([])
        ()
    """
    known = [record for record in records if record.is_final and record.kernel]
    if len(known) < _LEAST:
        return ()
    target = target_score(known)
    steps = [min(steps_to(record, target), 2.0 * record.steps + 1) for record in known]
    found = []
    for name in known[0].kernel or ():
        values = [record.kernel[name] for record in known if record.kernel]
        if len(set(values)) > 1 and len(set(steps)) > 1:
            rho, p = stats.spearmanr(values, steps)
            found.append(Correlation(name, float(rho), float(p), len(known)))
    return tuple(found)
