"""Descent: a run of gradient descent on a linearised layer, beside the bounds of how fast it can be."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tntune.errors import NumericalError
from tntune.theory.bound import Bound
from tntune.theory.dynamics import descent_bound, flow_bound, linear_flow
from tntune.theory.spectrum import SpectrumReport

__all__ = ["STEPS", "Descent", "descend"]

STEPS = (0, 1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 130, 200, 320, 500, 800, 1300, 2000, 3200, 5000)
"""Steps at which the run is looked at."""

_ROUNDING = 1e-12  # squared residuals below this share of the first one are rounding


@dataclass(frozen=True)
class Descent:
    """``|r_k|²`` of descent on ``½ |f − y|²``, f linear in θ, from ``|r_0| = 1``: measured and bounded.

    Attributes:
        rate: Learning rate, 1 / λ_max.
        steps: k.
        measured: ``|r_k|²`` of the run itself, step by step in the parameters.
        bound: N5: ``(1 − rate λ⁺)^(2k) |P r_0|² + |(1 − P) r_0|²``.
        paper: Equation 10 as printed, one exponential in λ_min, at time ``k rate``: ``exp(−2 λ_min k rate)``.
        floor: ``|(1 − P) r_0|²``: what no number of steps reaches.
        bounds: N5 at the last of the steps at which it is above rounding, and E10 for gradient flow then.

    Example:
        >>> import torch
        >>> run = descend(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0]))
        >>> run.measured[:2], run.floor, [bound.holds for bound in run.bounds]
        ((1.0, 0.0), 0.0, [True, True])
    """

    rate: float
    steps: tuple[int, ...]
    measured: tuple[float, ...]
    bound: tuple[float, ...]
    paper: tuple[float, ...]
    floor: float
    bounds: tuple[Bound, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys, bounds left out."""
        return {
            "rate": self.rate,
            "floor": self.floor,
            "steps": list(self.steps),
            "measured": list(self.measured),
            "bound": list(self.bound),
            "paper": list(self.paper),
        }


def descend(factor: Tensor, residual: Tensor) -> Descent:
    """Run full-batch descent at the rate 1 / λ_max and look at it at :data:`STEPS`.

    Args:
        factor: A ``(n C, P)``.
        residual: r_0, n C entries of norm 1.

    Returns:
        The run; 5000 products with A and its transpose.

    Raises:
        NumericalError: Where A is zero, so that nothing can move.

    Example:
        >>> import torch
        >>> run = descend(torch.ones(2, 1, dtype=torch.float64), torch.tensor([1.0, 0.0]))
        >>> round(run.floor, 6), round(run.measured[-1], 6)
        (0.5, 0.5)

    Statement: N5 and E10 in theory/generalisation.md.
    """
    spectrum = SpectrumReport.from_factor(factor, targets=residual)
    if not spectrum.eigenvalues:
        raise NumericalError("the kernel is zero: no parameter moves an output, so there is no descent")
    rate, total = 1 / spectrum.lambda_max, float(residual.double().square().sum())
    floor = (spectrum.residual_fraction or 0.0) * total
    slowest, least = 1 - rate * spectrum.eigenvalues[-1], spectrum.lambda_min or 0.0
    measured = _run(factor, residual, rate)
    bound = [slowest ** (2 * k) * (total - floor) + floor for k in STEPS]
    last = sum(value > _ROUNDING * total for value in bound) - 1  # bounds fall
    time = STEPS[last] * rate
    flowed = float(linear_flow(factor, residual, [time])[0])
    return Descent(
        rate=rate,
        steps=STEPS,
        measured=tuple(measured),
        bound=tuple(bound),
        paper=tuple(math.exp(-2 * least * k * rate) * total for k in STEPS),
        floor=floor,
        bounds=(
            descent_bound(factor, residual, STEPS[last], rate=rate, measured=measured[last]),
            flow_bound(factor, residual, time, measured=flowed),
        ),
    )


def _run(factor: Tensor, residual: Tensor, rate: float) -> list[float]:
    """The run in the parameters: ``θ <- θ − rate Aᵀ (r_0 + A θ)``."""
    A, start = factor.double(), residual.double().flatten()
    theta, found, last = A.new_zeros(A.shape[1]), [], 0
    for k in STEPS:
        for _ in range(k - last):
            theta = theta - rate * (A.mT @ (start + A @ theta))
        found.append(float((start + A @ theta).square().sum()))
        last = k
    return found
