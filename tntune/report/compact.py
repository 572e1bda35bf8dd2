"""CompactJacobian: the spectrum of a train's Jacobian from a train of small modes, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.errors import ModeError
from tntune.report.counted import CountedSpectrum
from tntune.theory.environment import left_overlaps, right_overlaps
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.orthogonal import orthogonalize, right_orthogonal
from tntune.tt.train import cores as cores_of
from tntune.tt.train import tt_tensor

__all__ = ["CompactJacobian", "compact"]

_ALIKE = 1e-9  # weights this close, relative to the largest, are the same: they differ by rounding


@dataclass(frozen=True, eq=False)
class _Turn:
    """Slices of one core that have equal weights, and the orthonormal directions that the core uses."""

    core: int
    slices: Tensor  # indices into the mode, (n,)
    kept: Tensor  # orthonormal columns (n, q)

    @property
    def free(self) -> int:
        """Directions of the mode in which the core is zero."""
        return len(self.slices) - self.kept.shape[1]


@dataclass(frozen=True, eq=False)
class CompactJacobian:
    """J of a train in rotated modes: a small train, and directions that nothing else of the train meets.

    An orthogonal change of the slices of a mode that have equal weights changes neither the singular values
    of J nor the train's shape. A core of n slices of r x r' has at most r r' of them that are not zero
    after such a change. A zero slice of core k is met by no other parameter, so that its own block of
    JᵀJ, ``Γ_L ⊗ Γ_R`` between its weights, splits off, once for each such slice. Made by :func:`compact`.

    Attributes:
        small: J of the train of the remaining slices.
        given: J as it was.

    Example:
        >>> x = TrainJacobian.plain([torch.eye(100, 2)[None], torch.eye(2, 300)[..., None]])
        >>> found = compact(x)
        >>> found.small.modes, found.spectrum().counts
        ((2, 2), (4, 792))
    """

    small: TrainJacobian
    given: TrainJacobian
    _turns: tuple[_Turn, ...]

    @property
    def num_parameters(self) -> int:
        """P of the train as it was."""
        return self.given.num_parameters

    def spectrum(self) -> CountedSpectrum:
        """Eigenvalues of ``J Jᵀ`` with their multiplicities, from singular values, without squaring."""
        values = [(value, 1) for value in self.small.singular_values().square().tolist()]
        for turn, block in zip(self._turns, self._blocks(), strict=True):
            if turn.free:
                found = torch.linalg.svdvals(block).square().tolist()
                values += [(value, turn.free) for value in found]
        return CountedSpectrum.of(values, size=self.num_parameters)

    def whitened(self, rows: Tensor) -> Tensor:
        """``A V S⁻¹`` for ``A = G J`` and ``J = Q S Vᵀ``: G in an orthonormal basis of the range of J.

        Args:
            rows: A (m, P), gradients by the parameters of the train as it was.

        Returns:
            ``G Q`` (m, D'), up to a change of basis: its Gram is ``G P Gᵀ``, P the projector onto ran J.

        Raises:
            ModeError: Where A has another number of columns than P.
        """
        if rows.ndim != 2 or rows.shape[1] != self.num_parameters:
            raise ModeError(f"rows have {self.num_parameters} columns, not shape {tuple(rows.shape)}")
        limit = float(self.small.singular_values()[0]) * self.num_parameters * torch.finfo(torch.float64).eps
        sizes = [core.numel() for core in self.given.cores]
        split = torch.split(rows.double(), sizes, dim=1)
        own = [
            part.reshape(-1, *core.shape).movedim(3, 1)  # (m, slice, r, n, r')
            for part, core in zip(split, self.given.cores, strict=True)
        ]
        kept: list[list[Tensor]] = [[] for _ in own]
        free: list[Tensor] = []
        for turn, block in zip(self._turns, self._blocks(), strict=True):
            part = own[turn.core][:, turn.slices]
            inner = torch.einsum("mi...,iq->mq...", part, turn.kept)
            kept[turn.core].append(inner)
            if turn.free:
                rest = part - torch.einsum("mq...,iq->mi...", inner, turn.kept)
                free.append(_divided(rest.flatten(2), block, limit).flatten(1))
        small = torch.cat([torch.cat(parts, 1).movedim(1, 3).flatten(1) for parts in kept], 1)
        return torch.cat([_divided(small, self.small.factor(), limit), *free], 1)

    def _blocks(self) -> list[Tensor]:
        """For each turn F with ``FᵀF`` the block of JᵀJ of one zero slice: (u v, r n r')."""
        own = self.small.merged
        ends = list(own)
        ends[0], ends[-1] = ends[0].sum(0, keepdim=True), ends[-1].sum(-1, keepdim=True)
        lefts = left_overlaps(cores_of(orthogonalize(tt_tensor(ends), -1)), own)
        rights = right_overlaps(right_orthogonal(ends), own)
        found = []
        for turn in self._turns:
            k = turn.core
            weight = self.given.weights[k][:, :, int(turn.slices[0])]  # (x, n, y)
            a, b = self.small.cores[k].shape[0], self.small.cores[k].shape[-1]
            left, right = lefts[k].reshape(-1, a, len(weight)), rights[k + 1].reshape(-1, b, weight.shape[-1])
            full = torch.einsum("uax,xny,vby->uvanb", left, weight, right)
            found.append(full.flatten(2).flatten(0, 1))
        return found


def compact(jacobian: TrainJacobian, *, spare: int = 0) -> CompactJacobian:
    """The same J with modes as small as its cores admit: the same spectrum, exactly.

    Args:
        jacobian: J of any train, with its latent and its read-out as weights.
        spare: Zero slices that the small train keeps where there are any: with one, it has every singular
            value of J by itself, though not as often.

    Returns:
        The small train and what splits off. One QR for each core and each kind of weight, O(n (r r')²).

    Example:
        >>> x = TrainJacobian.plain([torch.ones(1, 9, 2), torch.ones(2, 9, 1)])
        >>> compact(x).small.modes, compact(x, spare=1).small.modes
        ((2, 2), (3, 3))
    """
    cores, weights, turns = [], [], []
    for k, (core, weight) in enumerate(zip(jacobian.cores, jacobian.weights, strict=True)):
        own = [_turned(k, core, slices, spare) for slices in _alike(weight)]
        cores.append(torch.cat([part for _, part in own], 2))
        picked = [turn.slices[:1].expand(turn.kept.shape[1]) for turn, _ in own]
        weights.append(weight[:, :, torch.cat(picked)])
        turns += [turn for turn, _ in own]
    return CompactJacobian(TrainJacobian(tuple(cores), tuple(weights)), jacobian, tuple(turns))


def _turned(k: int, core: Tensor, slices: Tensor, spare: int) -> tuple[_Turn, Tensor]:
    """The directions of some slices that a core uses, and its slices along them (r, n, q, r')."""
    rows = core[:, :, slices].movedim(2, 0).flatten(1)  # (slices, r n r')
    size = min(len(slices), rows.shape[1] + spare)
    wide = torch.cat([rows, rows.new_zeros(len(rows), spare)], 1)
    if size == len(slices):
        kept = torch.eye(size, dtype=rows.dtype, device=rows.device)
    else:
        kept = _orthonormal(wide, size)
    made = (kept.mT @ rows).reshape(-1, *core.shape[:2], core.shape[3]).movedim(0, 2)
    return _Turn(k, slices, kept), made


def _orthonormal(rows: Tensor, size: int) -> Tensor:
    """Orthonormal columns, ``size`` of them, whose span holds that of the columns of ``rows``."""
    q: Tensor = torch.linalg.qr(rows).Q
    return q[:, :size]


def _alike(weight: Tensor) -> Sequence[Tensor]:
    """Indices of the slices of a mode, parted by equal weights."""
    flat = weight.movedim(2, 0).flatten(1)
    unit = _ALIKE * float(flat.abs().max()) or 1.0
    kinds = torch.unique((flat / unit).round(), dim=0, return_inverse=True)[1]
    return [torch.nonzero(kinds == kind).flatten() for kind in range(int(kinds.max()) + 1)]


def _divided(rows: Tensor, factor: Tensor, limit: float) -> Tensor:
    """``rows V S⁻¹`` for ``factor = U S Vᵀ``, without the directions that are zero to rounding."""
    _, values, turned = torch.linalg.svd(factor, full_matrices=False)
    kept = values > limit
    divided: Tensor = rows @ turned[kept].mT / values[kept]
    return divided
