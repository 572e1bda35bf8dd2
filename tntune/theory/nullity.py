"""Nullity of J by formula: how many directions of the cores change nothing, from small linear systems in z alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.errors import ModeError
from tntune.maps.latent_train import LatentTrain
from tntune.tt.decompose import tt_svd
from tntune.tt.train import cores

__all__ = ["Nullity", "nullity"]


@dataclass(frozen=True)
class Nullity:
    """Directions of the cores that change no entry of w, by their cause; they add up to :attr:`total`.

    Attributes:
        modes: Latent directions that z does not have: ``Σ r_{k-1} m_k r_k (n_k - μ_k)``.
        bonds: Changes of basis on the bonds that are not changes of z: ``Σ (r_k² - 1) dim Y_k``.
        symmetries: Changes of basis of the latent legs that leave z as it is: ``dim stab(z)``.

    Example:
        >>> Nullity(modes=3, bonds=12, symmetries=6).total
        21
    """

    modes: int
    bonds: int
    symmetries: int

    @property
    def total(self) -> int:
        """``dim ker J``."""
        return self.modes + self.bonds + self.symmetries


def nullity(train: LatentTrain, latent: Tensor | None = None) -> Nullity:
    """``dim ker J`` of θ -> w for generic cores: ``Σ r_k²`` without a latent, more where z is special.

    With multilinear ranks μ_k of z, the algebras Y_k of matrices y on bond k of z that keep the span of the
    slices of its cores on both sides, and the stabiliser of z in ``gl(μ_1) + .. + gl(μ_K)``: the three terms of
    :class:`Nullity`. That they are a lower bound is proved; that they are all is verified, for ranks that
    the modes admit and modes large enough that no further coincidence occurs.

    Args:
        train: Shapes; boundary ranks above 1 count as parameters that change nothing.
        latent: z of shape ``train.latent.modes``; by default the one that ``train.latent`` draws.

    Raises:
        ModeError: Where z has another shape.

    Example:
        >>> from tntune.maps.latent import Latent
        >>> nullity(LatentTrain((16, 8, 257, 16), (1, 2, 2, 1, 1), Latent("fixed", (1, 2, 2, 1)))).total
        21

    Statement: T1 in theory/gauge.md; with a latent, T4 in theory/latent.md.
    """
    ranks = (1, *train.ranks[1:-1], 1)
    dead = train.num_parameters - _parameters(train, ranks)
    if not train.latent.stored:  # without z, or with open latent legs, the train is a plain one
        return Nullity(dead, sum(rank**2 - 1 for rank in ranks[1:-1]), train.order - 1)
    z = (train.latent.draw() if latent is None else latent).double()
    if tuple(z.shape) != train.latent.modes:
        raise ModeError(f"the latent has shape {tuple(z.shape)}, but the train wants {train.latent.modes}")
    small = _compressed(z)
    for k, (size, left, right) in enumerate(zip(train.modes, ranks[:-1], ranks[1:], strict=True)):
        dead += left * size * right * (z.shape[k] - small.shape[k])
    own = cores(tt_svd(small).value)
    algebras = [_bond_algebra(one, other) for one, other in zip(own, own[1:], strict=False)]
    bonds = sum((rank**2 - 1) * size for rank, size in zip(ranks[1:-1], algebras, strict=True))
    return Nullity(dead, bonds, _stabilizer(small))


def _parameters(train: LatentTrain, ranks: Sequence[int]) -> int:
    """Entries of all cores with these ranks."""
    legs = train.latent.modes if train.has_latent else (1,) * train.order
    sizes = zip(ranks[:-1], legs, train.modes, ranks[1:], strict=True)
    return sum(math.prod(shape) for shape in sizes)


def _compressed(z: Tensor) -> Tensor:
    """z in orthonormal bases of its mode spaces: of shape (μ_1, .., μ_K)."""
    for k in range(z.ndim):
        rows = z.movedim(k, 0).flatten(1)
        u, s, _ = torch.linalg.svd(rows, full_matrices=False)
        kept = max(1, _rank(s, max(rows.shape)))
        z = torch.tensordot(u[:, :kept].mT, z.movedim(k, 0), dims=1).movedim(0, k)
    return z


def _bond_algebra(left: Tensor, right: Tensor) -> int:
    """dim {y : S y ⊂ S, y S' ⊂ S'} with S, S' the spans of the mode slices of two neighbouring cores of z."""
    size = left.shape[2]
    units = torch.eye(size * size, dtype=left.dtype).reshape(-1, size, size)
    moved = torch.einsum("anb,ybc->ynac", left, units).flatten(2)
    kept = _off(moved, left.movedim(1, 0).flatten(1))
    moved = torch.einsum("yab,bnc->ynac", units, right).flatten(2)
    kept_too = _off(moved, right.movedim(1, 0).flatten(1))
    system = torch.cat([kept.flatten(1), kept_too.flatten(1)], dim=1)
    return _kernel(system)


def _off(vectors: Tensor, span: Tensor) -> Tensor:
    """What is left of vectors (..., m) outside the span of the rows of a matrix (n, m)."""
    basis = torch.linalg.qr(span.mT).Q
    return vectors - (vectors @ basis) @ basis.mT


def _stabilizer(z: Tensor) -> int:
    """dim {(A_k) : Σ_k A_k applied to leg k of z = 0}."""
    rows = []
    for k, size in enumerate(z.shape):
        units = torch.eye(size * size, dtype=z.dtype).reshape(-1, size, size)
        moved = torch.tensordot(units, z.movedim(k, 0), dims=1)  # (size², size, the other legs)
        rows.append(moved.movedim(1, k + 1).flatten(1))
    return _kernel(torch.cat(rows))


def _kernel(system: Tensor) -> int:
    """Dimension of the combinations of rows that vanish."""
    return len(system) - _rank(torch.linalg.svdvals(system), max(system.shape))


def _rank(values: Tensor, size: int) -> int:
    """Singular values above rounding; z is single precision, but its special structure is exact."""
    if not len(values) or float(values[0]) == 0.0:
        return 0
    return int((values > 32 * size * torch.finfo(values.dtype).eps * values[0]).sum())
