"""Rademacher complexity and generalisation of functions linear in their parameters, from the kernel."""

import math

import torch
from torch import Tensor

from tntune.errors import ModeError, SpecError
from tntune.theory.bound import Bound
from tntune.theory.spectrum import SpectrumReport

__all__ = [
    "generalisation_bound",
    "interpolation_bound",
    "kappa_bound",
    "rademacher_bound",
    "uniform_bound",
]

_BALL = "functions f(θ0) + <φ(x), v> with |v| <= B, B chosen before the data"
_ERRORS = 4.0  # standard errors of the measured mean that a bound forgives


def rademacher_bound(
    factor: Tensor, radius: float, *, samples: int, draws: int = 1000, generator: torch.Generator
) -> Bound:
    """Empirical Rademacher complexity of a ball in θ: ``R <= B sqrt(tr T) / n`` (equations 17 and 18).

    The supremum over the ball is ``(B / n) |Aᵀ σ|``, so the complexity itself is measured by averaging that
    over signs σ; the bound is Jensen's inequality and nothing else.

    Args:
        factor: A ``(n C, P)``. With C > 1 outputs every output of every sample has a sign of its own.
        radius: B, the radius in parameters, not their number.
        samples: n.
        draws: How many σ.
        generator: Source of σ.

    Raises:
        ModeError: Where A has not whole samples.
        SpecError: For a radius that is negative, or fewer than two draws.

    Example:
        >>> bound = rademacher_bound(torch.eye(4), 2.0, samples=4, generator=torch.Generator().manual_seed(0))
        >>> bound.value, bound.holds
        (1.0, True)

    Reference: Bartlett, Mendelson (2002), lemma 22.
    Statement: E18 in theory/generalisation.md.
    """
    measured, error = _complexity(factor, radius, samples, draws, generator)
    return Bound(
        "E18",
        "R(F) <= B sqrt(tr T) / n",
        radius * float(factor.double().norm()) / samples,
        measured,
        (_BALL,),
        rounding=_allowance(error, measured),
    )


def kappa_bound(
    factor: Tensor, radius: float, *, samples: int, draws: int = 1000, generator: torch.Generator
) -> Bound:
    """The coarser form ``R <= B κ / sqrt(n)`` with ``κ² = max_i tr T(x_i, x_i)`` (equation 19).

    Never below :func:`rademacher_bound`: a maximum stands in for a mean. Arguments and errors as there.

    Example:
        >>> bound = kappa_bound(torch.eye(4), 2.0, samples=4, generator=torch.Generator().manual_seed(0))
        >>> bound.value, bound.holds
        (1.0, True)

    Statement: E19 in theory/generalisation.md.
    """
    measured, error = _complexity(factor, radius, samples, draws, generator)
    largest = factor.double().square().reshape(samples, -1).sum(1).max()
    return Bound(
        "E19",
        "R(F) <= B κ / sqrt(n)",
        radius * math.sqrt(float(largest) / samples),
        measured,
        (_BALL, "κ² is the largest tr T(x, x) of the sample"),
        rounding=_allowance(error, measured),
    )


def generalisation_bound(
    factor: Tensor,
    radius: float,
    *,
    train_loss: float,
    test_loss: float,
    samples: int,
    lipschitz: float = 1.0,
    confidence: float = 0.95,
) -> Bound:
    """``L <= L_train + 2 γ R + 3 sqrt(log(2 / δ) / 2n)`` with the empirical R (equation 20, corrected).

    The complexity that is known is the empirical one, and it costs the factor 3; the form with log(1/δ) and
    without it belongs to the expected complexity (:func:`uniform_bound`). With C > 1 outputs the
    contraction costs sqrt(2) and γ is the constant in the Euclidean norm of the outputs.

    Args:
        factor: A ``(n C, P)`` of the training sample.
        radius: B.
        train_loss: Mean loss of the trained function on the sample.
        test_loss: Its mean loss on fresh data, what is measured.
        samples: n.
        lipschitz: γ of the loss, whose values lie in [0, 1].
        confidence: 1 − δ.

    Raises:
        ModeError: Where A has not whole samples.
        SpecError: For a radius below 0 or a confidence outside (0, 1).

    Example:
        >>> generalisation_bound(torch.eye(4), 0.0, train_loss=0.5, test_loss=0.5, samples=4).holds
        True

    Reference: Bartlett, Mendelson (2002), theorem 8; Maurer (2016), corollary 4.
    Statement: E20 in theory/generalisation.md.
    """
    outputs, delta = _checked(factor, radius, samples), _delta(confidence)
    complexity = radius * float(factor.double().norm()) / samples
    return Bound(
        "E20",
        "L <= L_train + 2 γ B sqrt(tr T) / n + 3 sqrt(log(2 / δ) / 2n)",
        train_loss + _contraction(outputs, lipschitz) * complexity + 3 * _tail(2 / delta, samples),
        test_loss,
        (_BALL, *_SAMPLING, f"with probability {confidence} over the sample"),
    )


