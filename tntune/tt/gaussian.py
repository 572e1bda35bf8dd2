"""Random trains whose entries have a stated variance, whatever the ranks."""

from collections.abc import Sequence
from math import prod

import torch

from tntune.errors import ModeError, RankError
from tntune.tt.rank_rule import interior
from tntune.tt.train import ModeSizes, Train, tt_matrix, tt_tensor

__all__ = ["gaussian"]


def gaussian(
    modes: ModeSizes,
    ranks: int | Sequence[int],
    *,
    variance: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Train:
    """Random train of mean zero: each entry of ``dense(x)`` has the stated variance, over draws of the cores.

    Core entries are independent and normal with variance v, where ``v**K * prod(ranks) == variance``: an
    entry is a sum of prod(ranks) products of K of them. Complex entries share the variance between both
    parts.

    Args:
        modes: Mode sizes: ints make a tensor, pairs ``(n_in, n_out)`` a matrix.
        ranks: One rank for every bond, the K - 1 interior ones, or all K + 1 with 1 at both ends.
        variance: Variance of every dense entry, at least 0.
        generator: CPU generator; torch's own where there is none.
        dtype: Dtype of the cores. The draw is made in double precision on the CPU and then converted, so that
            the values depend neither on the device nor, but for rounding, on the dtype.
        device: Device of the cores.

    Raises:
        ModeError: Where there is no mode, or one below 1.
        RankError: Where the ranks do not fit the modes or are below 1, or the variance is negative.

    Example:
        >>> x = gaussian((4, 6), 3, generator=torch.Generator().manual_seed(0))
        >>> x.shape, x.rank
        ((4, 6), (1, 3, 1))
    """
    inner = interior(ranks, len(modes))
    shapes = [(mode,) if isinstance(mode, int) else tuple(mode) for mode in modes]
    if not shapes or min(size for shape in shapes for size in shape) < 1:
        raise ModeError(f"at least one mode is needed and none below 1, got {modes}")
    if min(inner, default=1) < 1 or variance < 0:
        raise RankError(f"ranks must be at least 1 and variance at least 0, got {inner} and {variance}")
    ends = [1, *inner, 1]
    deviation = (variance / prod(inner)) ** (0.5 / len(shapes))
    drawn = torch.complex128 if dtype.is_complex else torch.float64
    cores = [
        (torch.randn(ends[k], *shape, ends[k + 1], dtype=drawn, generator=generator) * deviation).to(
            device, dtype
        )
        for k, shape in enumerate(shapes)
    ]
    return tt_tensor(cores) if len(shapes[0]) == 1 else tt_matrix(cores)
