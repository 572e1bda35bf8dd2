"""JointFit: one train for many layers of a shape, fitted to all their ΔW by alternating least squares."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tntune.convert.joint_side import JointSide
from tntune.convert.joint_train import JointTrain
from tntune.convert.norm import LayerNorm
from tntune.convert.stream_problem import StreamProblem, StreamState
from tntune.errors import NumericalError
from tntune.maps.base import Factors

__all__ = ["JointFit", "JointProblem"]

_INPUTS, _OUTPUTS = "inputs", "outputs"


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
        self.problem = StreamProblem(factors, norms, [(_INPUTS, _OUTPUTS)] * len(factors))

    @property
    def inputs(self) -> JointSide:
        """The side of all inputs."""
        return self.problem.sides[_INPUTS]

    @property
    def outputs(self) -> JointSide:
        """The side of all outputs."""
        return self.problem.sides[_OUTPUTS]

    @property
    def total(self) -> float:
        """Squared norm of all ΔW."""
        return self.problem.total

    @property
    def max_rank(self) -> int:
        """The rank at which a train is exact, or all directions that are kept."""
        return min(self.inputs.span, self.outputs.span)

    def fit(self, rank: int, width: int, *, sweeps: int = 25, tolerance: float = 1e-3) -> "JointFit":
        """The train of this rank and width that alternating least squares ends at.

        The start is spectral; :meth:`tntune.convert.stream_problem.StreamState.fit` does the rest.

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
        starts = self.problem.starts({_INPUTS: rank, _OUTPUTS: rank})
        bases, layers, history = StreamState(self.problem, starts, [width] * len(self.problem.squares)).fit(
            sweeps=sweeps, tolerance=tolerance
        )
        down, up = (torch.stack(sides) for sides in zip(*layers, strict=True))
        return JointFit(JointTrain(bases[_INPUTS], bases[_OUTPUTS], down, up), history)


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
