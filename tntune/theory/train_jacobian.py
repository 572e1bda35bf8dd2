"""TrainJacobian: the exact Jacobian of a train by its cores, at a cost without the number of entries."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from tntune.errors import ModeError, RankError
from tntune.theory.environment import embedded, left_overlaps, merged, pulled_back, right_overlaps
from tntune.theory.sweep import factor, gram
from tntune.tt.orthogonal import orthogonalize, right_orthogonal
from tntune.tt.train import cores as cores_of
from tntune.tt.train import tt_tensor

__all__ = ["TrainJacobian"]


@dataclass(frozen=True, eq=False)
class TrainJacobian:
    """J of ``w[m] = Σ_n A[n, m] TT(G)[n, m]`` by the cores of G, where A is a fixed train of weights.

    The weights carry all that is not trained: a latent, ``A[n, m] = z[n]``, a read-out, ``A[n, m] = 0`` on
    padding, and scales. A plain train has latent legs of size 1 and weights of 1. Nothing here has as many
    entries as w: 2^40 are as good as 2^10.

    Attributes:
        cores: G_k (r, n, m, r'), held in float64; boundary ranks above 1 are summed.
        weights: A_k (q, n, m, q').

    Raises:
        ModeError: Where cores are not 4-way, or the modes of both differ.
        RankError: Where neighbouring ranks differ.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> TrainJacobian.plain([one, one]).gram()[0].tolist()
        [2.0, 0.0, 1.0, 1.0]

    Statement: T0 in theory/jacobian.md.
    """

    cores: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for name in ("cores", "weights"):
            object.__setattr__(self, name, tuple(core.detach().double() for core in getattr(self, name)))
            _check_chain(name, getattr(self, name))
        legs = [[tuple(core.shape[1:3]) for core in chain] for chain in (self.cores, self.weights)]
        if legs[0] != legs[1]:
            raise ModeError(f"cores have (latent, open) modes {legs[0]}, their weights {legs[1]}")

    @classmethod
    def plain(cls, cores: Sequence[Tensor]) -> "TrainJacobian":
        """The Jacobian of ``w = TT(G)`` by 3-way cores (r, m, r'), without latent or weights.

        Example:
            >>> TrainJacobian.plain([torch.ones(1, 3, 1)]).singular_values().tolist()
            [1.0, 1.0, 1.0]
        """
        wide = tuple(core[:, None] for core in cores)
        return cls(wide, tuple(core.new_ones(1, 1, core.shape[2], 1) for core in wide))

    @property
    def num_parameters(self) -> int:
        """P: entries of all cores."""
        return sum(core.numel() for core in self.cores)

    @property
    def modes(self) -> tuple[int, ...]:
        """Open modes of w."""
        return tuple(core.shape[2] for core in self.cores)

    @cached_property
    def merged(self) -> list[Tensor]:
        """Cores of w itself: weights and latent contracted in."""
        return merged(self.cores, self.weights)

    def gram(self) -> Tensor:
        """``JᵀJ`` (P, P), exact, in O(P² r) and without any tensor of the size of w.

        Its condition number is that of J squared; where that exceeds 1e10, :meth:`factor` is the better one.

        Example:
            >>> TrainJacobian.plain([torch.ones(1, 3, 1)]).gram().diagonal().tolist()
            [1.0, 1.0, 1.0]

        Statement: T0 in theory/jacobian.md.
        """
        return gram(self.cores, self.weights, self.merged)

    def factor(self) -> Tensor:
        """``C = QᵀJ`` (D, P) with ``CᵀC = JᵀJ``: J in an orthonormal basis of a space that holds its range.

        The basis spans the tangent space of the train of w at its merged ranks; with a latent or padding it
        is larger than the range of J.

        Example:
            >>> jacobian = TrainJacobian.plain([torch.ones(1, 2, 1), torch.ones(1, 2, 1)])
            >>> C = jacobian.factor()
            >>> torch.allclose(C.mT @ C, jacobian.gram())
            True

        Statement: T0 in theory/jacobian.md.
        """
        own = self.merged
        ends = list(own)
        ends[0] = ends[0].sum(0, keepdim=True)
        ends[-1] = ends[-1].sum(-1, keepdim=True)
        left = cores_of(orthogonalize(tt_tensor(ends), -1))
        return factor(self.cores, self.weights, own, (left, right_orthogonal(ends)))

    def singular_values(self) -> Tensor:
        """Singular values of J, descending, ``min(D, P)`` of them, accurate relative to the largest.

        Example:
            >>> jacobian = TrainJacobian.plain([torch.ones(1, 2, 1), torch.ones(1, 2, 1)])
            >>> round(jacobian.singular_values()[0].item(), 12)
            2.0
        """
        values: Tensor = torch.linalg.svdvals(self.factor())
        return values

    def matvec(self, v: Tensor) -> Tensor:
        """``JᵀJ v`` for one or many v, in O(K m r³) each: P x P entries are never there.

        Args:
            v: (..., P) in the order of the rows of :meth:`gram`.

        Returns:
            (..., P) in float64.

        Raises:
            ModeError: Where the last size is not P.

        Example:
            >>> jacobian = TrainJacobian.plain([torch.ones(1, 2, 1), torch.ones(1, 2, 1)])
            >>> v = torch.arange(4.0, dtype=torch.float64)
            >>> torch.allclose(jacobian.matvec(v), jacobian.gram() @ v)
            True

        Statement: T0 in theory/jacobian.md.
        """
        steps = [embedded(*pair) for pair in zip(self._parted(v), self.weights, strict=True)]
        own, lefts, rights = self.merged, *self._overlaps
        before, behind = _carried(own, steps, lefts), _carried_back(own, steps, rights)
        made = []
        for k, (core, weight) in enumerate(zip(own, self.weights, strict=True)):
            inner = torch.einsum("pus,smt->pumt", before[k], core)
            inner = inner + torch.einsum("us,psmt->pumt", lefts[k], steps[k])
            full = torch.einsum("pumt,vt->pumv", inner, rights[k + 1])
            still = torch.einsum("us,smt->umt", lefts[k], core)
            full = full + torch.einsum("umt,pvt->pumv", still, behind[k + 1])
            made.append(pulled_back(full, weight).flatten(1))
        return torch.cat(made, dim=1).reshape(v.shape)

    @cached_property
    def _overlaps(self) -> tuple[list[Tensor], list[Tensor]]:
        """Γ_L and Γ_R at every bond."""
        return left_overlaps(self.merged, self.merged), right_overlaps(self.merged, self.merged)

    def _parted(self, v: Tensor) -> list[Tensor]:
        """A batch of parameter vectors as batches of cores."""
        if v.shape[-1:] != (self.num_parameters,):
            raise ModeError(f"a vector of {self.num_parameters} parameters is needed, not {tuple(v.shape)}")
        flat = v.detach().to(self.cores[0]).reshape(-1, self.num_parameters)
        parts = torch.split(flat, [core.numel() for core in self.cores], dim=1)
        return [part.reshape(-1, *core.shape) for part, core in zip(parts, self.cores, strict=True)]


def _carried(own: list[Tensor], steps: list[Tensor], lefts: list[Tensor]) -> list[Tensor]:
    """Overlaps from the left of the train with its derivative along the steps: (p, u, s) at every bond."""
    found = [lefts[0].new_zeros(len(steps[0]), *lefts[0].shape)]
    for core, step, left in zip(own, steps, lefts[:-1], strict=True):
        half = torch.einsum("pus,smt->pumt", found[-1], core)
        half = half + torch.einsum("us,psmt->pumt", left, step)
        found.append(torch.einsum("umv,pumt->pvt", core, half))
    return found


def _carried_back(own: list[Tensor], steps: list[Tensor], rights: list[Tensor]) -> list[Tensor]:
    """The same from the right: read from right to left it is :func:`_carried`."""
    flipped = [core.permute(2, 1, 0) for core in reversed(own)]
    moved = [step.permute(0, 3, 2, 1) for step in reversed(steps)]
    return _carried(flipped, moved, rights[::-1])[::-1]


def _check_chain(name: str, chain: Sequence[Tensor]) -> None:
    """Raise unless the tensors are 4-way and their ranks form a chain."""
    if not chain or any(core.ndim != 4 for core in chain):
        raise ModeError(f"{name} are 4-way (r, n, m, r'), not {[tuple(core.shape) for core in chain]}")
    for k, (one, other) in enumerate(pairwise(chain)):
        if one.shape[-1] != other.shape[0]:
            raise RankError(
                f"{name}[{k}] ends with rank {one.shape[-1]}, the next starts with {other.shape[0]}"
            )
