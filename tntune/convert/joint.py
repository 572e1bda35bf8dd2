"""JointFit: one train for many layers of a shape, fitted to all their ΔW by alternating least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.convert.form import Form
from tntune.convert.joint_train import JointTrain
from tntune.convert.norm import LayerNorm, weighted_balance
from tntune.errors import NumericalError
from tntune.maps.base import Factors

__all__ = ["JointFit", "JointProblem"]

_CAP = 384  # dimensions of a basis in which an unknown basis is sought
_SEEN = 0.75  # share of them that the layers' own factors span
_STEPS = 12  # of conjugate gradients on one basis
_FLOOR = 1e-13  # of a Gram matrix's mean eigenvalue, added to its diagonal
_ROUGH = 1e-9  # the same for a preconditioner


@dataclass(frozen=True)
class _Side:
    """The unknown basis of one side, in coordinates of a known orthonormal basis.

    Attributes:
        known: ``(n, m)``, or None for the n unit vectors.
        forms: ``(kinds, m, m)``: the norm's forms, each once.
        kind: ``(layers,)``: which of them is each layer's.
        seen: ``(m, r)`` of each layer: its form times down transposed, or times up.
        factors: The same without the form.
    """

    known: Tensor | None
    forms: Tensor
    kind: Tensor
    factors: tuple[Tensor, ...]
    seen: tuple[Tensor, ...]

    def expand(self, basis: Tensor) -> Tensor:
        """``(m, r)`` to ``(n, r)``."""
        return basis if self.known is None else self.known @ basis


class JointProblem:
    """The layers of one group and their norms, reduced to the directions that matter.

    A side of more than 384 features is reduced to 384: the leading directions of the layers' own factors and
    those in which the norms are largest. Memory: two forms of at most 384² float64 for each layer.

    Args:
        factors: Down and up of each layer, all of one shape, scale in up.
        norms: The norm of each layer.

    Example:
        >>> factors = [Factors(torch.eye(2, 5), (k + 1.0) * torch.eye(4, 2)) for k in range(3)]
        >>> problem = JointProblem(factors, [LayerNorm(Form(5), Form(4))] * 3)
        >>> problem.fit(2, 2).history[-1] < 1e-8
        True
    """

    def __init__(self, factors: Sequence[Factors], norms: Sequence[LayerNorm]) -> None:
        balanced = [weighted_balance(each, norm) for each, norm in zip(factors, norms, strict=True)]
        self.squares = torch.stack([each.values.square().sum() for each in balanced])
        downs = [each.down.mT for each in balanced]
        ups = [each.up for each in balanced]
        self.inputs = _side(downs, [norm.inputs for norm in norms])
        self.outputs = _side(ups, [norm.outputs for norm in norms])

    @property
    def total(self) -> float:
        """Squared norm of all ΔW."""
        return float(self.squares.sum())

    @property
    def max_rank(self) -> int:
        """The rank at which a train is exact, or all directions that are kept."""
        sides = (self.inputs, self.outputs)
        spans = [min(side.forms.shape[1], sum(each.shape[1] for each in side.factors)) for side in sides]
        return min(spans)

    def fit(self, rank: int, width: int, *, sweeps: int = 25, tolerance: float = 1e-3) -> "JointFit":
        """The train of this rank and width that alternating least squares ends at.

        The start is spectral. Then in turn each basis is solved for with the rest held, by preconditioned
        conjugate gradients on its least-squares problem, and all coefficients at once are the best of their
        width for the bases, by an SVD for each layer. No step raises the error; it ends when a sweep lowers
        its square by less than ``tolerance``, relatively.

        Args:
            rank: r, at most :attr:`max_rank`.
            width: w, at most r.
            sweeps: At most so many.
            tolerance: At least 0.
        """
        state = _State(self, rank, width)
        history = [state.solve_coefficients()]
        for _ in range(sweeps):
            state.inputs = _solve(self.inputs, state.inputs, *state.normal_inputs())
            state.solve_coefficients()
            state.outputs = _solve(self.outputs, state.outputs, *state.normal_outputs())
            history.append(state.solve_coefficients())
            if history[-2] - history[-1] <= tolerance * history[-2]:
                break
        return JointFit(state.train(), tuple(history))


class JointFit(NamedTuple):
    """A fitted train.

    Attributes:
        train: The bases and coefficients, float64.
        history: Squared error in the norm, relative to all ΔW, at the start and after each sweep; never
            rising.

    Example:
        >>> JointFit._fields
        ('train', 'history')
    """

    train: JointTrain
    history: tuple[float, ...]


class _State:
    """Bases ``(m, r)`` and coefficients ``A_l = up_l down_lᵀ`` of one fit."""

    def __init__(self, problem: JointProblem, rank: int, width: int) -> None:
        self.problem, self.width = problem, width
        self.inputs = _spectral(problem.inputs, rank)
        self.outputs = _spectral(problem.outputs, rank)
        self.down = self.up = torch.empty(0)

    def solve_coefficients(self) -> float:
        """The best coefficients for the bases; the relative squared error that they leave."""
        self.inputs, self.outputs = torch.linalg.qr(self.inputs)[0], torch.linalg.qr(self.outputs)[0]
        rights = _cholesky(_grams(self.problem.inputs, self.inputs))
        lefts = _cholesky(_grams(self.problem.outputs, self.outputs))
        ups = _inner(self.problem.outputs, self.outputs[None].expand(len(lefts), -1, -1))
        downs = _inner(self.problem.inputs, self.inputs[None].expand(len(rights), -1, -1))
        cross = torch.stack([up.mT @ down for up, down in zip(ups, downs, strict=True)])
        whitened = torch.linalg.solve_triangular(lefts, cross, upper=False)
        whitened = torch.linalg.solve_triangular(rights, whitened.mT, upper=False).mT
        left, values, right = torch.linalg.svd(whitened)
        width = min(self.width, values.shape[1])
        root = values[:, None, :width].sqrt()
        self.up = torch.linalg.solve_triangular(lefts.mT, left[..., :width] * root, upper=True)
        self.down = torch.linalg.solve_triangular(rights.mT, right[:, :width].mT * root, upper=True)
        kept = float(values[:, :width].square().sum())
        return max(0.0, 1.0 - kept / self.problem.total) if self.problem.total else 0.0

    def normal_inputs(self) -> tuple[Tensor, Tensor]:
        """``(M, b)`` of the normal equations ``Σ C_l X M_l = b`` for the basis X of the inputs."""
        grams = _grams(self.problem.outputs, self.outputs)
        middle = self.down @ (self.up.mT @ grams @ self.up) @ self.down.mT
        seen = _inner(self.problem.outputs, self.outputs @ (self.up @ self.down.mT))
        return middle, _right_side(self.problem.inputs, seen)

    def normal_outputs(self) -> tuple[Tensor, Tensor]:
        """The same for the basis of the outputs."""
        grams = _grams(self.problem.inputs, self.inputs)
        middle = self.up @ (self.down.mT @ grams @ self.down) @ self.up.mT
        seen = _inner(self.problem.inputs, self.inputs @ (self.down @ self.up.mT))
        return middle, _right_side(self.problem.outputs, seen)

    def train(self) -> JointTrain:
        """The train in the features' own coordinates."""
        inputs, outputs = self.problem.inputs, self.problem.outputs
        return JointTrain(inputs.expand(self.inputs), outputs.expand(self.outputs), self.down, self.up)


