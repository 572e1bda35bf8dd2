"""How ranks are chosen: by accuracy, by limits, or by a budget of parameters spread over all bonds."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.errors import RankError

__all__ = [
    "RankRule",
    "ShrinkStep",
    "admissible",
    "allocate_ranks",
    "count_parameters",
    "interior",
    "shrink_path",
    "working_precision",
]


@dataclass(frozen=True, kw_only=True)
class RankRule:
    """Which ranks a truncation keeps: the smallest that meet the accuracy, never above a limit.

    ``tolerance`` and ``energy`` ask for accuracy; without either the result is exact to working precision.
    ``max_rank``, ``ranks`` and ``max_params`` limit it, and the limits win. Directions that vanish at working
    precision are always dropped, so a rank may come out below every limit.

    Args:
        tolerance: Relative Frobenius error of the whole result, in [0, 1).
        energy: Share of the squared norm to keep, in (0, 1]; the same as ``tolerance=sqrt(1 - energy)``.
        max_rank: Largest rank of any bond.
        ranks: Largest rank of each bond: the K - 1 interior ones, or all K + 1 with 1 at both ends.
        max_params: Largest number of core entries in total.

    Raises:
        RankError: Where a value is out of range, both accuracies are given, or ``ranks`` comes with another
            field.

    Example:
        >>> RankRule(energy=0.99, max_rank=8).accuracy
        0.1
    """

    tolerance: float | None = None
    energy: float | None = None
    max_rank: int | None = None
    ranks: tuple[int, ...] | None = None
    max_params: int | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise RankError(f"tolerance must be in [0, 1), got {self.tolerance}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise RankError(f"energy must be in (0, 1], got {self.energy}")
        if self.tolerance is not None and self.energy is not None:
            raise RankError("tolerance and energy both state the accuracy; give one of them")
        for name, value in (("max_rank", self.max_rank), ("max_params", self.max_params)):
            if value is not None and value < 1:
                raise RankError(f"{name} must be at least 1, got {value}")
        if self.ranks is not None:
            self._check_ranks(self.ranks)

    def _check_ranks(self, ranks: tuple[int, ...]) -> None:
        """Raise where explicit ranks are below 1 or not alone; hold them as a tuple."""
        if any(rank < 1 for rank in ranks):
            raise RankError(f"ranks must be at least 1, got {tuple(ranks)}")
        others = (self.tolerance, self.energy, self.max_rank, self.max_params)
        if any(value is not None for value in others):
            raise RankError("explicit ranks exclude every other field of a rank rule")
        object.__setattr__(self, "ranks", tuple(ranks))

    @property
    def accuracy(self) -> float:
        """The relative error allowed: ``tolerance``, or ``sqrt(1 - energy)``, or 0 where neither is given.

        Example:
            >>> RankRule(max_rank=3).accuracy
            0.0
        """
        if self.energy is not None:
            return sqrt(round(1 - self.energy, 15))
        return self.tolerance or 0.0

    def caps(self, modes: Sequence[int]) -> tuple[int, ...]:
        """Largest interior ranks the rule and the merged mode sizes allow, budget included.

        A rank r is within the budget where some train that has it is: with the least ranks elsewhere.

        Raises:
            RankError: Where the number of explicit ranks does not fit, or no train at all is within the
                budget.

        Example:
            >>> RankRule(max_rank=3).caps((2, 4, 8))
            (2, 3)
        """
        full = [prod(modes) if self.max_rank is None else self.max_rank] * (len(modes) - 1)
        caps = admissible(full if self.ranks is None else interior(self.ranks, len(modes)), modes)
        if self.max_params is None:
            return caps
        _check_budget(modes, self.max_params)
        return admissible([_affordable(k, cap, modes, self.max_params) for k, cap in enumerate(caps)], modes)


class ShrinkStep(NamedTuple):
    """One point of a shrink path: interior ranks, core entries, and the sum of all bonds' squared tails."""

    ranks: tuple[int, ...]
    params: int
    squared_error: float


