"""Tolerance: the smallest budget whose candidate meets an error, by bisection over cheap forecasts."""

from collections.abc import Callable

__all__ = ["smallest_budget", "verified_budget"]

_STEP = 1.01  # budgets that differ by less are one
_TRIALS = 5  # candidates that are made to verify a forecast
_NEAR = 0.98  # of the tolerance: near enough
_MOST = 2.0  # by which a goal is raised at once


def smallest_budget(error: Callable[[int], float], least: int, most: int, tolerance: float) -> int:
    """A budget in [least, most] with ``error(budget) <= tolerance``, where one a percent smaller misses it.

    ``most`` where nothing less is known to meet it. The error is taken to fall with the budget; where it does
    not, a larger budget than needed may be found, and never one that misses.

    Example:
        >>> smallest_budget(lambda budget: 1 / budget, 1, 1000, 0.1) in (10, 11)
        True
    """
    if least >= most or error(least) <= tolerance:
        return min(least, most)
    low, high = least, most
    while high > low + 1 and high > _STEP * low:
        middle = min(max(round((low * high) ** 0.5), low + 1), high - 1)
        if error(middle) <= tolerance:
            high = middle
        else:
            low = middle
    return high


def verified_budget(
    forecast: Callable[[int], float],
    measured: Callable[[int], float],
    least: int,
    most: int,
    tolerance: float,
) -> int | None:
    """The smallest budget found with ``measured(budget) <= tolerance``; None where ``most`` misses it too.

    The forecast's goal is moved by how far it was off, a few times.

    Args:
        forecast: Error of a budget, cheap and rough.
        measured: The error of what is stored.
        least: Smallest budget.
        most: Largest.
        tolerance: Relative error.

    Example:
        >>> verified_budget(lambda budget: 1.5 / budget, lambda budget: 1 / budget, 1, 1000, 0.1) in (10, 11)
        True
    """
    goal, found = tolerance, None
    for _ in range(_TRIALS):
        budget = smallest_budget(forecast, least, most, goal)
        if budget == found:
            break
        error = measured(budget)
        ratio = min(_MOST, tolerance / error) if error else _MOST
        if error <= tolerance:
            found = most = budget
            goal *= ratio
        elif budget == most:
            break
        else:
            least = budget + 1
            goal = _NEAR * ratio * min(goal, forecast(budget))
        if found is not None and (least >= found or _NEAR * tolerance <= error <= tolerance):
            break
    if found is None and budget < most and measured(most) <= tolerance:
        found = most
    return found
