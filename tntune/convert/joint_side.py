"""JointSide: one side of all layers of a shape, reduced to the directions in which a basis is sought."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tntune.convert.form import Form

__all__ = ["CAP", "JointSide", "cholesky", "solved_basis"]

CAP = 384
"""Dimensions of the space in which an unknown basis is sought."""

_SEEN = 0.75  # share of them that the layers' own factors span where a moment weighs the others
_FLOOR = 1e-13  # of a Gram matrix's mean eigenvalue, added to its diagonal
_STEPS = 12  # of conjugate gradients on one basis
_ROUGH = 1e-9  # of a preconditioner's mean eigenvalue, added to its diagonal
_NOISE = 1e-13  # eigenvalues of a Gram matrix below that share of the largest are rounding


@dataclass(frozen=True)
class JointSide:
    """The inputs or the outputs of every layer, in coordinates of one orthonormal basis.

    Attributes:
        known: That basis ``(n, m)``, or None for the n unit vectors.
        forms: ``(kinds, m, m)``: the norm's forms, each once.
        kind: ``(layers,)``: which of them is each layer's.
        seen: ``(layers, r, m)``: rows of down, or columns of up, times the form; short layers end in zeros.
        start: ``(m, k)``: the leading directions of all layers' rows in the layers' mean form.

    Example:
        >>> side = JointSide.of([torch.eye(2, 5).double()] * 3, [Form(5)] * 3)
        >>> side.forms.shape[0], tuple(side.seen.shape), tuple(side.start.shape)
        (1, (3, 2, 5), (5, 5))
    """

    known: Tensor | None
    forms: Tensor
    kind: Tensor
    seen: Tensor
    start: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor], forms: Sequence[Form]) -> "JointSide":
        """The side of layers with these rows ``(r, n)``, float64, and forms of size n."""
        kinds: list[Form] = []
        for form in forms:
            if not any(form.same(kind) for kind in kinds):
                kinds.append(form)
        kind = torch.tensor([next(i for i, one in enumerate(kinds) if form.same(one)) for form in forms])
        size = rows[0].shape[1]
        if size <= CAP:
            known, reduced = None, list(rows)
            dense = torch.stack([form.gram(torch.eye(size, dtype=torch.float64)) for form in kinds])
        else:
            known = _directions(rows, kinds)
            reduced = [each @ known for each in rows]
            dense = torch.stack([form.gram(known) for form in kinds])
        seen = [each @ dense[i] for i, each in zip(kind.tolist(), reduced, strict=True)]
        start = _spectral(dense, kind, reduced)
        return cls(known, dense, kind, pad_sequence(seen, batch_first=True), start)

    @property
    def span(self) -> int:
        """Directions that the rows of all layers span at most."""
        return self.start.shape[1]

    def expand(self, basis: Tensor) -> Tensor:
        """``(m, r)`` to ``(n, r)``."""
        return basis if self.known is None else self.known @ basis

    def reduce(self, basis: Tensor) -> Tensor:
        """``(n, r)`` to ``(m, r)``: the nearest in the coordinates of this side."""
        return basis if self.known is None else self.known.mT @ basis

    def seen_by(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Of each layer its form on a basis, ``(layers, r, r)``, and its rows' products with that basis."""
        found = basis.mT @ (self.forms @ basis)
        return ((found + found.mT) / 2)[self.kind], self.seen @ basis

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """``Σ form_l rows_lᵀ weights_l`` for weights ``(layers, r, k)``: ``(m, k)``."""
        return self.seen.flatten(0, 1).mT @ weights.flatten(0, 1)


def cholesky(grams: Tensor, lift: float = _FLOOR) -> Tensor:
    """Lower Cholesky factors of Gram matrices, lifted from zero by a hair.

    Example:
        >>> cholesky(4 * torch.eye(2).expand(1, 2, 2))[0, 0]
        tensor([2., 0.])
    """
    floor = lift * grams.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
    lifted = grams + floor[:, None, None] * torch.eye(grams.shape[1], dtype=grams.dtype)
    root: Tensor = torch.linalg.cholesky(lifted)
    return root


