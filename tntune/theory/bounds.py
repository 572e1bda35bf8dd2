"""Statements on Jacobians and kernels of trains, evaluated: each bound beside the quantity that it bounds."""

import torch
from torch import Tensor

from tntune.errors import ModeError, RankError
from tntune.theory.bound import Bound
from tntune.theory.environment import left_overlaps, right_overlaps
from tntune.theory.spectrum import SpectrumReport
from tntune.theory.train_jacobian import TrainJacobian

__all__ = ["conditioning", "kernel_interval", "kernel_rank", "kernel_rank_bound", "preconditioning"]

_MINIMAL = "merged cores are minimal: every rank is that of its unfolding"


def conditioning(jacobian: TrainJacobian) -> tuple[Bound, Bound, Bound]:
    """Extreme eigenvalues of ``J Jᵀ`` in any gauge, between products of extreme eigenvalues of environments.

    ``min_k a_k λ_min(Γ_L) λ_min(Γ_R) <= λ_min⁺`` and ``max_k a_k λ_max(Γ_L) λ_max(Γ_R) <= λ_max <= Σ_k b_k
    λ_max(Γ_L) λ_max(Γ_R)``, where a_k and b_k bound the squares of the weights of core k: 1 without weights,
    ``|z_k|²`` for a latent that is a product. Where the weights are no product nothing bounds from below, and
    the lower bounds are 0. The bounds cost O(K n r³); the eigenvalues beside them one SVD of C.

    Returns:
        The bounds of λ_min⁺ from below, of λ_max from below, and of λ_max from above.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> [bound.holds for bound in conditioning(TrainJacobian.plain([one, one]))]
        [True, True, True]

    Statement: T3 in theory/jacobian.md; with a latent, T4 in theory/latent.md.
    """
    spectrum = SpectrumReport.from_factor(jacobian.factor())
    smallest = spectrum.lambda_min_plus or 0.0
    lower, middle, upper = [], [], []
    lefts = left_overlaps(jacobian.merged, jacobian.merged)
    rights = right_overlaps(jacobian.merged, jacobian.merged)
    for weight, left, right in zip(jacobian.weights, lefts[:-1], rights[1:], strict=True):
        least, most = _weight_range(weight)
        low, high = _extremes(left), _extremes(right)
        lower.append(least * low[0] * high[0])
        middle.append(least * low[1] * high[1])
        upper.append(most * low[1] * high[1])
    return (
        Bound(
            "T3",
            "λ_min⁺(J Jᵀ) >= min_k a_k λ_min(Γ_L) λ_min(Γ_R)",
            min(lower),
            smallest,
            (_MINIMAL,),
            "lower",
        ),
        Bound(
            "T3",
            "λ_max(J Jᵀ) >= max_k a_k λ_max(Γ_L) λ_max(Γ_R)",
            max(middle),
            spectrum.lambda_max,
            ("any cores",),
            "lower",
        ),
        Bound(
            "T3",
            "λ_max(J Jᵀ) <= Σ_k b_k λ_max(Γ_L) λ_max(Γ_R)",
            sum(upper),
            spectrum.lambda_max,
            ("any cores",),
        ),
    )


def preconditioning(jacobian: TrainJacobian) -> tuple[Bound, Bound]:
    """Non-zero eigenvalues of ``J B Jᵀ``, ``B = blockdiag (Γ_L ⊗ 1 ⊗ Γ_R)⁻¹``: all in [1, K], in any gauge.

    Returns:
        The bound of the least from below, by 1, and of the largest from above, by K.

    Raises:
        RankError: Where an environment is singular: the cores are not minimal and B does not exist.

    Example:
        >>> core = torch.eye(2)
        >>> [bound.holds for bound in preconditioning(TrainJacobian.plain([core[None], core[..., None]]))]
        [True, True]

    Statement: T3' in theory/jacobian.md.
    """
    own = jacobian.merged
    lefts, rights = left_overlaps(own, own), right_overlaps(own, own)
    columns = torch.split(jacobian.factor(), [core.numel() for core in jacobian.cores], dim=1)
    scaled = []
    for block, core, left, right in zip(columns, own, lefts[:-1], rights[1:], strict=True):
        if block.shape[1] != core.numel():
            raise RankError(
                "J B Jᵀ is bounded for plain trains; this one has weights with ranks or a latent leg"
            )
        shaped = block.reshape(-1, *core.shape)
        turned = torch.einsum("danb,ac,bg->dcng", shaped, _inverse_root(left), _inverse_root(right))
        scaled.append(turned.flatten(1))
    values = torch.linalg.svdvals(torch.cat(scaled, dim=1)).square()
    kept = values[values > 0.5]  # a gap: the others are zeros of the gauge
    assumptions = (_MINIMAL, "no damping")
    return (
        Bound("T3'", "λ_min⁺(J B Jᵀ) >= 1", 1.0, float(kept[-1]), assumptions, "lower"),
        Bound("T3'", "λ_max(J B Jᵀ) <= K", float(len(own)), float(kept[0]), assumptions),
    )


