"""Dimension: how many directions the points of a layer really have, and ranks made of that."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tntune.errors import NumericalError, SpecError

__all__ = ["growth_sizes", "intrinsic_dimension"]


@torch.no_grad()
def intrinsic_dimension(points: Tensor, *, discard: float = 0.1) -> float:
    """TwoNN: the d for which ratios of the second to the first neighbour's distance follow ``1 - mu^-d``.

    The slope through the origin of ``-log(1 - F(mu))`` over ``log(mu)``, with F the empirical distribution;
    points with the largest ratios are left out. Rotations and scales do not change it. Repeated points count
    once.

    Args:
        points: ``(n, features)``; n in the thousands is enough, memory is n² numbers.
        discard: Share of the largest ratios to leave out, in [0, 1).

    Raises:
        SpecError: For another shape or share.
        NumericalError: For fewer than 3 different points, an entry that is not finite, or points on a
            lattice, whose ratios are all 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> plane = torch.rand(1000, 2, generator=generator) @ torch.randn(2, 20, generator=generator)
        >>> round(intrinsic_dimension(plane))
        2

    Reference: Facco, d'Errico, Rodriguez, Laio (2017), Scientific Reports 7, 12140.
    """
    if points.ndim != 2 or not 0 <= discard < 1:
        raise SpecError(
            f"points are (n, features), not {tuple(points.shape)}; discard={discard} is in [0, 1)"
        )
    own = torch.unique(points.double(), dim=0)
    if len(own) < 3 or not bool(own.isfinite().all()):
        raise NumericalError(
            f"{len(own)} different points, of which some may not be finite, have no dimension"
        )
    near = torch.cdist(own, own).topk(3, dim=1, largest=False).values[:, 1:]
    logs = (near[:, 1] / near[:, 0]).log().sort().values
    count = max(1, math.floor((1 - discard) * len(logs)))
    count = min(count, len(logs) - 1)  # F = 1 at the last, where the logarithm is infinite
    x = logs[:count]
    y = -torch.log1p(-torch.arange(1, count + 1, dtype=x.dtype, device=x.device) / len(logs))
    if not bool(x.isfinite().all()) or not float(x @ x) > 0:
        raise NumericalError("all neighbours are at one distance: the points lie on a lattice")
    return float((x @ y) / (x @ x))


def growth_sizes(dimensions: Sequence[float]) -> tuple[int, ...]:
    """``max(d_{l+1} - d_l, 0) + 1``, rounded: what each block adds to the dimension of its hidden states.

    After the idea of GeLoRA, whose exact rule we do not have: not a reproduction of it. Give the result to
    :func:`tntune.plugins.by_block`.

    Args:
        dimensions: Of the hidden states before the first block and behind each block.

    Raises:
        SpecError: For fewer than two, or one that is not finite.

    Example:
        >>> growth_sizes([5.0, 8.2, 7.0, 7.6])
        (4, 1, 2)

    Reference: after GeLoRA (arXiv 2412.09250).
    """
    if len(dimensions) < 2 or not all(math.isfinite(d) for d in dimensions):
        raise SpecError(f"growth needs two finite dimensions or more, not {list(dimensions)}")
    return tuple(round(max(after - before, 0.0)) + 1 for before, after in pairwise(dimensions))
