"""NormBounded: a LoRA whose singular values cannot exceed given bounds, by a Cayley transform."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tntune.errors import ModeError, SpecError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap, finite, positive
from tntune.maps.latent_train import gather
from tntune.tt.linalg import safe_svd, thin_qr

__all__ = ["NormBounded", "cayley", "inverse_cayley"]


@dataclass(frozen=True)
class NormBounded(WeightMap):
    """``σ_i(ΔW) <= bounds_i`` for all params: ``ΔW = 2 Bᵀ S A`` with ``A Aᵀ + B Bᵀ = 1``, S = diag(bounds).

    ``[A, B]`` is the Cayley transform of free params, so the bound holds at every step without a projection.
    It is the mean inequality of Bhatia and Kittaneh: BᵀSA is the corner of the positive ``[A, B]ᵀ S [A, B]``,
    whose eigenvalues are the bounds. Every ΔW within the bounds is reached. With a scale s of the site the
    bounds are ``s * bounds_i``.

    Attributes:
        in_features: D.
        out_features: Q.
        width: r, at most D and Q.
        bounds: The largest singular values, one for all or r in descending order, positive.
        start: ``"zero"``: the params of B are zero, and so is ΔW. ``"random"``: they are drawn like A's.

    Raises:
        ModeError: Where the width exceeds D or Q: there are no more singular values to bound.
        SpecError: For a bound that is not positive, or not one or r of them in descending order.

    Example:
        >>> map = NormBounded(6, 4, 2, bounds=(3.0, 1.0), start="random")
        >>> singular = torch.linalg.svdvals(map.delta(*map.init())[0])
        >>> bool((singular[:2] <= torch.tensor([3.0, 1.0]) * 1.0001).all())
        True

    Reference: NB-LoRA (arXiv 2501.19050); Bhatia and Kittaneh (1990) for the bound.
    """

    kind: ClassVar[str] = "norm_bounded"

    in_features: int
    out_features: int
    width: int
    bounds: tuple[float, ...] = (1.0,)
    start: str = "zero"

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width"):
            positive(name, getattr(self, name))
        bounds = tuple(finite("bounds", bound) for bound in self.bounds)
        bounds = bounds * self.width if len(bounds) == 1 else bounds
        if len(bounds) != self.width or list(bounds) != sorted(bounds, reverse=True) or bounds[-1] <= 0:
            raise SpecError(f"bounds are 1 or {self.width} positive numbers that fall, not {self.bounds}")
        object.__setattr__(self, "bounds", bounds)
        if self.start not in ("zero", "random"):
            raise SpecError(f"start must be one of zero, random, not {self.start!r}")
        if self.width > min(self.in_features, self.out_features):
            raise ModeError(
                f"width {self.width} exceeds {self.in_features} inputs or {self.out_features} outputs"
            )

    @property
    def param_shapes(self) -> Shapes:
        return {"free_down": (self.width, self.in_features), "free_up": (self.width, self.out_features)}

    @property
    def fixed_shapes(self) -> Shapes:
        return {}

    @property
    def is_generated(self) -> bool:
        return True

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        drawn = {
            name: torch.empty(shape, device="cpu").normal_(0, self.in_features**-0.5, generator=generator)
            for name, shape in self.param_shapes.items()
        }
        if self.start == "zero":
            drawn["free_up"].zero_()
        return {name: tensor.to(dtype) for name, tensor in drawn.items()}, {}

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        wide, own = gather([params["free_down"], params["free_up"]])
        orthonormal = cayley(torch.cat(wide, dim=1).mT)  # (D + Q, r)
        first, second = torch.split(orthonormal, [self.in_features, self.out_features])
        up = second * (2 * torch.tensor(self.bounds).to(second))
        return Factors(first.mT[None].to(own), up[None].to(own))

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The ΔW nearest to ``up @ down`` within the bounds: its singular values cut to them, one by one.

        With ``ΔW = U diag(σ) Vᵀ``: the columns of ``[A, B]ᵀ`` are ``(cos θ_i v_i, sin θ_i u_i)`` with
        ``sin 2θ_i = σ_i / bounds_i``, which the inverse Cayley transform turns into params.
        """
        self.check_factors(down, up)
        left, values, right = _svd_of_product(up[0].double(), down[0].double())
        ratio = (values / torch.tensor(self.bounds).to(values)).clamp(max=1)
        angle = torch.asin(ratio) / 2
        found = torch.cat([right.mH * angle.cos(), left * angle.sin()])  # (D + Q, r)
        free = inverse_cayley(found).to(down.dtype).mT
        first, second = torch.split(free, [self.in_features, self.out_features], dim=1)
        return {"free_down": first.contiguous(), "free_up": second.contiguous()}, {}


def cayley(free: Tensor) -> Tensor:
    """Orthonormal columns from any matrix ``[X; Y]``: ``[(1 - Z)(1 + Z)⁻¹; -2 Y (1 + Z)⁻¹]``.

    ``Z = X - Xᵀ + YᵀY`` has a symmetric part that is not negative, so the inverse always exists.

    Args:
        free: ``(n, r)`` with n >= r.

    Returns:
        ``(n, r)`` with orthonormal columns, in O(n r²).

    Example:
        >>> q = cayley(torch.arange(6.0, dtype=torch.float64).reshape(3, 2))
        >>> torch.allclose(q.T @ q, torch.eye(2, dtype=torch.float64))
        True
    """
    r = free.shape[1]
    x, y = free[:r], free[r:]
    one = torch.eye(r, dtype=free.dtype, device=free.device)
    z = x - x.mT + y.mT @ y
    inverse = torch.linalg.inv(one + z)
    return torch.cat([(one - z) @ inverse, -2 * y @ inverse])


def inverse_cayley(columns: Tensor) -> Tensor:
    """A preimage of orthonormal columns up to signs: ``cayley(inverse_cayley(q)) == q * signs``.

    Signs are chosen one after the other, so that the block that is inverted has a determinant of at least 1.

    Args:
        columns: ``(n, r)``, orthonormal.

    Returns:
        ``(n, r)`` with a skew upper block.

    Example:
        >>> q = torch.eye(3, 2, dtype=torch.float64)
        >>> torch.allclose(cayley(inverse_cayley(-q)), q)
        True
    """
    r = columns.shape[1]
    top, rest = _with_signs(columns)
    one = torch.eye(r, dtype=columns.dtype, device=columns.device)
    z = torch.linalg.solve(one + top, one - top)
    y = -rest @ (one + z) / 2
    return torch.cat([(z - z.mT) / 4, y])


def _with_signs(columns: Tensor) -> tuple[Tensor, Tensor]:
    """The upper r rows and the others, with signs of columns for which ``det(1 + top) >= 1``.

    Column by column, with the chosen ones to its left: the pivot of the elimination of ``1 + top`` is
    ``1 + s p``, and the sign of p makes it at least 1.
    """
    r = columns.shape[1]
    top = columns[:r].clone()
    signs = torch.ones(r, dtype=columns.dtype, device=columns.device)
    for k in range(r):
        block = torch.eye(k, dtype=top.dtype, device=top.device) + top[:k, :k]
        pivot = top[k, k] - top[k, :k] @ torch.linalg.solve(block, top[:k, k])
        if pivot < 0:
            signs[k] = -1
            top[:, k] = -top[:, k]
    return top, columns[r:] * signs


def _svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of ``up @ down`` at the inner size, without the product."""
    left, first = thin_qr(up)
    right, second = thin_qr(down.mT)
    u, values, vh = safe_svd(first @ second.mT)
    return left @ u, values, vh @ right.mT
