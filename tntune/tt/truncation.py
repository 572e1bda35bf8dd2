"""One truncating sweep over the bonds of a train: which ranks stay, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from tntune.tt.rank_rule import RankRule, working_precision
from tntune.tt.train import Train, ranks

__all__ = ["Rounded", "Sweep"]


@dataclass(frozen=True)
class Rounded:
    """A train and its distance from what was given: ``norm(value - given) == error * norm(given)``.

    The error is exact to rounding, not a bound: each truncation is an orthogonal projection of what is left,
    so their squares add up. It counts truncation only; the cast back to float16 or bfloat16 comes on top.

    Example:
        >>> import torch
        >>> from tntune.tt.decompose import tt_svd
        >>> rounded = tt_svd(torch.ones(2, 3, 4))
        >>> rounded.ranks, rounded.error < 1e-5
        ((1, 1, 1, 1), True)
    """

    value: Train
    error: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The K + 1 ranks of the value."""
        return ranks(self.value)


class Sweep:
    """Chooses the ranks bond by bond, left to right, and keeps account of the squared error.

    The squared error allowed is shared evenly among the bonds still to come, so what one bond leaves unused
    serves the next ones, and the sum cannot exceed the whole. Each bond may at least discard what its dtype
    cannot resolve.
    """

    def __init__(self, rule: RankRule, modes: Sequence[int], dtype: torch.dtype) -> None:
        self._caps = list(rule.caps(modes))
        self._allowed = rule.accuracy**2
        self._unresolved = working_precision(dtype) ** 2
        self._norm = 0.0
        self._lost = 0.0

    def rank(self, spectrum: Tensor) -> int:
        """The rank to keep at the next bond, of the singular values of what is left of the tensor there."""
        values = spectrum.double().numpy(force=True)
        self._norm = self._norm or float(np.linalg.norm(values / (values[0] or 1.0)) * values[0])
        energies = (values[::-1] / (self._norm or 1.0)) ** 2
        tails = energies.cumsum()[::-1]  # tails[r]: squared relative error of keeping r
        share = max((self._allowed - self._lost) / len(self._caps), self._unresolved)
        rank = max(1, min(int(np.count_nonzero(tails > share)), self._caps.pop(0)))
        self._lost += float(tails[rank]) if rank < len(tails) else 0.0
        return rank

    @property
    def error(self) -> float:
        """The relative error made so far."""
        return sqrt(self._lost)
