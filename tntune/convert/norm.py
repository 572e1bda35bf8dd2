"""Norm: what an error of ΔW counts, by entry or by what the model does with it."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.checkpoint.calibration import Calibration
from tntune.convert.form import Form, mean_eigenvalue
from tntune.convert.gauge import Balanced, balance
from tntune.errors import ModeError, NumericalError, SpecError
from tntune.maps.base import Factors
from tntune.tt.linalg import thin_qr

__all__ = ["DAMPING", "LayerNorm", "Norm", "weighted_balance"]

DAMPING = 0.1
"""Share of plain Frobenius that is mixed into each side of the task norm by default."""

_LEAST = 1e-30  # mean eigenvalue of a layer that the output does not depend on: it comes last


class LayerNorm(NamedTuple):
    """``‖G^½ E C^½‖`` for one layer.

    Attributes:
        inputs: C with its ridge.
        outputs: G with its ridge.

    Example:
        >>> norm = LayerNorm(Form(5), Form(3))
        >>> norm.squared(Factors(torch.ones(1, 5), torch.ones(3, 1)))
        15.0
    """

    inputs: Form
    outputs: Form

    def squared(self, factors: Factors) -> float:
        """The square of the norm of ``up @ down``: traces of two small matrices."""
        return self.inner(factors, factors)

    def inner(self, first: Factors, second: Factors) -> float:
        """The inner product of ``up₁ down₁`` and ``up₂ down₂``, in float64."""
        downs = first.down.double() @ self.inputs.apply(second.down.double().mT)  # (r1, r2)
        ups = first.up.double().mT @ self.outputs.apply(second.up.double())  # (r1, r2)
        return float((downs * ups).sum())

    def squared_distance(self, first: Factors, second: Factors) -> float:
        """The square of the norm of the difference, small ones too: it is formed before it is squared."""
        down, r_down = thin_qr(torch.cat([first.down, second.down]).double().mT)
        up, r_up = thin_qr(torch.cat([first.up, -second.up], dim=1).double())
        gap = r_up @ r_down.mT
        weighted = self.outputs.gram(up) @ gap @ self.inputs.gram(down)
        return max(0.0, float((gap * weighted).sum()))


@dataclass(frozen=True)
class Norm:
    """The norm of all layers: plain Frobenius, or the task norm of a calibration, damped.

    Each moment is mixed with the identity of its own mean eigenvalue μ,
    ``(moment + damping * μ) / (1 + damping)``, so that no layer's weight changes.

    Attributes:
        calibration: The moments; None for the Frobenius norm.
        damping: At least 0, and above where there is a calibration.

    Raises:
        SpecError: For a damping out of range.

    Example:
        >>> Norm().name, Norm().layer("fc", (3, 5)).inputs.size
        ('frobenius', 5)
    """

    calibration: Calibration | None = None
    damping: float = DAMPING

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise SpecError(f"damping must be a number above 0, not {self.damping}")

    @property
    def name(self) -> str:
        """How reports call it."""
        return "frobenius" if self.calibration is None else f"task, damping {self.damping:g}"

    def damped(self, damping: float) -> "Norm":
        """The same with another damping."""
        return replace(self, damping=damping)

    def layer(self, name: str, shape: tuple[int, int]) -> LayerNorm:
        """The norm of one layer's ``(out, in)`` matrices.

        Raises:
            TargetError: Where the calibration does not have the layer.
            ModeError: Where it has it in other sizes.
        """
        if self.calibration is None:
            return LayerNorm(Form(shape[1]), Form(shape[0]))
        inputs, outputs = self.calibration.moments(name)
        if (outputs.shape[1], inputs.shape[1]) != shape:
            raise ModeError(f"{name}: is {shape}, in the calibration {(outputs.shape[1], inputs.shape[1])}")
        return LayerNorm(self._form(inputs), self._form(outputs))

    def _form(self, moment: Tensor) -> Form:
        """``(moment + damping * mean eigenvalue) / (1 + damping)``."""
        gain, mean = 1 / (1 + self.damping), max(mean_eigenvalue(moment), _LEAST)
        return Form(moment.shape[1], moment, gain * self.damping * mean, gain)


def weighted_balance(factors: Factors, norm: LayerNorm) -> Balanced:
    """Factors of the same ΔW whose leading k are its best rank-k approximation in the norm.

    In the norm's own coordinates they are balanced: ``down C downᵀ == upᵀ G up == diag(values)``. Two small
    Cholesky factors and one r x r SVD; in the Frobenius norm this is :func:`tntune.convert.balance`.

    Args:
        factors: ``down (r, in)``, ``up (out, r)``.
        norm: The layer's norm.

    Raises:
        NumericalError: Where the norm is zero on the factors.

    Example:
        >>> norm = LayerNorm(Form(2, torch.diag(torch.tensor([1.0, 9.0]))), Form(2))
        >>> weighted_balance(Factors(torch.eye(2), torch.eye(2)), norm).values
        tensor([3.1623, 1.4142], dtype=torch.float64)

    Reference: Eckart and Young (1936), in the coordinates of the norm.
    """
    plain = balance(factors.down, factors.up)
    down, up = plain.down, plain.up
    inputs = _root(norm.inputs.gram(down.mT))  # L Lᵀ
    outputs = _root(norm.outputs.gram(up))
    left, values, right = torch.linalg.svd(outputs.mT @ inputs)
    root = values.sqrt()
    made_up = torch.linalg.solve_triangular(outputs.mT, left * root, upper=True)
    made_down = torch.linalg.solve_triangular(inputs.mT, right.mT * root, upper=True).mT
    return Balanced(made_down @ down, up @ made_up, values)


def _root(gram: Tensor) -> Tensor:
    """Lower Cholesky factor; NumericalError where there is none."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) or not bool(torch.isfinite(root).all()):
        raise NumericalError("the task norm does not see this layer: its calibration is zero or damaged")
    return root
