"""Approximation: from the error of a train to that of the factors, of the function, and of the risk."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from tntune.errors import ModeError
from tntune.maps.activation import activation as activation_named
from tntune.maps.base import Factors
from tntune.theory.bound import Bound
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule
from tntune.tt.train import dense

__all__ = ["LIPSCHITZ", "function_error", "risk_gap", "truncation_error"]

LIPSCHITZ = {
    "identity": 1.0,
    "relu": 1.0,
    "leaky_relu": 1.0,
    "softplus": 1.0,
    "tanh": 1.0,
    "sigmoid": 0.25,
    "gelu": 1.129,
    "silu": 1.1,
    "quick_gelu": 1.1,
    "hardswish": 1.5,
}
"""The largest slope of each activation, rounded up."""


def risk_gap(outputs: Tensor, target: Tensor, labels: Tensor) -> Bound:
    """``R(f) - R(h) <= mean |f(x) - h(x)|_1`` for cross-entropy, which is 1-Lipschitz in logits (equation 5).

    Args:
        outputs: f(x) (n, C), logits.
        target: h(x) (n, C), logits.
        labels: Classes (n,).

    Example:
        >>> x = torch.eye(3)
        >>> risk_gap(2 * x, x, torch.arange(3)).holds
        True

    Statement: E5 in theory/jacobian.md.
    """
    risks = [functional.cross_entropy(own.double(), labels).item() for own in (outputs, target)]
    value = float((outputs.double() - target.double()).abs().sum(1).mean())
    assumptions = ("the loss is the cross-entropy of logits", "both risks are means over the same samples")
    return Bound("E5", "R(f) - R(h) <= mean |f(x) - h(x)|_1", value, risks[0] - risks[1], assumptions)


def function_error(given: Factors, target: Factors, x: Tensor, *, activation: str = "identity") -> Bound:
    """``|f - h| <= L |up*| |x| |down* - down| + |σ(down x)| |up* - up|`` for each sample (equation 8).

    Both functions are ``up σ(down x)``; spectral norms of matrices, Euclidean of vectors. The value and the
    measured quantity are means over the samples.

    Args:
        given: Factors of f, of one site.
        target: Factors of h, of the same shapes.
        x: Samples (n, in).
        activation: Name of σ; L is its largest slope.

    Raises:
        ModeError: Where the factors have several sites or different shapes.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> lora = LoRA(4, 3, 2, "random")
        >>> one, other = (lora.factors(*lora.init(torch.Generator().manual_seed(k))) for k in (0, 1))
        >>> function_error(one, other, torch.eye(4), activation="relu").holds
        True

    Statement: E8 in theory/jacobian.md.
    """
    shapes = [[tuple(part.shape) for part in factors] for factors in (given, target)]
    if shapes[0] != shapes[1] or shapes[0][0][0] != 1:
        raise ModeError(f"two sets of factors of one site and equal shapes are compared, not {shapes}")
    sigma, slope = activation_named(activation), LIPSCHITZ[activation]
    down, up, true_down, true_up = (part[0].detach().double() for part in (*given, *target))
    x = x.double()
    inner = sigma.function(x @ down.mT)
    measured = inner @ up.mT - sigma.function(x @ true_down.mT) @ true_up.mT
    first = slope * _spectral(true_up) * _spectral(true_down - down) * x.norm(dim=1)
    second = _spectral(true_up - up) * inner.norm(dim=1)
    return Bound(
        "E8",
        "mean |f - h| <= mean (L |up*| |x| |down* - down| + |σ(down x)| |up* - up|)",
        float((first + second).mean()),
        float(measured.norm(dim=1).mean()),
        (f"σ = {activation} has slope at most {slope}", "no bias"),
    )


def truncation_error(tensor: Tensor, ranks: tuple[int, ...]) -> Bound:
    """``ε_tt² <= Σ_k Σ_{j > r_k} σ_j(X^<k>)²``: what the ranks of a train leave out (equation 9).

    The paper takes ε_tt for a constant in the width; here it is measured. At fixed ranks it grows with the
    modes unless the spectra decay: widening is no free gain.

    Args:
        tensor: Target of shape (n_1, .., n_K), such as the layout's write of two factors.
        ranks: The K - 1 interior ranks.

    Returns:
        The bound of the error of the TT-SVD of these ranks, both absolute in the Frobenius norm.

    Example:
        >>> truncation_error(torch.eye(4).reshape(4, 2, 2), (2, 1)).holds
        True

    Reference: Oseledets (2011), theorem 2.2.
    Statement: E9 in theory/jacobian.md.
    """
    wide = tensor.detach().double()
    made = tt_svd(wide, RankRule(ranks=ranks)).value
    tails = 0.0
    for k, rank in enumerate(ranks, 1):
        unfolding = wide.reshape(math.prod(wide.shape[:k]), -1)
        tails += float(torch.linalg.svdvals(unfolding)[rank:].square().sum())
    error = float((dense(made) - wide).norm())
    assumptions = ("ε_tt is the Frobenius error of the TT-SVD at these ranks, not of training",)
    floor = 1e-12 * float(wide.norm())  # rounding, where nothing is left out
    return Bound("E9", "ε_tt² <= Σ_k Σ_{j > r_k} σ_j(X^<k>)²", math.sqrt(tails) + floor, error, assumptions)


def _spectral(matrix: Tensor) -> Tensor:
    """The largest singular value."""
    values: Tensor = torch.linalg.svdvals(matrix)
    return values[0]
