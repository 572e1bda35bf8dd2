"""Environments: what surrounds a core of a train when two trains with the same modes are contracted.

Merged cores are ``H_k[(a x), m, (b y)] = Σ_n G_k[a, n, m, b] A_k[x, n, m, y]``, with trained cores G and
fixed weights A: the train of the H is w. Letters in equations: a, b bonds of G, x, y bonds of A, s, t, u, v
bonds of merged trains, n the latent leg, m the open mode, p a batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["embedded", "left_overlaps", "merged", "pulled_back", "right_overlaps"]


def merged(cores: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Cores of w: ``dense(merged(G, A))[m] == Σ_n dense(A)[n, m] dense(G)[n, m]``.

    Args:
        cores: G_k (r, n, m, r').
        weights: A_k (q, n, m, q').

    Returns:
        H_k (r q, m, r' q').

    Example:
        >>> one = torch.ones(1, 2, 3, 1)
        >>> merged([one], [one])[0].flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    return [embedded(core, weight) for core, weight in zip(cores, weights, strict=True)]


def embedded(core: Tensor, weight: Tensor) -> Tensor:
    """One merged core, or a batch of them: linear in the core.

    Args:
        core: (..., r, n, m, r').
        weight: (q, n, m, q').

    Returns:
        (..., r q, m, r' q').

    Example:
        >>> embedded(torch.ones(5, 2, 1, 3, 2), torch.ones(4, 1, 3, 1)).shape
        torch.Size([5, 8, 3, 2])
    """
    wide = torch.einsum("...anmb,xnmy->...axmby", core, weight)
    return wide.flatten(-2).flatten(-4, -3)


def pulled_back(hole: Tensor, weight: Tensor) -> Tensor:
    """The transpose of :func:`embedded`: ``<embed g, h> == <g, pull h back>`` for every core g and hole h.

    Args:
        hole: (..., r q, m, r' q').
        weight: (q, n, m, q').

    Returns:
        (..., r, n, m, r').

    Example:
        >>> pulled_back(torch.ones(8, 3, 2), torch.ones(4, 1, 3, 1))[0, 0, 0]
        tensor([4., 4.])
    """
    x, _, _, y = weight.shape
    *batch, rows, m, columns = hole.shape
    split = hole.reshape(*batch, rows // x, x, m, columns // y, y)
    return torch.einsum("...axmby,xnmy->...anmb", split, weight)


def left_overlaps(top: Sequence[Tensor], bottom: Sequence[Tensor]) -> list[Tensor]:
    """``left_overlaps(T, H)[k] == T_{<k}ᵀ H_{<k}``, for k = 0 .. K, of interfaces of two trains.

    Boundary bonds are summed: the interface before the first core is a row of ones.

    Args:
        top: Cores (u, m, u') of one train.
        bottom: Cores (s, m, s') of another of the same modes.

    Returns:
        K + 1 matrices (u_k, s_k), in O(K m r^3).

    Example:
        >>> left_overlaps([torch.ones(1, 2, 3)], [torch.ones(1, 2, 1)])[1].flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    found = [top[0].new_ones(top[0].shape[0], bottom[0].shape[0])]
    for one, other in zip(top, bottom, strict=True):
        half = torch.tensordot(found[-1], other, dims=1)  # (u, m, s')
        found.append(one.flatten(0, 1).mT @ half.flatten(0, 1))
    return found


def right_overlaps(top: Sequence[Tensor], bottom: Sequence[Tensor]) -> list[Tensor]:
    """``right_overlaps(T, H)[k] == T_{>=k} H_{>=k}ᵀ``, for k = 0 .. K: (u_k, s_k), as on the left.

    Example:
        >>> right_overlaps([torch.ones(3, 2, 1)], [torch.ones(1, 2, 1)])[0].flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    mirrored = left_overlaps(_mirrored(top), _mirrored(bottom))
    return mirrored[::-1]


def _mirrored(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same train read from right to left."""
    return [core.permute(2, 1, 0) for core in reversed(cores)]
