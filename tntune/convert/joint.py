"""JointFit: one train for many layers of a shape, fitted to all their ΔW by alternating least squares."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.convert.joint_side import JointSide, cholesky
from tntune.convert.joint_train import JointTrain
from tntune.convert.norm import LayerNorm, weighted_balance
from tntune.errors import NumericalError
from tntune.maps.base import Factors

__all__ = ["Coefficients", "JointFit", "JointProblem", "best_coefficients"]

_STEPS = 12  # of conjugate gradients on one basis
_ROUGH = 1e-9  # of a preconditioner's mean eigenvalue, added to its diagonal


class JointProblem:
    """The layers of one group and their norms, reduced to the directions that matter.

    A side of more than 384 features is reduced to 384: the leading directions of the layers' own factors and
    those in which the norms are largest. Memory: a form of at most 384² float64 for each different norm of a
    side, 384 entries for each row of the factors, and in passing all rows at their full length.

    Args:
        factors: Down and up of each layer, all of one shape, scale in up.
        norms: The norm of each layer.

    Example:
        >>> from tntune.convert.form import Form
        >>> factors = [Factors(torch.eye(2, 5), (k + 1.0) * torch.eye(4, 2)) for k in range(3)]
        >>> problem = JointProblem(factors, [LayerNorm(Form(5), Form(4))] * 3)
        >>> problem.fit(2, 2).history[-1] < 1e-8
        True
    """

    def __init__(self, factors: Sequence[Factors], norms: Sequence[LayerNorm]) -> None:
        balanced = [weighted_balance(each, norm) for each, norm in zip(factors, norms, strict=True)]
        self.squares = torch.stack([each.values.square().sum() for each in balanced])
        self.inputs = JointSide.of([each.down for each in balanced], [norm.inputs for norm in norms])
        self.outputs = JointSide.of([each.up.mT for each in balanced], [norm.outputs for norm in norms])

    @property
    def total(self) -> float:
        """Squared norm of all ΔW."""
        return float(self.squares.sum())

    @property
    def max_rank(self) -> int:
        """The rank at which a train is exact, or all directions that are kept."""
        return min(self.inputs.span, self.outputs.span)

    def fit(self, rank: int, width: int, *, sweeps: int = 25, tolerance: float = 1e-3) -> "JointFit":
        """The train of this rank and width that alternating least squares ends at.

        The start is spectral. Then in turn each basis is solved for with the rest held, by preconditioned
        conjugate gradients on its least-squares problem, and all coefficients at once are the best of their
        width for the bases (:func:`best_coefficients`). No step raises the error; it ends when a sweep lowers
        its square by less than ``tolerance``, relatively.

        Args:
            rank: r, at most :attr:`max_rank`.
            width: w, at most r; the train is no wider than its widest layer.
            sweeps: At most so many.
            tolerance: At least 0.

        Raises:
            NumericalError: Where the layers span fewer directions than ``rank``.
        """
        if rank > self.max_rank:
            raise NumericalError(f"all layers together span {self.max_rank} directions, fewer than {rank}")
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


class Coefficients(NamedTuple):
    """``A_l = up_l down_lᵀ`` between two bases.

    Attributes:
        down: ``(layers, r, w)``.
        up: ``(layers, r, w)``.
        squares: ``(layers,)``: squared norm of what they make of each layer.

    Example:
        >>> Coefficients._fields
        ('down', 'up', 'squares')
    """

    down: Tensor
    up: Tensor
    squares: Tensor


def best_coefficients(
    inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor], width: int
) -> Coefficients:
    """The coefficients of least ``‖G^½ (ΔW − outputs A inputsᵀ) C^½‖`` of a width, for each layer by one SVD.

    With ``I`` and ``O`` the bases, ``L Lᵀ = Iᵀ C I`` and ``M Mᵀ = Oᵀ G O``, the error is that of truncating
    ``M⁻¹ Oᵀ G ΔW C I L⁻ᵀ``, whose rank is ΔW's: two thin QRs and one small SVD.

    Args:
        inputs: ``Iᵀ C I``, ``(layers, r, r)``, and ``down C I``, ``(layers, k, r)``.
        outputs: ``Oᵀ G O``, and ``upᵀ G O``.
        width: w; they are no wider than the smaller of k and r.

    Example:
        >>> grams, rows = torch.eye(3).double()[None], torch.eye(2, 3).double()[None]
        >>> round(best_coefficients((grams, rows), (grams, 2 * rows), 2).squares.item(), 9)
        8.0

    Reference: Eckart and Young (1936), in the coordinates of the norm.
    """
    roots = [cholesky(grams) for grams, _ in (inputs, outputs)]
    whitened = [
        torch.linalg.solve_triangular(root, rows.mT, upper=False)
        for root, (_, rows) in zip(roots, (inputs, outputs), strict=True)
    ]
    (q_in, r_in), (q_out, r_out) = (torch.linalg.qr(each) for each in whitened)
    left, values, right = torch.linalg.svd(r_out @ r_in.mT)
    root = values[:, None, :width].sqrt()
    down = torch.linalg.solve_triangular(roots[0].mT, q_in @ right[:, :width].mT * root, upper=True)
    up = torch.linalg.solve_triangular(roots[1].mT, q_out @ left[..., :width] * root, upper=True)
    return Coefficients(down, up, values[:, :width].square().sum(1))


class _State:
    """Bases ``(m, r)`` and coefficients of one fit."""

    def __init__(self, problem: JointProblem, rank: int, width: int) -> None:
        self.problem, self.width = problem, width
        self.inputs, self.outputs = problem.inputs.start[:, :rank], problem.outputs.start[:, :rank]
        self.down = self.up = torch.empty(0)

    def solve_coefficients(self) -> float:
        """The best coefficients for the bases; the relative squared error that they leave."""
        self.inputs, self.outputs = torch.linalg.qr(self.inputs)[0], torch.linalg.qr(self.outputs)[0]
        inputs, outputs = self.problem.inputs, self.problem.outputs
        self.down, self.up, squares = best_coefficients(
            inputs.seen_by(self.inputs), outputs.seen_by(self.outputs), self.width
        )
        kept = float(squares.sum())
        return max(0.0, 1.0 - kept / self.problem.total) if self.problem.total else 0.0

    def normal_inputs(self) -> tuple[Tensor, Tensor]:
        """``(M, b)`` of the normal equations ``Σ C_l X M_l = b`` for the basis X of the inputs."""
        grams, rows = self.problem.outputs.seen_by(self.outputs)
        middle = self.down @ (self.up.mT @ grams @ self.up) @ self.down.mT
        weights = rows @ self.up @ self.down.mT
        return middle, self.problem.inputs.weighted_sum(weights)

    def normal_outputs(self) -> tuple[Tensor, Tensor]:
        """The same for the basis of the outputs."""
        grams, rows = self.problem.inputs.seen_by(self.inputs)
        middle = self.up @ (self.down.mT @ grams @ self.down) @ self.up.mT
        weights = rows @ self.down @ self.up.mT
        return middle, self.problem.outputs.weighted_sum(weights)

    def train(self) -> JointTrain:
        """The train in the features' own coordinates."""
        inputs, outputs = self.problem.inputs, self.problem.outputs
        return JointTrain(inputs.expand(self.inputs), outputs.expand(self.outputs), self.down, self.up)


def _solve(side: JointSide, start: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """Conjugate gradients on ``Σ form_l X middle_l = right``; each step lowers the squared error."""
    forms = side.forms
    middle = torch.zeros(len(forms), *middle.shape[1:], dtype=middle.dtype).index_add(0, side.kind, middle)
    weights = middle.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(torch.float64).tiny
    outer = cholesky(((weights / weights.sum())[:, None, None] * forms).sum(0)[None], _ROUGH)[0]
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
