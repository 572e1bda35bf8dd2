"""Target: how small or how accurate an adapter is to become, and the choice that meets it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tntune.convert.allocate import ROUNDING, allocate
from tntune.convert.option import Encoder, Option
from tntune.errors import SpecError

__all__ = ["Target", "choose", "train_options"]

_POINTS = 12
_TIE = 1e-4  # squared errors that differ by less, relatively, differ by rounding
_EXACT = 1e-6  # relative errors below count as none where ranks alone are capped


@dataclass(frozen=True)
class Target:
    """Exactly one of four aims.

    Attributes:
        params: Share of the parameters to keep, in (0, 1].
        max_params: Number of parameters to keep.
        tolerance: Relative error to meet at the fewest parameters: in every layer, or in all of them together
            where whole adapters are made (joint, or with a calibration).
        max_rank: Cap on every TT-rank (or on the rank of a truncated SVD).

    Raises:
        SpecError: Where none or several are given, or one is out of range.

    Example:
        >>> Target(params=0.5).budget(1001)
        500
    """

    params: float | None = None
    max_params: int | None = None
    tolerance: float | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        given = self.to_json()
        if len(given) != 1:
            names = "params, max_params, tolerance, max_rank"
            raise SpecError(f"give exactly one of {names}; given: {', '.join(given) or 'none'}")
        if self.params is not None and not 0 < self.params <= 1:
            raise SpecError(f"params is the share to keep, in (0, 1], not {self.params}")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise SpecError(f"tolerance must be in [0, 1), not {self.tolerance}")
        for name, value in (("max_params", self.max_params), ("max_rank", self.max_rank)):
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1, not {value}")

    def to_json(self) -> dict[str, float]:
        """The one that is given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def budget(self, total: int) -> int | None:
        """Number of parameters to keep of ``total``; None where the target is not a budget."""
        if self.params is not None:
            return int(self.params * total)
        return self.max_params

    def met(self, options: Mapping[str, Option], norms: Mapping[str, float], total: int) -> bool:
        """Whether a choice meets the target."""
        if self.tolerance is not None:
            return all(o.squared_error <= (self.tolerance * norms[name]) ** 2 for name, o in options.items())
        if self.max_rank is not None:
            return all(max(option.ranks, default=0) <= self.max_rank for option in options.values())
        return sum(option.params for option in options.values()) <= (self.budget(total) or 0)


def train_options(encoder: Encoder, layout: str, target: Target, share: float) -> Iterator[Option]:
    """The trains in one layout that matter for a target.

    For a budget, up to a dozen points of the shrink path, evenly spaced in log-parameters around ``share``
    (this layer's even part of the budget) and the last; for a tolerance, the first point from below that
    meets it; for a cap, the capped ranks.

    Example:
        >>> import torch
        >>> from tntune.convert.encode import DeltaEncoder
        >>> from tntune.convert.gauge import balance
        >>> encoder = DeltaEncoder(balance(torch.eye(2, 5), torch.eye(4, 2)), torch.float32)
        >>> [option.ranks for option in train_options(encoder, "io w", Target(max_rank=1), 18)]
        [(1, 1, 1)]
    """
    path = encoder.path(layout)
    if target.max_rank is not None:
        yield encoder.at(layout, [min(rank, target.max_rank) for rank in path[0].ranks])
    elif target.tolerance is not None:
        yield _smallest(encoder, layout, target.tolerance)
    else:
        largest, smallest = min(path[0].params, 4 * share), max(path[-1].params, share / 4)
        goals = [largest * (smallest / largest) ** (i / (_POINTS - 1)) for i in range(_POINTS)]
        nearest = {min(range(len(path)), key=lambda i: abs(path[i].params - goal)) for goal in goals}
        for i in sorted(nearest | {len(path) - 1}):
            yield encoder.at(layout, path[i].ranks)


def choose(
    curves: Mapping[str, Sequence[Option]], norms: Mapping[str, float], target: Target, total: int
) -> dict[str, Option]:
    """One option for each layer: within the budget, or each the best for its tolerance or cap.

    Within a budget, never worse in total than the best choice that stays with one method.

    Args:
        curves: Options of each layer.
        norms: Norm to which each layer's error is relative.
        target: What is aimed at.
        total: Parameters of all layers before.

    Raises:
        RankError: Where the budget is below the cheapest options.

    Example:
        >>> exact, rough = Option("svd", "", (2,), 20, 0.0), Option("svd", "", (1,), 10, 0.01)
        >>> choose({"fc": [exact, rough]}, {"fc": 1.0}, Target(tolerance=0.2), 20)["fc"].ranks
        (1,)
    """
    budget = target.budget(total)
    if budget is not None:
        return _closest([allocate(choice, budget) for choice in (curves, *_of_one_method(curves))])
    tolerance = _EXACT if target.tolerance is None else target.tolerance
    return {name: _cheapest(options, (tolerance * norms[name]) ** 2) for name, options in curves.items()}


def _of_one_method(curves: Mapping[str, Sequence[Option]]) -> Iterator[dict[str, list[Option]]]:
    """The curves cut down to one method each, dropping a layer allowed, where that leaves every layer one."""
    for method in ("tensorguide", "svd"):
        own = {
            name: [option for option in options if option.method in (method, "kept", "dropped")]
            for name, options in curves.items()
        }
        if all(any(option.method != "kept" for option in options) for options in own.values()):
            yield own


def _closest(choices: Sequence[dict[str, Option]]) -> dict[str, Option]:
    """The choice of least total error, and of those that differ by rounding the smallest."""
    losses = [math.fsum(option.squared_error for option in choice.values()) for choice in choices]
    close = [c for c, loss in zip(choices, losses, strict=True) if loss <= (1 + ROUNDING) * min(losses)]
    return min(close, key=lambda choice: sum(option.params for option in choice.values()))


def _cheapest(options: Sequence[Option], allowed: float) -> Option:
    """The option of fewest parameters within the squared error, or else among the most accurate."""
    least = min(option.squared_error for option in options) * (1 + _TIE)
    meeting = (option for option in options if option.squared_error <= max(allowed, least))
    return min(meeting, key=lambda option: (option.params, option.squared_error))


def _smallest(encoder: Encoder, layout: str, tolerance: float) -> Option:
    """The last option of the path that meets the tolerance, by bisection; the first where none does."""
    path = encoder.path(layout)
    allowed = (tolerance * encoder.norm) ** 2
    best, low, high = encoder.at(layout, path[0].ranks), 1, len(path) - 1
    while low <= high:
        middle = (low + high) // 2
        option = encoder.at(layout, path[middle].ranks)
        if option.squared_error <= allowed:
            best, low = option, middle + 1
        else:
            high = middle - 1
    return best