def _side(factors: Sequence[Tensor], forms: Sequence[Form]) -> _Side:
    """One side's problem, in reduced coordinates where there are many features."""
    size = factors[0].shape[0]
    kinds: list[Form] = []
    for form in forms:
        if not any(form.same(kind) for kind in kinds):
            kinds.append(form)
    kind = torch.tensor([next(i for i, one in enumerate(kinds) if form.same(one)) for form in forms])
    if size <= _CAP:
        known, own = None, list(factors)
        dense = torch.stack([form.gram(torch.eye(size, dtype=torch.float64)) for form in kinds])
    else:
        known = _directions(factors, kinds)
        own = [known.mT @ each for each in factors]
        dense = torch.stack([form.gram(known) for form in kinds])
    seen = [dense[i] @ each for i, each in zip(kind.tolist(), own, strict=True)]
    return _Side(known, dense, kind, tuple(own), tuple(seen))


def _directions(factors: Sequence[Tensor], forms: Sequence[Form]) -> Tensor:
    """An orthonormal basis ``(n, 384)``: the factors' leading directions, then those the forms weigh most."""
    own, values, _ = torch.linalg.svd(torch.cat(list(factors), dim=1), full_matrices=False)
    own = own[:, : min(int(_SEEN * _CAP), int((values > _ROUGH * values[0]).sum()))]
    drawn: Tensor = torch.randn(
        own.shape[0], _CAP, generator=torch.Generator().manual_seed(0), dtype=own.dtype
    )
    for _ in range(2):
        applied = torch.zeros_like(drawn)
        for form in forms:
            applied += form.apply(drawn.float()).double() / form.mean
        drawn = torch.linalg.qr(applied - own @ (own.mT @ applied))[0]
    known: Tensor = torch.linalg.qr(torch.cat([own, drawn], dim=1)[:, :_CAP])[0]
    return known


