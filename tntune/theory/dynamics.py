"""Training dynamics: what a tangent kernel says of the loss, for squared loss and for cross-entropy."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tntune.errors import ModeError, SpecError
from tntune.theory.bound import Bound
from tntune.theory.spectrum import SpectrumReport

__all__ = [
    "cross_entropy_bound",
    "descent_bound",
    "flow_bound",
    "linear_descent",
    "linear_flow",
    "path_bound",
]


def linear_flow(factor: Tensor, residual: Tensor, times: Sequence[float]) -> Tensor:
    """``|r(t)|²`` of gradient flow on ``½ |f − y|²``, linear in θ: ``r(t) == exp(−A Aᵀ t) r(0)``.

    Args:
        factor: A ``(n C, P)``, constant in time.
        residual: ``r(0) = f − y``, n C entries of any shape.
        times: When, each at least 0.

    Returns:
        One value for each time, float64. O(m² p) for the singular values, m and p the lesser and larger size.

    Raises:
        ModeError: Where the residual has not as many entries as A has rows.

    Example:
        >>> linear_flow(torch.eye(2), torch.ones(2), [0.0]).tolist()
        [2.0]

    Statement: E10 in theory/generalisation.md.
    """
    rates, squares, floor = _modes(factor, residual)
    clock = torch.tensor(list(times), dtype=torch.float64)
    return (torch.exp(-2 * clock[:, None] * rates.cpu()) * squares.cpu()).sum(1) + floor


def linear_descent(factor: Tensor, residual: Tensor, steps: Sequence[int], *, rate: float) -> Tensor:
    """``|r_k|²`` of gradient descent, linear in θ: ``r_k == (1 − rate A Aᵀ)^k r_0``; as :func:`linear_flow`.

    Example:
        >>> linear_descent(torch.eye(2), torch.ones(2), [0, 1], rate=0.5).tolist()
        [2.0, 0.5]

    Statement: N5 in theory/generalisation.md.
    """
    values, squares, floor = _modes(factor, residual)
    counts = torch.tensor(list(steps), dtype=torch.float64)
    return ((1 - rate * values.cpu()).abs() ** (2 * counts[:, None]) * squares.cpu()).sum(1) + floor


def flow_bound(factor: Tensor, residual: Tensor, time: float, *, measured: float) -> Bound:
    """Equation 10 as it holds: ``|r(t)|² <= exp(−2 λ⁺ t) |P r(0)|² + |(1 − P) r(0)|²``.

    P projects onto the range of T = A Aᵀ and λ⁺ is the least eigenvalue there. What lies outside never
    decays: it is a floor, and with a singular T the paper's single exponential is no bound at all.

    Args:
        factor: A ``(n C, P)``.
        residual: r(0), n C entries.
        time: t.
        measured: ``|r(t)|²`` of the run that is to keep it.

    Raises:
        ModeError: Where the residual has not as many entries as A has rows.

    Example:
        >>> flow_bound(torch.eye(2), torch.ones(2), 0.0, measured=2.0).holds
        True

    Reference: Qi et al. (arXiv 2506.16456), eqs. 10 and 22.
    Statement: E10 in theory/generalisation.md.
    """
    report, total = _report(factor, residual)
    rate, floor = report.lambda_min_plus or 0.0, (report.residual_fraction or 0.0) * total
    return Bound(
        "E10",
        "|r(t)|² <= exp(−2 λ⁺ t) |P r(0)|² + |(1 − P) r(0)|²",
        math.exp(-2 * rate * time) * (total - floor) + floor,
        measured,
        ("squared loss ½ |f − y|²", "gradient flow", "the kernel stays what it is at the start"),
    )


def descent_bound(factor: Tensor, residual: Tensor, steps: int, *, rate: float, measured: float) -> Bound:
    """The same for descent: ``|r_k|² <= (1 − rate λ⁺)^{2k} |P r_0|² + |(1 − P) r_0|²``.

    Raises:
        SpecError: Where the rate is not in (0, 1 / λ_max], where the bound fails.
        ModeError: Where the residual has not as many entries as A has rows.

    Example:
        >>> descent_bound(torch.eye(2), torch.ones(2), 1, rate=0.5, measured=0.5).slack
        1.0

    Statement: N5 in theory/generalisation.md.
    """
    report, total = _report(factor, residual)
    if not 0 < rate * report.lambda_max <= 1 + 1e-12:
        limit = 1 / report.lambda_max if report.lambda_max else math.inf
        raise SpecError(f"the rate must be above 0 and at most 1 / λ_max = {limit:.6g}, not {rate:.6g}")
    least, floor = report.lambda_min_plus or 0.0, (report.residual_fraction or 0.0) * total
    return Bound(
        "N5",
        "|r_k|² <= (1 − rate λ⁺)^(2k) |P r_0|² + |(1 − P) r_0|²",
        (1 - rate * least) ** (2 * steps) * (total - floor) + floor,
        measured,
        ("squared loss ½ |f − y|²", "full batches", "rate <= 1 / λ_max", "the kernel stays constant"),
    )


def path_bound(
    smallest: Sequence[float], times: Sequence[float], *, initial: float, measured: float
) -> Bound:
    """For a model that is not linear: ``|r(t)|² <= exp(−2 ∫ λ_min(T(θ_s)) ds) |r(0)|²``.

    A positive λ_min at the start alone promises nothing: the integral runs along the path. Between two points
    the lesser of their values is taken.

    Args:
        smallest: λ_min of the kernel at each time, 0 where it is singular.
        times: The times, ascending.
        initial: ``|r(0)|²``.
        measured: ``|r(t)|²`` at the last time.

    Raises:
        SpecError: For fewer than two times, times that do not ascend, or another number of eigenvalues.

    Example:
        >>> path_bound([1.0, 1.0], [0.0, 0.5], initial=1.0, measured=0.2).holds
        True

    Reference: Qi et al. (arXiv 2506.16456), eq. 22.
    Statement: E22 in theory/generalisation.md.
    """
    spans = [later - earlier for earlier, later in pairwise(times)]
    if len(smallest) != len(times) or not spans or min(spans) <= 0:
        raise SpecError(f"{len(smallest)} eigenvalues need as many ascending times, not {list(times)!r:.80}")
    lesser = (min(pair) for pair in pairwise(smallest))
    area = math.fsum(least * span for least, span in zip(lesser, spans, strict=True))
    return Bound(
        "E22",
        "|r(t)|² <= exp(−2 ∫ λ_min(T(θ_s)) ds) |r(0)|²",
        math.exp(-2 * area) * initial,
        measured,
        (
            "squared loss ½ |f − y|²",
            "gradient flow",
            "λ_min between two points is at least the lesser of both",
        ),
    )


def cross_entropy_bound(
    factor: Tensor, time: float, *, outputs: int, initial: float, measured: float
) -> Bound:
    """What holds for cross-entropy: ``Φ(a(t)) <= Φ(a(0)) − λ C t / ((C − 1) n)``, a fall like 1 / t.

    Here a is the mean loss, ``Φ(a) = log(e^a − 1) − 1 / (e^a − 1)``, and λ is the least eigenvalue of T on
    logits that sum to zero in each sample. The gradient of the loss vanishes with the loss, so no kernel
    gives an exponential rate.

    Args:
        factor: A ``(n C, P)``, sample-major.
        time: t of gradient flow on the summed loss.
        outputs: C, at least 2.
        initial: Mean cross-entropy a(0) over the n samples.
        measured: Mean cross-entropy at time t.

    Raises:
        ModeError: Where the rows of A are not whole samples of C >= 2 outputs.
        SpecError: Where the initial loss is not positive.

    Example:
        >>> cross_entropy_bound(torch.eye(2), 0.0, outputs=2, initial=0.5, measured=0.5).slack
        1.0

    Statement: N6 in theory/generalisation.md.
    """
    if outputs < 2 or factor.ndim != 2 or len(factor) % outputs:
        raise ModeError(f"A of shape {tuple(factor.shape)} has no whole samples of {outputs} >= 2 outputs")
    if initial <= 0:
        raise SpecError(f"the initial loss must be positive, not {initial}")
    samples = len(factor) // outputs
    least = _least_centred(factor, outputs)
    gain = least * outputs / ((outputs - 1) * samples) * time
    return Bound(
        "N6",
        "Φ(a(t)) <= Φ(a(0)) − λ C t / ((C − 1) n), Φ(a) = log(e^a − 1) − 1 / (e^a − 1)",
        _loss_at(math.log(math.expm1(initial)) - 1 / math.expm1(initial) - gain),
        measured,
        ("cross-entropy summed over samples", "gradient flow", "λ is a lower bound along the whole path"),
    )


def _least_centred(factor: Tensor, outputs: int) -> float:
    """λ_min of T on vectors that sum to zero in each sample; 0 where it cannot be told from that."""
    wide = factor.detach().double()
    centring = torch.eye(outputs, dtype=torch.float64, device=wide.device) - 1 / outputs
    basis = torch.linalg.eigh(centring)[1][:, 1:]  # (C, C - 1)
    reduced = torch.einsum("nkp,kc->ncp", wide.reshape(-1, outputs, wide.shape[1]), basis)
    return SpectrumReport.from_factor(reduced.flatten(0, 1)).lambda_min or 0.0


def _loss_at(level: float) -> float:
    """The a with Φ(a) = level, by Newton's method in v = log(e^a − 1), where Φ = v − e^−v is concave."""
    v = -math.log1p(max(0.0, -level))
    for _ in range(100):
        step = (level - v + math.exp(-v)) / (1 + math.exp(-v))
        v += step
        if abs(step) <= 1e-14 * max(1.0, abs(v)):
            break
    return math.log1p(math.exp(v)) if v < 700 else v


def _modes(factor: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues of A Aᵀ, squared coefficients of the residual in them, and the square of what is left."""
    start = _checked(factor, residual)
    vectors, values, _ = torch.linalg.svd(factor.detach().double(), full_matrices=False)
    squares = (vectors.mT @ start).square()
    return values.square(), squares, max(0.0, float(start.square().sum() - squares.sum()))


def _report(factor: Tensor, residual: Tensor) -> tuple[SpectrumReport, float]:
    """The spectrum with the residual as targets, and ``|r|²``."""
    start = _checked(factor, residual)
    return SpectrumReport.from_factor(factor, targets=start), float(start.square().sum())


def _checked(factor: Tensor, residual: Tensor) -> Tensor:
    if factor.ndim != 2 or residual.numel() != len(factor):
        raise ModeError(f"A of shape {tuple(factor.shape)} does not fit {residual.numel()} residuals")
    return residual.detach().double().flatten()
