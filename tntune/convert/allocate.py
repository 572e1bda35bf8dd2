"""One budget over many layers: the options whose total error is least for the parameters they cost."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from tntune.convert.option import Option
from tntune.errors import RankError

__all__ = ["ROUNDING", "allocate", "lower_hull"]

ROUNDING = 1e-9
"""Squared errors that differ by less than that share of their size differ by rounding."""

_NOTHING = 1e-24  # squared errors below that share of the largest are rounding alone


class _Move(NamedTuple):
    gain: float
    layer: str
    position: int
    option: Option


def allocate(curves: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """For each layer one of its options: total parameters within ``budget``, total squared error small.

    Moves along the lower convex hull of every layer's (parameters, squared error), best gain per parameter
    first: optimal among hull points up to the last move that still fits. What is left over goes to single
    layers that gain most from it.

    Args:
        curves: Options of each layer, in any order.
        budget: Total number of parameters.

    Raises:
        RankError: Where even the cheapest options are too large; names the smallest possible budget.

    Example:
        >>> curve = [Option("svd", "", (r,), 10 * r, (4 - r) ** 2) for r in range(1, 5)]
        >>> [option.ranks for option in allocate({"a": curve, "b": curve}, 55).values()]
        [(3,), (2,)]
    """
    fronts = {name: _front(options) for name, options in curves.items()}
    hulls = {name: lower_hull(options) for name, options in fronts.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(option.params for option in chosen.values())
    if left < 0:
        raise RankError(
            f"a budget of {budget} parameters is too small; the least possible is {budget - left}"
        )
    blocked = set()
    for move in sorted(_moves(hulls), key=lambda move: (-move.gain, move.layer, move.position)):
        cost = move.option.params - chosen[move.layer].params
        if move.layer in blocked or cost > left:
            blocked.add(move.layer)
            continue
        chosen[move.layer], left = move.option, left - cost
    _spend(chosen, fronts, left)
    return chosen


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """Options on the lower convex hull of (parameters, squared error): parameters rise, errors fall.

    Example:
        >>> points = ((10, 9.0), (20, 8.0), (30, 1.0), (40, 2.0))
        >>> [o.params for o in lower_hull([Option("svd", "", (1,), *point) for point in points])]
        [10, 30]
    """
    hull: list[Option] = []
    for option in _front(options):
        while len(hull) > 1 and _slope(hull[-2], option) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _front(options: Sequence[Option]) -> list[Option]:
    """Options by size, without those that are no better, to rounding, than a smaller one."""
    nothing = _NOTHING * max(option.squared_error for option in options)
    front: list[Option] = []
    for option in sorted(options, key=lambda option: (option.params, option.squared_error)):
        least = front[-1].squared_error if front else float("inf")
        if least > nothing and option.squared_error < (1 - ROUNDING) * least:
            front.append(option)
    return front


def _slope(first: Option, second: Option) -> float:
    """Squared error per parameter; negative along a hull."""
    return (second.squared_error - first.squared_error) / max(second.params - first.params, 1)


def _moves(hulls: Mapping[str, Sequence[Option]]) -> list[_Move]:
    return [
        _Move(-_slope(first, second), name, position, second)
        for name, hull in hulls.items()
        for position, (first, second) in enumerate(pairwise(hull))
    ]


def _spend(chosen: dict[str, Option], fronts: Mapping[str, Sequence[Option]], left: int) -> None:
    """Use what is left: the layer with most to lose first, its best option that fits."""
    for name in sorted(chosen, key=lambda name: (-chosen[name].squared_error, name)):
        limit = chosen[name].params + left
        best = [option for option in fronts[name] if option.params <= limit][-1]
        left -= best.params - chosen[name].params
        chosen[name] = best
