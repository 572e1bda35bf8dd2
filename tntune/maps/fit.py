"""Fits of a dense tensor: Tucker by HOSVD, CP by alternating least squares."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from tntune.errors import RankError
from tntune.tt.linalg import safe_svd

__all__ = ["cp_als", "hosvd", "padded", "tucker2"]

_SWEEPS = 100
_STAGNATION = 1e-8  # a sweep that explains less more, as a share of the squared norm, is the last
_CUTOFF = 1e-12  # terms that depend on others to that share are solved for by the least norm


@torch.no_grad()
def hosvd(tensor: Tensor, ranks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Core and factors with ``core x_1 U_1 x_2 U_2 ... == tensor`` where the ranks suffice.

    Each factor holds the leading left singular vectors of its unfolding; columns beyond the mode are zero.
    The squared error is at most the sum over the modes of the discarded squared singular values, and so the
    error at most the root of the number of modes times the least possible.

    Args:
        tensor: ``(n_1, ..., n_d)``.
        ranks: One for each mode, above its size too.

    Returns:
        The core ``ranks`` and the factors ``(n_k, r_k)``, in the dtype of the tensor.

    Raises:
        RankError: Where there is not one rank for each mode.

    Example:
        >>> x = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
        >>> core, (u, v, w) = hosvd(x, (2, 2, 2))
        >>> bool(torch.allclose(torch.einsum("abc,ia,jb,kc", core, u, v, w), x))
        True

    Reference: De Lathauwer, De Moor, Vandewalle (2000), A multilinear singular value decomposition.
    """
    if len(ranks) != tensor.ndim:
        raise RankError(f"{tensor.ndim} modes need as many ranks, not {tuple(ranks)}")
    factors = [_leading(tensor, mode, rank) for mode, rank in enumerate(ranks)]
    core = tensor
    for factor in factors:
        core = torch.tensordot(core, factor, dims=([0], [0]))  # the next mode comes to the front
    return core, factors


@torch.no_grad()
def tucker2(target: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(core, U, V)`` with ``U @ core[s] @ V.mT == target[s]`` where the rank suffices, shared U and V.

    U and V hold leading singular vectors, so the error is at most the square root of 2 times the least one.

    Args:
        target: ``(.., n, m)``, matrices over any number of leading axes.
        rank: Columns of U and V.

    Returns:
        The core ``(.., rank, rank)``, U ``(n, rank)`` and V ``(m, rank)``.

    Example:
        >>> x = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2)
        >>> core, u, v = tucker2(x, 3)
        >>> bool(torch.allclose(u @ core @ v.mT, x))
        True
    """
    u, v = (_leading(target, mode, rank) for mode in (-2, -1))
    return u.mT @ target @ v, u, v


@torch.no_grad()
def cp_als(tensor: Tensor, rank: int) -> list[Tensor]:
    """Factors with ``Σ_r u_1r ∘ ... ∘ u_dr ~ tensor``: no sweep raises the error, and none is a best one.

    Alternating least squares from random factors of a seed of its own, until the error stands still or after
    100 sweeps. Exact where the rank reaches the product of all modes but the largest.

    Args:
        tensor: ``(n_1, ..., n_d)``, at least two modes.
        rank: Number of terms.

    Returns:
        The factors ``(n_k, rank)``, in O(sweeps d rank prod n).

    Example:
        >>> x = torch.outer(torch.ones(3), torch.arange(4.0)).double()
        >>> u, v = cp_als(x, 1)
        >>> bool(torch.allclose(u @ v.mT, x))
        True

    Reference: Kolda and Bader (2009), Tensor decompositions and applications, section 3.4.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(n, rank, dtype=torch.float64, generator=generator) for n in tensor.shape]
    factors = [factor.to(tensor) for factor in drawn]
    explained, whole = 0.0, float(tensor.norm()) ** 2
    for _ in range(_SWEEPS):
        for mode in sorted(range(tensor.ndim), key=lambda k: tensor.shape[k]):  # the largest last
            products = _products(tensor, factors, mode)
            factors[mode] = products @ torch.linalg.pinv(_gram(factors, mode), rtol=_CUTOFF, hermitian=True)
        before, explained = explained, float((products * factors[mode]).sum())
        if explained - before <= _STAGNATION * whole:
            break
    return factors


def padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor`` in the first corner of a larger one, zero elsewhere.

    Example:
        >>> padded(torch.ones(1, 2), (2, 3)).tolist()
        [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    wide = tensor.new_zeros(tuple(shape))
    wide[tuple(map(slice, tensor.shape))] = tensor
    return wide


def _leading(tensor: Tensor, mode: int, rank: int) -> Tensor:
    """The leading left singular vectors of an unfolding, padded with zeros to the rank."""
    vectors, _, _ = safe_svd(tensor.movedim(mode, 0).flatten(1))
    return padded(vectors[:, :rank], (len(vectors), rank))


def _products(tensor: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
    """The tensor contracted with all factors but one, term by term: ``(n_mode, rank)``."""
    others = [k for k in range(tensor.ndim) if k != mode]
    largest = max(others, key=lambda k: tensor.shape[k])  # first, and by one matrix product
    others.remove(largest)
    left: Tensor = tensor.movedim((mode, largest), (0, -1)) @ factors[largest]
    for k in reversed(others):
        left = (left * factors[k]).sum(-2)
    return left


def _gram(factors: Sequence[Tensor], mode: int) -> Tensor:
    """Inner products of the terms without their factor of one mode: ``(rank, rank)``."""
    return reduce(torch.mul, [factor.mT @ factor for k, factor in enumerate(factors) if k != mode])