def _spectral(side: _Side, rank: int) -> Tensor:
    """The leading directions of all layers' factors, in the coordinates of the layers' mean form."""
    traces = side.forms.diagonal(dim1=1, dim2=2).mean(1)
    shares = torch.bincount(side.kind) / traces
    mean = (shares[:, None, None] * side.forms).sum(0) / len(side.kind)
    root = _cholesky(mean[None])[0]
    sizes = traces.sqrt()[side.kind]
    stacked = torch.cat([size * each for size, each in zip(sizes, side.factors, strict=True)], dim=1)
    leading: Tensor = torch.linalg.svd(root.mT @ stacked, full_matrices=False)[0][:, :rank]
    if leading.shape[1] < rank:
        raise NumericalError(f"all layers together span {leading.shape[1]} directions, fewer than {rank}")
    basis: Tensor = torch.linalg.solve_triangular(root.mT, leading, upper=True)
    return basis


def _grams(side: _Side, basis: Tensor) -> Tensor:
    """The form of each layer on a basis, (layers, r, r)."""
    found = basis.mT @ (side.forms @ basis)
    return ((found + found.mT) / 2)[side.kind]


def _inner(side: _Side, vectors: Tensor) -> list[Tensor]:
    """``factors_lᵀ form_l vectors_l`` of each layer, (r_l, r)."""
    return [each.mT @ own for each, own in zip(side.seen, vectors, strict=True)]


def _right_side(side: _Side, weights: Sequence[Tensor]) -> Tensor:
    """``Σ form_l factors_l weights_l``, (m, r)."""
    total = torch.zeros(side.forms.shape[1], weights[0].shape[1], dtype=torch.float64)
    for each, weight in zip(side.seen, weights, strict=True):
        total += each @ weight
    return total


def _solve(side: _Side, start: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """Conjugate gradients on ``Σ form_l X middle_l = right``; each step lowers the squared error."""
    forms = side.forms
    middle = torch.zeros(len(forms), *middle.shape[1:], dtype=middle.dtype).index_add(0, side.kind, middle)
    weights = middle.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(torch.float64).tiny
    outer = _cholesky(((weights / weights.sum())[:, None, None] * forms).sum(0)[None], _ROUGH)[0]
    inner = _cholesky(middle.sum(0)[None], _ROUGH)[0]

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


def _cholesky(grams: Tensor, lift: float = _FLOOR) -> Tensor:
    """Lower Cholesky factors of Gram matrices, lifted from zero by a hair."""
    floor = lift * grams.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
    lifted = grams + floor[:, None, None] * torch.eye(grams.shape[1], dtype=grams.dtype)
    root: Tensor = torch.linalg.cholesky(lifted)
    return root