def allocate_ranks(
    spectra: Sequence[Tensor], modes: Sequence[int], max_params: int, *, start: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The first ranks on the shrink path within the budget: ``count_parameters(ranks, modes) <= max_params``.

    Args:
        spectra: Singular values of each of the K - 1 bonds, in descending order.
        modes: Merged mode sizes of the K cores.
        max_params: Largest number of core entries.
        start: Ranks to start from, full ranks by default.

    Raises:
        RankError: Where even ranks of one are too large; names the smallest possible budget.

    Example:
        >>> allocate_ranks([torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.1])], (2, 2, 2), 12)
        (2, 1)
    """
    _check_budget(modes, max_params)
    path = shrink_path(spectra, modes, start=start)
    return next(step.ranks for step in path if step.params <= max_params)


def shrink_path(
    spectra: Sequence[Tensor], modes: Sequence[int], *, start: Sequence[int] | None = None
) -> list[ShrinkStep]:
    """Ranks from full to all ones, each step the one of least squared error added per parameter saved.

    A step lowers one bond by one, and with it the neighbours that would no longer be admissible
    (``r_k <= r_{k-1} n_k`` and ``r_k <= n_{k+1} r_{k+1}``). The squared errors are sums of the discarded
    squared singular values of all bonds: an upper bound of the error of rounding to these ranks, and at most
    K - 1 times the least possible one.

    Args:
        spectra: Singular values of each of the K - 1 bonds, in descending order.
        modes: Merged mode sizes of the K cores.
        start: Ranks to start from, full ranks by default; clipped to what is admissible.

    Returns:
        The steps in order of falling parameters, the first being the start and the last all ones.

    Raises:
        RankError: Where there is not one spectrum for each of the K - 1 bonds.

    Example:
        >>> path = shrink_path([torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.1])], (2, 2, 2))
        >>> [step.ranks for step in path]
        [(2, 2), (2, 1), (1, 1)]

    Reference: Oseledets (2011), theorem 2.2, for the error bound.
    """
    if len(spectra) != len(modes) - 1:
        raise RankError(f"{len(spectra)} spectra given for the {len(modes) - 1} bonds of {len(modes)} cores")
    tails = [_tail_energies(s) for s in spectra]
    lengths = [len(tail) - 1 for tail in tails]
    ranks = admissible(
        lengths if start is None else [min(p) for p in zip(start, lengths, strict=True)], modes
    )
    path = [_step(ranks, modes, tails)]
    while max(path[-1].ranks, default=1) > 1:
        path.append(min(_lowered(path[-1], modes, tails), key=lambda move: _price(path[-1], move)))
    return path


def count_parameters(ranks: Sequence[int], modes: Sequence[int]) -> int:
    """Core entries of a train: ``sum(r_{k-1} * n_k * r_k)``, from interior ranks and merged mode sizes.

    Example:
        >>> count_parameters((3,), (2, 4))
        18
    """
    ends = [1, *ranks, 1]
    return sum(ends[k] * mode * ends[k + 1] for k, mode in enumerate(modes))


def interior(ranks: int | Sequence[int], order: int) -> tuple[int, ...]:
    """The K - 1 interior ranks of a train of K cores, from one int for all, K - 1 ints, or all K + 1.

    Raises:
        RankError: Where the number of ranks fits neither form, or an outer rank is not 1.

    Example:
        >>> interior(4, 3), interior((1, 4, 2, 1), 3)
        ((4, 4), (4, 2))
    """
    if isinstance(ranks, int):
        return (ranks,) * (order - 1)
    if len(ranks) == order - 1:
        return tuple(ranks)
    if len(ranks) == order + 1 and ranks[0] == ranks[-1] == 1:
        return tuple(ranks[1:-1])
    raise RankError(
        f"{tuple(ranks)} are no ranks of {order} cores: give {order - 1}, or {order + 1} with 1 at both ends"
    )


def admissible(ranks: Iterable[int], modes: Sequence[int]) -> tuple[int, ...]:
    """The largest ranks below the given ones with ``r_k <= r_{k-1} n_k`` and ``r_k <= n_{k+1} r_{k+1}``.

    Example:
        >>> admissible((9, 9), (2, 4, 8))
        (2, 8)
    """
    bounded = [1, *ranks, 1]
    for k in range(1, len(modes)):
        bounded[k] = min(bounded[k], bounded[k - 1] * modes[k - 1])
    for k in range(len(modes) - 1, 0, -1):
        bounded[k] = min(bounded[k], modes[k] * bounded[k + 1])
    return tuple(bounded[1:-1])


def working_precision(dtype: torch.dtype) -> float:
    """Relative error of a bond that a dtype cannot resolve: 32 of its unit roundoffs.

    Example:
        >>> working_precision(torch.float64) < 1e-14
        True
    """
    return 32 * torch.finfo(dtype).eps


def _check_budget(modes: Sequence[int], max_params: int) -> None:
    """Raise where not even ranks of one are within the budget."""
    if sum(modes) > max_params:
        raise RankError(
            f"no train of modes {tuple(modes)} has {max_params} entries; the least is {sum(modes)}"
        )


def _affordable(bond: int, cap: int, modes: Sequence[int], max_params: int) -> int:
    """Largest rank, up to the cap, that this bond can have in some train within the budget."""
    candidates = range(1, cap + 1)
    return bisect_right(candidates, max_params, key=lambda rank: _least_parameters(bond, rank, modes))


def _least_parameters(bond: int, rank: int, modes: Sequence[int]) -> int:
    """Core entries of the smallest admissible train with that rank at that bond."""
    left = accumulate(modes[bond:0:-1], lambda r, n: -(-r // n), initial=rank)
    right = accumulate(modes[bond + 1 : -1], lambda r, n: -(-r // n), initial=rank)
    return count_parameters([*list(left)[::-1], *list(right)[1:]], modes)


def _tail_energies(spectrum: Tensor) -> list[float]:
    """Squared error of keeping 0, 1, ..., all singular values."""
    energies = spectrum.detach().double().square().flip(0).cumsum(0).flip(0)
    return [*energies.tolist(), 0.0]


def _step(ranks: tuple[int, ...], modes: Sequence[int], tails: Sequence[list[float]]) -> ShrinkStep:
    """The step of given ranks."""
    error = sum(tail[rank] for tail, rank in zip(tails, ranks, strict=True))
    return ShrinkStep(ranks, count_parameters(ranks, modes), error)


def _lowered(step: ShrinkStep, modes: Sequence[int], tails: Sequence[list[float]]) -> Iterator[ShrinkStep]:
    """Every step that lowers one bond by one, and its neighbours as far as they must follow."""
    for k, rank in enumerate(step.ranks):
        if rank > 1:
            yield _step(admissible([*step.ranks[:k], rank - 1, *step.ranks[k + 1 :]], modes), modes, tails)


def _price(step: ShrinkStep, move: ShrinkStep) -> tuple[float, int]:
    """Squared error added per parameter saved; of equal prices the larger saving comes first."""
    saved = step.params - move.params
    return (move.squared_error - step.squared_error) / saved, -saved
