"""Nullity of J by formula: directions of the cores that change nothing, from small linear systems in z."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tntune.errors import ModeError, RankError
from tntune.maps.latent_train import LatentTrain
from tntune.tt.decompose import tt_svd
from tntune.tt.train import cores

__all__ = ["Nullity", "nullity"]


@dataclass(frozen=True)
class Nullity:
    """Directions of the cores that change no entry of w: the larger of both counts, ``total``.

    Attributes:
        modes: Latent directions that z does not have: ``Σ r_{k-1} m_k r_k (n_k - μ_k)``.
        bonds: Changes of basis on the bonds that are not changes of z: ``Σ (r_k² - 1) dim Y_k``.
        symmetries: Changes of basis of the latent legs that leave z as it is: ``dim stab(z)``.
        excess: Parameters beyond the dimension of the manifold of trains of w's own ranks.

    Example:
        >>> Nullity(modes=3, bonds=12, symmetries=6, excess=21).total
        21
    """

    modes: int
    bonds: int
    symmetries: int
    excess: int

    @property
    def total(self) -> int:
        """``dim ker J``."""
        return max(self.modes + self.bonds + self.symmetries, self.excess)


def nullity(train: LatentTrain, latent: Tensor | None = None) -> Nullity:
    """``dim ker J`` of θ -> w for generic cores: ``Σ r_k²`` without a latent, more where z is special.

    With multilinear ranks μ_k of z, the algebras Y_k of matrices on bond k of z that keep the span of the
    slices of its cores on both sides, and the stabiliser of z in ``gl(μ_1) + .. + gl(μ_K)``: the three causes
    of :class:`Nullity`. Beside them, the rank of J is at most the dimension of the manifold of trains of w's
    ranks. The larger of both counts is a lower bound; it is attained without a latent, and in every case
    tried where z is generic or a product. Special z of low rank can have a few directions more.

    Args:
        train: Shapes; boundary ranks above 1 count as parameters that change nothing.
        latent: z of shape ``train.latent.modes``; by default the one that ``train.latent`` draws.

    Raises:
        ModeError: Where z has another shape.
        RankError: Where the open modes do not admit the ranks of w: those cores are not minimal, and more
            directions vanish. ``map_jacobian(..).nullity`` counts them numerically.

    Example:
        >>> from tntune.maps.latent import Latent
        >>> nullity(LatentTrain((16, 8, 257, 16), (1, 2, 2, 1, 1), Latent("fixed", (1, 2, 2, 1)))).total
        21

    Statement: T1 in theory/jacobian.md; with a latent, T4 in theory/latent.md.
    """
    ranks = (1, *train.ranks[1:-1], 1)
    legs = train.latent.modes if train.has_latent else (1,) * train.order
    inner = _parameters(ranks, legs, train.modes)
    dead = train.num_parameters - inner
    if not train.latent.stored:  # without z, or with open latent legs, the train is a plain one
        open_modes = [n * m for n, m in zip(legs, train.modes, strict=True)]
        excess = dead + inner - _dimension(ranks, open_modes)
        return Nullity(dead, sum(rank**2 - 1 for rank in ranks[1:-1]), train.order - 1, excess)
    z = (train.latent.draw() if latent is None else latent).double()
    if tuple(z.shape) != train.latent.modes:
        raise ModeError(f"the latent has shape {tuple(z.shape)}, but the train wants {train.latent.modes}")
    small = _compressed(z)
    own = cores(tt_svd(small).value)
    bonds = [len(core) for core in own] + [1]
    excess = dead + inner - _dimension([r * b for r, b in zip(ranks, bonds, strict=True)], train.modes)
    missing = [n - mu for n, mu in zip(z.shape, small.shape, strict=True)]
    algebras = [_bond_algebra(one, other) for one, other in pairwise(own)]
    return Nullity(
        modes=dead + _parameters(ranks, missing, train.modes),
        bonds=sum((rank**2 - 1) * size for rank, size in zip(ranks[1:-1], algebras, strict=True)),
        symmetries=_stabilizer(small),
        excess=excess,
    )


def _parameters(ranks: Sequence[int], legs: Sequence[int], modes: Sequence[int]) -> int:
    """Entries of all cores of these sizes."""
    return sum(math.prod(shape) for shape in zip(ranks[:-1], legs, modes, ranks[1:], strict=True))


def _dimension(ranks: Sequence[int], modes: Sequence[int]) -> int:
    """Dimension of the manifold of trains of these ranks; RankError where there are none."""
    chain = list(zip(ranks[:-1], modes, ranks[1:], strict=True))
    if any(right > left * mode or left > mode * right for left, mode, right in chain):
        raise RankError(
            f"modes {tuple(modes)} do not admit the ranks {tuple(ranks)} of w, so its cores are not minimal; "
            "lower the ranks, or count numerically with map_jacobian"
        )
    return _parameters(ranks, (1,) * len(modes), modes) - sum(rank**2 for rank in ranks[1:-1])


def _compressed(z: Tensor) -> Tensor:
    """The latent in orthonormal bases of its mode spaces: of shape (μ_1, .., μ_K)."""
    for k in range(z.ndim):
        rows = z.movedim(k, 0).flatten(1)
        u, s, _ = torch.linalg.svd(rows, full_matrices=False)
        kept = max(1, _rank(s, max(rows.shape)))
        turned: Tensor = torch.tensordot(u[:, :kept].mT, z.movedim(k, 0), dims=1)
        z = turned.movedim(0, k)
    return z


def _bond_algebra(left: Tensor, right: Tensor) -> int:
    """Dimension of {y : S y ⊂ S, y S' ⊂ S'}, S and S' the spans of slices of neighbouring cores of z."""
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
    rest: Tensor = vectors - (vectors @ basis) @ basis.mT
    return rest


def _stabilizer(z: Tensor) -> int:
    """Dimension of {(A_k) : Σ_k A_k applied to leg k of z = 0}."""
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
