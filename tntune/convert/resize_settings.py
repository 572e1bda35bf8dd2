"""ResizeSettings: how small or how accurate a LoRA is to become, and the ranks that make it so."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tntune.convert.encode import check_stored
from tntune.convert.jobs import check_jobs
from tntune.convert.truncation import svd_ranks
from tntune.errors import RankError, SpecError

__all__ = ["ResizeSettings", "resized_ranks"]

_AIMS = ("rank", "params", "max_params", "tolerance", "energy")


@dataclass(frozen=True)
class ResizeSettings:
    """Exactly one of five aims, for the adapter as a whole or for each layer alike.

    Attributes:
        rank: Largest rank of any layer.
        params: Share of the parameters to keep, in (0, 1].
        max_params: Number of parameters to keep.
        tolerance: Relative error to meet, in [0, 1).
        energy: Share of the squared norm to keep, in (0, 1]: ``1 - tolerance²``.
        uniform: A budget keeps the same share of every layer's rank, a tolerance or energy is met by every
            layer. Else one budget, or error, is spent over all layers by their singular values. A cap on the
            rank is the same for both.
        dtype: Dtype to store; by default each factor keeps its own.
        jobs: Processes that work on layers at a time; the result does not depend on it.

    Raises:
        SpecError: Where none or several are given, or one is out of range.
        DtypeError: For a dtype that is not of floating point, or of less than 16 bits.

    Example:
        >>> ResizeSettings(energy=0.75).lost, ResizeSettings(params=0.5).budget(1001)
        (0.25, 500)
    """

    rank: int | None = None
    params: float | None = None
    max_params: int | None = None
    tolerance: float | None = None
    energy: float | None = None
    uniform: bool = False
    dtype: torch.dtype | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        given = [name for name in _AIMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError(f"give exactly one of {', '.join(_AIMS)}; given: {', '.join(given) or 'none'}")
        for name, share in (("params", self.params), ("energy", self.energy)):
            if share is not None and not 0 < share <= 1:
                raise SpecError(f"{name} is the share to keep, in (0, 1], not {share}")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise SpecError(f"tolerance must be in [0, 1), not {self.tolerance}")
        for name, value in (("rank", self.rank), ("max_params", self.max_params)):
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1, not {value}")
        check_stored(self.dtype)
        check_jobs(self.jobs)

    @property
    def lost(self) -> float | None:
        """Share of the squared norm that may go; None where size is the aim."""
        if self.energy is not None:
            return 1 - self.energy
        return None if self.tolerance is None else self.tolerance**2

    def budget(self, total: int) -> int | None:
        """Number of parameters to keep of ``total``; None where that is not the aim."""
        return int(self.params * total) if self.params is not None else self.max_params

    def to_json(self) -> dict[str, Any]:
        """The aim, the way it is spread, and the dtype."""
        aim = {name: value for name in _AIMS if (value := getattr(self, name)) is not None}
        return {**aim, "uniform": self.uniform, "dtype": str(self.dtype) if self.dtype else None}


def resized_ranks(
    settings: ResizeSettings,
    spectra: Mapping[str, Tensor],
    widths: Mapping[str, int],
    sizes: Mapping[str, int],
    *,
    rounding: float = 0.0,
) -> dict[str, int]:
    """The rank of each layer: 0 where it is dropped, its width where it stays as it is.

    Ranks for all layers together never leave more than uniform ones of the same budget, and never cost more
    than uniform ones of the same tolerance.

    Args:
        settings: What is aimed at.
        spectra: Non-zero singular values of each ΔW, falling; of its weighted form in a task norm.
        widths: Rank of each layer before.
        sizes: Parameters of one rank of each layer, ``in + out``.
        rounding: Relative error by storing, for which a tolerance leaves room.

    Raises:
        RankError: Where the budget is below one rank of any layer.

    Example:
        >>> spectra = {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0, 1.0])}
        >>> widths, sizes = {"a": 2, "b": 2}, {"a": 5, "b": 5}
        >>> resized_ranks(ResizeSettings(params=0.5), spectra, widths, sizes)
        {'a': 2, 'b': 0}
        >>> resized_ranks(ResizeSettings(params=0.5, uniform=True), spectra, widths, sizes)
        {'a': 1, 'b': 1}
    """
    squares = {name: values.double().square().tolist() for name, values in spectra.items()}
    if settings.rank is not None:
        return {name: min(settings.rank, len(values)) for name, values in squares.items()}
    if settings.lost is not None:
        share = settings.lost - rounding**2
        return _accurate(squares, sizes, share, settings.uniform) if share > 0 else dict(widths)
    total = sum(widths[name] * sizes[name] for name in widths)
    budget = settings.budget(total) or 0
    if budget >= total:
        return dict(widths)
    ranks = _even(squares, sizes, budget)
    if not settings.uniform:
        free = svd_ranks(spectra, sizes, budget)
        ranks = min(free, ranks, key=lambda choice: _left(squares, choice))
    if not any(ranks.values()):
        what = "one rank of every layer" if settings.uniform else "one rank of any layer"
        raise RankError(f"a budget of {budget} of {total} parameters is too small for {what}")
    return ranks


def _even(squares: Mapping[str, Sequence[float]], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """The same share of every layer's rank, rounded down."""
    share = min(1.0, budget / sum(len(values) * sizes[name] for name, values in squares.items()))
    return {name: int(share * len(values) + 1e-9) for name, values in squares.items()}


def _left(squares: Mapping[str, Sequence[float]], ranks: Mapping[str, int]) -> float:
    """Squared error of truncation to these ranks."""
    return math.fsum(value for name, values in squares.items() for value in values[ranks[name] :])


def _accurate(
    squares: Mapping[str, Sequence[float]], sizes: Mapping[str, int], share: float, uniform: bool
) -> dict[str, int]:
    """Ranks that lose at most that share of the squared norm: in every layer, or of all together."""
    each = {
        name: _fewest({name: values}, sizes, share * math.fsum(values))[name]
        for name, values in squares.items()
    }
    if uniform:
        return each
    total = math.fsum(value for values in squares.values() for value in values)
    return min(_fewest(squares, sizes, share * total), each, key=lambda ranks: _params(ranks, sizes))


def _params(ranks: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return sum(rank * sizes[name] for name, rank in ranks.items())


def _fewest(
    squares: Mapping[str, Sequence[float]], sizes: Mapping[str, int], allowed: float
) -> dict[str, int]:
    """Ranks left when singular values go that bring least per parameter, as many as are allowed to."""
    ranks = {name: len(values) for name, values in squares.items()}
    queue = [(values[-1] / sizes[name], name) for name, values in squares.items() if values]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        loss = squares[name][ranks[name] - 1]
        if loss > allowed:
            continue
        ranks[name], allowed = ranks[name] - 1, allowed - loss
        if ranks[name]:
            heapq.heappush(queue, (squares[name][ranks[name] - 1] / sizes[name], name))
    return ranks