def solved_basis(side: JointSide, start: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """X of ``Σ_s form_s X middle_s = right`` by conjugate gradients; each step lowers the squared error.

    Args:
        side: Whose forms they are.
        start: ``(m, r)``.
        middle: ``(layers, r, r)``, positive semidefinite.
        right: ``(m, r)``.

    Example:
        >>> side = JointSide.of([torch.eye(2, 5).double()] * 3, [Form(5)] * 3)
        >>> right, middle = side.start[:, :1], torch.ones(3, 1, 1).double()
        >>> torch.allclose(3 * solved_basis(side, torch.zeros_like(right), middle, right), right)
        True
    """
    forms = side.forms
    middle = torch.zeros(len(forms), *middle.shape[1:], dtype=middle.dtype).index_add(0, side.kind, middle)
    weights = middle.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(torch.float64).tiny
    outer = cholesky(torch.tensordot(weights / weights.sum(), forms, dims=1)[None], _ROUGH)[0]
    inner = cholesky(middle.sum(0)[None], _ROUGH)[0]

    def applied(x: Tensor) -> Tensor:
        return (forms @ (x @ middle)).sum(0)

    def preconditioned(x: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(x, outer).mT, inner).mT

    x, rest = start, right - applied(start)
    step = chosen = preconditioned(rest)
    size = first = (rest * step).sum()
    for _ in range(_STEPS):
        if not size > 1e-12 * first:
            break
        moved = applied(chosen)
        rate = size / (chosen * moved).sum()
        x, rest = x + rate * chosen, rest - rate * moved
        step = preconditioned(rest)
        before, size = size, (rest * step).sum()
        chosen = step + (size / before) * chosen
    return x


def _directions(rows: Sequence[Tensor], forms: Sequence[Form]) -> Tensor:
    """An orthonormal basis ``(n, at most 384)``: the rows' leading directions, then the forms' largest."""
    weighing = any(form.moment is not None for form in forms)
    own = _leading(torch.cat(list(rows)), int(_SEEN * CAP) if weighing else CAP)
    if not weighing:
        return own
    drawn: Tensor = torch.randn(
        own.shape[0], CAP, generator=torch.Generator().manual_seed(0), dtype=own.dtype
    )
    for _ in range(2):
        applied = torch.zeros_like(drawn)
        for form in forms:
            applied += form.apply(drawn.float()).double() / form.mean
        drawn = torch.linalg.qr(applied - own @ (own.mT @ applied))[0]
    known: Tensor = torch.linalg.qr(torch.cat([own, drawn], dim=1)[:, :CAP])[0]
    return known


def _leading(rows: Tensor, count: int) -> Tensor:
    """Leading right singular vectors ``(n, at most count)``, from the smaller Gram matrix."""
    wide = rows.shape[0] <= rows.shape[1]
    squares, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    kept = min(count, int((squares > _NOISE * squares[-1]).sum()))
    leading = vectors[:, -kept:].flip(1)
    basis: Tensor = torch.linalg.qr(rows.mT @ leading if wide else leading)[0]
    return basis


def _spectral(forms: Tensor, kind: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """The leading directions of all rows, in coordinates of the layers' mean form."""
    traces = forms.diagonal(dim1=1, dim2=2).mean(1)
    shares = torch.bincount(kind) / traces
    root = cholesky(torch.tensordot(shares, forms, dims=1)[None] / len(kind))[0]
    sizes = traces.sqrt()[kind]
    stacked = torch.cat([size * each for size, each in zip(sizes, rows, strict=True)]).mT
    leading = torch.linalg.svd(root.mT @ stacked, full_matrices=False)[0]
    basis: Tensor = torch.linalg.solve_triangular(root.mT, leading, upper=True)
    return basis
