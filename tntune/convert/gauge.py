"""The balanced gauge: the same ΔW by factors that no choice of basis can change."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.errors import NumericalError
from tntune.maps.base import Factors
from tntune.tt.linalg import safe_svd, thin_qr

__all__ = ["Balanced", "balance", "delta_distance", "delta_norm"]

_CANCELLED = 1e-4  # squared distances below that share of the norms have lost digits to cancellation
_NEGLIGIBLE = 1e-13  # singular values below that share of the largest are rounding of float64


class Balanced(NamedTuple):
    """Factors with ``down downᵀ == upᵀ up == diag(values)``.

    Attributes:
        down: ``(k, in)``, float64.
        up: ``(out, k)``, float64.
        values: The k non-zero singular values of ΔW, falling.

    Example:
        >>> balance(torch.ones(1, 9), torch.ones(4, 1)).norm
        6.0
    """

    down: Tensor
    up: Tensor
    values: Tensor

    @property
    def norm(self) -> float:
        """Frobenius norm of ΔW."""
        return float(torch.linalg.vector_norm(self.values))


def balance(down: Tensor, up: Tensor, scale: float = 1.0) -> Balanced:
    """Balanced factors of ``ΔW = scale * up @ down``; the same for (R down, up R⁻¹), whatever R.

    Two thin QRs and one r x r SVD; ΔW itself is never formed. Signs are fixed by making the largest entry of
    every row of ``down`` positive. Rows that vanish at float64's precision are dropped; a zero ΔW gives one
    zero row.

    Args:
        down: ``(r, in)``.
        up: ``(out, r)``.
        scale: s.

    Returns:
        Float64 factors, in O((in + out) r²).

    Raises:
        NumericalError: Where a product of the factors overflows.

    Example:
        >>> down, up = torch.eye(2, 5).double(), 3 * torch.eye(4, 2).double()
        >>> balance(down, up).values
        tensor([3., 3.], dtype=torch.float64)
    """
    q_down, r_down = thin_qr(down.double().mT)  # (in, k) (k, r)
    q_up, r_up = thin_qr(up.double())  # (out, k) (k, r)
    u, values, vh = safe_svd(scale * (r_up @ r_down.mT))
    if not bool(torch.isfinite(values).all()):
        raise NumericalError("the product of the factors overflows float64")
    count = max(1, int((values > _NEGLIGIBLE * values[0]).sum()))
    root = values[:count].sqrt()
    left, right = q_up @ u[:, :count], vh[:count] @ q_down.mT
    signs = _signs(right)
    return Balanced(signs[:, None] * root[:, None] * right, left * root * signs, values[:count])


def delta_norm(factors: Factors) -> float:
    """``‖up @ down‖`` of single (unbatched) factors, from thin QRs.

    Example:
        >>> round(delta_norm(Factors(torch.ones(1, 9), torch.ones(4, 1))), 12)
        6.0
    """
    return float(torch.linalg.matrix_norm(_core(factors.down, factors.up)))


def delta_distance(first: Factors, second: Factors) -> float:
    """``‖up₁ down₁ − up₂ down₂‖``, without forming an (out, in) matrix.

    From inner products of the thin factors, in O((in + out) r₁ r₂); where cancellation would cost digits
    (distances below a hundredth of the norms) from QRs of the stacked factors, accurate to rounding
    relative to the norms, in O((in + out)(r₁ + r₂)²).

    Example:
        >>> one = Factors(torch.ones(1, 3).double(), torch.ones(2, 1).double())
        >>> abs(delta_distance(one, Factors(one.down, 2 * one.up)) - 6**0.5) < 1e-12
        True
    """
    norms = _inner(first, first) + _inner(second, second)
    squared = norms - 2 * _inner(first, second)
    if squared > _CANCELLED * norms:
        return math.sqrt(squared)
    down = torch.cat([first.down, second.down])
    up = torch.cat([first.up, -second.up], dim=1)
    return float(torch.linalg.matrix_norm(_core(down, up)))


def _inner(first: Factors, second: Factors) -> float:
    """``<up₁ down₁, up₂ down₂>``."""
    downs = first.down.double() @ second.down.double().mT  # (r1, r2)
    ups = first.up.double().mT @ second.up.double()  # (r1, r2)
    return float((downs * ups).sum())


def _core(down: Tensor, up: Tensor) -> Tensor:
    """A small matrix with the norm of ``up @ down``."""
    _, r_down = thin_qr(down.double().mT)
    _, r_up = thin_qr(up.double())
    return r_up @ r_down.mT


def _signs(rows: Tensor) -> Tensor:
    """For each row the sign of its entry of largest size; 1 for a zero row."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True)).squeeze(1)
    return torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)
