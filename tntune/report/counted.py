"""CountedSpectrum: eigenvalues with multiplicities, as those of J Jᵀ come."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["CountedSpectrum"]

_EQUAL = 1e-9  # neighbours this close, relative to themselves, are one eigenvalue


@dataclass(frozen=True)
class CountedSpectrum:
    """Eigenvalues of a positive semidefinite matrix: ``values[i]`` occurs ``counts[i]`` times.

    Attributes:
        values: Distinct eigenvalues above rounding, descending.
        counts: How often each occurs.
        size: Rows of the matrix; ``size - rank`` eigenvalues are zero to rounding.

    Example:
        >>> found = CountedSpectrum.of([(4.0, 1), (1.0, 2), (0.0, 1)], size=4)
        >>> found.rank, found.nullity, found.condition
        (3, 1, 4.0)
    """

    values: tuple[float, ...]
    counts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, int]], *, size: int) -> "CountedSpectrum":
        """Pairs (eigenvalue, count) in any order: equal ones joined, those that are rounding left out.

        Eigenvalues are squares of singular values, so rounding is ``(size ε)²`` of the largest.

        Example:
            >>> CountedSpectrum.of([(1.0, 2), (1.0, 3)], size=5)
            CountedSpectrum(values=(1.0,), counts=(5,), size=5)
        """
        ordered = sorted(pairs, reverse=True)
        top = ordered[0][0] if ordered else 0.0
        limit = (max(size, 1) * torch.finfo(torch.float64).eps) ** 2 * top
        values: list[float] = []
        counts: list[int] = []
        for value, count in ordered:
            if value <= limit or not count:
                continue
            if values and values[-1] - value <= _EQUAL * values[-1]:
                counts[-1] += count
            else:
                values.append(value)
                counts.append(count)
        return cls(tuple(values), tuple(counts), size)

    def joined(self, other: "CountedSpectrum") -> "CountedSpectrum":
        """The spectrum of both matrices as blocks along one diagonal.

        Example:
            >>> one = CountedSpectrum((2.0,), (1,), 2)
            >>> one.joined(one).counts, one.joined(one).size
            ((2,), 4)
        """
        pairs = [*zip(self.values, self.counts, strict=True), *zip(other.values, other.counts, strict=True)]
        return CountedSpectrum.of(pairs, size=self.size + other.size)

    @property
    def rank(self) -> int:
        """Eigenvalues that are not zero."""
        return sum(self.counts)

    @property
    def nullity(self) -> int:
        """Eigenvalues that are."""
        return self.size - self.rank

    @property
    def lambda_max(self) -> float:
        """The largest; 0 for the zero matrix."""
        return self.values[0] if self.values else 0.0

    @property
    def lambda_min_plus(self) -> float | None:
        """The smallest that is not zero."""
        return self.values[-1] if self.values else None

    @property
    def condition(self) -> float | None:
        """``λ_max / λ_min⁺``."""
        return self.values[0] / self.values[-1] if self.values else None

    @property
    def trace(self) -> float:
        """Their sum."""
        return math.fsum(value * count for value, count in zip(self.values, self.counts, strict=True))

    @property
    def effective_ranks(self) -> dict[str, float]:
        """``stable`` tr / λ_max, ``participation`` (tr)² / Σ λ², ``entropy`` exp H; 0 for the zero matrix."""
        if not self.values:
            return {"stable": 0.0, "participation": 0.0, "entropy": 0.0}
        pairs = [(value / self.trace, count) for value, count in zip(self.values, self.counts, strict=True)]
        squares = math.fsum(share**2 * count for share, count in pairs)
        entropy = -math.fsum(share * math.log(share) * count for share, count in pairs)
        return {
            "stable": self.trace / self.lambda_max,
            "participation": 1 / squares,
            "entropy": math.exp(entropy),
        }

    @property
    def extremes(self) -> tuple[float, float | None, float | None]:
        """``(λ_max, λ_min⁺, condition)``."""
        return self.lambda_max, self.lambda_min_plus, self.condition

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "size": self.size,
            "rank": self.rank,
            "nullity": self.nullity,
            "lambda_max": self.lambda_max,
            "lambda_min_plus": self.lambda_min_plus,
            "condition": self.condition,
            "effective_ranks": self.effective_ranks,
            "values": list(self.values),
            "counts": list(self.counts),
        }