def uniform_bound(
    kappa: float,
    radius: float,
    *,
    train_loss: float,
    test_loss: float,
    samples: int,
    lipschitz: float = 1.0,
    confidence: float = 0.95,
) -> Bound:
    """``L <= L_train + 2 γ B κ / sqrt(n) + sqrt(log(1 / δ) / 2n)`` (equations 15 and 21), for one output.

    Args:
        kappa: κ with ``κ² >= T(x, x)`` for every x that can occur, not only for those seen.
        radius: B.
        train_loss: Mean loss of the trained function on the sample.
        test_loss: Its mean loss on fresh data.
        samples: n.
        lipschitz: γ of the loss, whose values lie in [0, 1].
        confidence: 1 − δ.

    Raises:
        SpecError: For κ or a radius below 0, no samples, or a confidence outside (0, 1).

    Example:
        >>> uniform_bound(1.0, 1.0, train_loss=0.1, test_loss=0.2, samples=100).holds
        True

    Statement: E21 in theory/generalisation.md.
    """
    if min(kappa, radius) < 0 or samples < 1:
        raise SpecError(f"need κ, B >= 0 and n >= 1, not {kappa}, {radius} and {samples}")
    spread = 2 * lipschitz * radius * kappa / math.sqrt(samples)
    return Bound(
        "E21",
        "L <= L_train + 2 γ B κ / sqrt(n) + sqrt(log(1 / δ) / 2n)",
        train_loss + spread + _tail(1 / _delta(confidence), samples),
        test_loss,
        (_BALL, *_SAMPLING, "κ² >= T(x, x) everywhere", f"with probability {confidence} over the sample"),
    )


def interpolation_bound(factor: Tensor, targets: Tensor) -> Bound:
    """The radius that interpolation needs: ``B² = yᵀ T⁺ y <= |y|² / λ⁺``, infinite where y is out of reach.

    This is the one place where the least eigenvalue enters generalisation, and B is at hand without it.

    Args:
        factor: A ``(n C, P)``.
        targets: y less the initial outputs, n C entries.

    Raises:
        ModeError: Where the targets have not as many entries as A has rows.

    Example:
        >>> interpolation_bound(torch.eye(2), torch.ones(2)).measured
        2.0

    Statement: N7 in theory/generalisation.md.
    """
    report = SpectrumReport.from_factor(factor, targets=targets)
    total, least = float(targets.double().square().sum()), report.lambda_min_plus or 0.0
    reached = (report.residual_fraction or 0.0) <= math.sqrt(torch.finfo(factor.dtype).eps)
    norm = report.norm_squared if report.norm_squared is not None else math.inf
    return Bound(
        "N7",
        "B² = yᵀ T⁺ y <= |y|² / λ⁺",
        total / least if least and reached else math.inf,
        norm if reached else math.inf,
        ("y lies in the range of T; else no parameters interpolate and both sides are infinite",),
    )


_SAMPLING = ("the sample is independent and of the test distribution", "the loss is γ-Lipschitz in [0, 1]")


def _complexity(
    factor: Tensor, radius: float, samples: int, draws: int, generator: torch.Generator
) -> tuple[float, float]:
    """Mean over signs of ``(B / n) |Aᵀ σ|`` and its standard error."""
    _checked(factor, radius, samples)
    if draws < 2:
        raise SpecError(f"at least 2 draws are needed, not {draws}")
    wide = factor.detach().double()
    coins = torch.randint(2, (draws, len(wide)), generator=generator, device=generator.device)
    signs = (2 * coins - 1).to(wide)
    suprema = (signs @ wide).norm(dim=1) * (radius / samples)
    return float(suprema.mean()), float(suprema.std()) / math.sqrt(draws)


def _checked(factor: Tensor, radius: float, samples: int) -> int:
    """Outputs C of each sample; an error where A or B cannot be meant."""
    if factor.ndim != 2 or samples < 1 or not len(factor) or len(factor) % samples:
        raise ModeError(f"A of shape {tuple(factor.shape)} has no whole rows for {samples} samples")
    if not radius >= 0:
        raise SpecError(f"the radius must be at least 0, not {radius}")
    return len(factor) // samples


def _delta(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise SpecError(f"the confidence must lie between 0 and 1, not {confidence}")
    return 1 - confidence


def _contraction(outputs: int, lipschitz: float) -> float:
    """2 γ, times sqrt(2) where the loss takes more than one output."""
    return 2 * lipschitz * (math.sqrt(2) if outputs > 1 else 1.0)


def _tail(odds: float, samples: int) -> float:
    return math.sqrt(math.log(odds) / (2 * samples))


def _allowance(error: float, measured: float) -> float:
    """Relative rounding: that of arithmetic, or the error of the mean where it is larger."""
    return max(1e-9, _ERRORS * error / measured) if measured else 1e-9