def kernel_interval(gradient: Tensor, jacobian: Tensor) -> tuple[Bound, Bound]:
    """``δ λ_i(G P Gᵀ) <= λ_i(T) <= |J|² λ_i(G P Gᵀ)`` for the kernel ``T = G J Jᵀ Gᵀ`` and every i.

    P projects onto the range of J and δ is the least non-zero eigenvalue of ``J Jᵀ``. Without P the lower
    bound is false: it counts directions of w that no parameter moves.

    Args:
        gradient: G (n C, N), the derivative of the outputs by w.
        jacobian: J (N, P), the derivative of w by the params.

    Returns:
        The least ratio ``λ_i(T) / λ_i(G P Gᵀ)`` beside δ, and the largest beside ``|J|²``.

    Raises:
        ModeError: Where N of both differs.

    Example:
        >>> G, J = torch.eye(3), torch.eye(3)[:, :2]
        >>> [bound.slack for bound in kernel_interval(G, J)]
        [1.0, 1.0]

    Statement: T5 in theory/jacobian.md.
    """
    if gradient.shape[1] != jacobian.shape[0]:
        raise ModeError(f"G has {gradient.shape[1]} columns, but J has {jacobian.shape[0]} rows")
    G, J = gradient.double(), jacobian.double()
    q, s, _ = torch.linalg.svd(J, full_matrices=False)
    rank = int((s > max(J.shape) * torch.finfo(s.dtype).eps * s[0]).sum())
    inner = SpectrumReport.from_factor(G @ q[:, :rank]).eigenvalues
    outer = torch.linalg.svdvals(G @ J).square()[: len(inner)].tolist()
    ratios = [value / base for value, base in zip(outer, inner, strict=True)]
    lower, upper = float(s[rank - 1]) ** 2, float(s[0]) ** 2
    assumption = ("T and G P Gᵀ at the same parameters",)
    return (
        Bound("T5", "λ_i(T) >= δ λ_i(G P Gᵀ)", lower, min(ratios), assumption, "lower", _RATIO),
        Bound("T5", "λ_i(T) <= |J|² λ_i(G P Gᵀ)", upper, max(ratios), assumption, "upper", _RATIO),
    )


_RATIO = 1e-6  # ratios of small eigenvalues carry their relative errors


def kernel_rank_bound(samples: int, outputs: int, up_rank: int) -> int:
    """``ρ n + (C - ρ) min(ρ, n)``: no kernel of ``up σ(down x)`` with an up of rank ρ, also nearby, has more.

    Args:
        samples: n.
        outputs: C.
        up_rank: ρ, the rank that the map admits for up, such as a TT-rank that feeds it.

    Raises:
        RankError: Where a number is below 1.

    Example:
        >>> [kernel_rank_bound(n, 10, 4) for n in (16, 64, 128)]
        [88, 280, 536]

    Statement: T6 in theory/jacobian.md.
    """
    if min(samples, outputs, up_rank) < 1:
        raise RankError(f"samples, outputs and rank are at least 1, not {samples}, {outputs}, {up_rank}")
    rank = min(up_rank, outputs)
    return rank * samples + (outputs - rank) * min(rank, samples)


def kernel_rank(
    factor: Tensor, *, samples: int, up_rank: int, effective_dimension: int | None = None
) -> Bound:
    """``rank T <= min(n C, rank J, ρ n + (C - ρ) min(ρ, n))``, beside the numerical rank of ``T = A Aᵀ``.

    Where this is below n C, ``λ_min(T) = 0`` exactly and no numerics are needed.

    Args:
        factor: A (n C, P).
        samples: n.
        up_rank: ρ, the rank that the map admits for up.
        effective_dimension: Rank of the Jacobian of the map, where known; P otherwise.

    Raises:
        ModeError: Where A has not whole samples.

    Example:
        >>> kernel_rank(torch.eye(4), samples=2, up_rank=2).holds
        True

    Statement: T6 in theory/jacobian.md.
    """
    rows, columns = factor.shape
    if samples < 1 or rows % samples:
        raise ModeError(f"A has {rows} rows, which are not {samples} samples of equally many outputs")
    cap = columns if effective_dimension is None else effective_dimension
    value = min(rows, cap, kernel_rank_bound(samples, rows // samples, up_rank))
    measured = SpectrumReport.from_factor(factor).rank
    return Bound(
        "T6",
        "rank T <= min(n C, rank J, ρ n + (C - ρ) min(ρ, n))",
        value,
        measured,
        (f"up has rank at most {up_rank} at all parameters",),
    )


def _weight_range(weight: Tensor) -> tuple[float, float]:
    """Numbers a, b with ``a <= E Eᵀ <= b`` for the embedding of a core; a is 0 where weights have ranks."""
    forms = torch.einsum("xnmy,xpmy->mnp", weight, weight)
    most = float(torch.linalg.eigvalsh(forms)[:, -1].max())
    if weight.shape[0] > 1 or weight.shape[-1] > 1:
        return 0.0, most
    return float(weight.square().sum(1).min()), most


def _extremes(gram: Tensor) -> tuple[float, float]:
    """The least and the largest eigenvalue of a Gram, none negative."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    return float(values[0]), float(values[-1])


def _inverse_root(gram: Tensor) -> Tensor:
    """``gram ** (-1/2)``, symmetric; RankError where it is singular to rounding."""
    values, vectors = torch.linalg.eigh(gram)
    if float(values[0]) <= len(values) * torch.finfo(values.dtype).eps * float(values[-1]):
        raise RankError("an environment is singular: the cores are not minimal, lower their ranks")
    root: Tensor = vectors * values.rsqrt() @ vectors.mT
    return root
