"""Magnitude: DoRA's weight decomposition, on any map with a linear activation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters.generator import without_autocast
from tntune.adapters.linear import AdaptedLinear, is_transposed
from tntune.errors import NumericalError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.plugins.replacement import is_owner, replace_layers

__all__ = ["MagnitudeLinear", "decompose_weights"]


class MagnitudeLinear(AdaptedLinear):
    """``y = W' x + b`` with ``W' = magnitude * (W0 + ΔW) / |W0 + ΔW|``, norms taken output by output.

    The magnitude trains and starts at ``|W0 + ΔW|``, so that the function stays; with ΔW = 0, bit for bit.
    The norm counts as a constant in backward, as published. Neither W' nor ΔW is formed in a forward: with
    thin factors ``|W0 + ΔW|² = |W0|² + Σ up (2 W0 downᵀ + up down downᵀ)``, row by row, in float32 at least.
    Cost beyond the plain layer: one product of W0 with down a call, and one number for each output.

    Args:
        layer: The adapted layer whose base, generator and scale it takes.

    Raises:
        UnsupportedError: Where σ is not linear.
        NumericalError: Where a row of the weight is zero, which has no direction.

    Example:
        >>> from tntune.adapters.generator import FactorGenerator
        >>> from tntune.maps.lora import LoRA
        >>> layer = MagnitudeLinear(AdaptedLinear(nn.Linear(4, 3), FactorGenerator.fresh(LoRA(4, 3, 2))))
        >>> x = torch.ones(5, 4)
        >>> bool((layer(x) == layer.base(x)).all())
        True

    Reference: Liu et al. (arXiv 2402.09353), eq. 5 and section 4.3.
    """

    def __init__(self, layer: AdaptedLinear) -> None:
        sigma = activation(layer.spec.activation)
        if not sigma.linear:
            raise UnsupportedError(
                f"a magnitude scales a weight, and an adapter with activation {sigma.name!r} is none"
            )
        scale, owner = layer.spec.scale, is_owner(layer)
        super().__init__(layer.base, layer.generator, scale=scale, site=layer.site, owner=owner)
        self.enabled = layer.enabled
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        self.magnitude = nn.Parameter(torch.ones(len(self._rows()), dtype=wide, device=self.weight.device))
        self.reset_magnitude()

    @torch.no_grad()
    def reset_magnitude(self) -> None:
        """Make the magnitude ``|W0 + ΔW|`` as base and adapter are now.

        Raises:
            NumericalError: Where that of a row is zero or not finite; nothing is changed.
        """
        down, up = self.generator.stored(self.site)
        norm = self._norm(Factors(down[0], up[0]))
        bad = int((~(norm > 0) | ~norm.isfinite()).sum())
        if bad:
            raise NumericalError(f"{bad} of the {len(norm)} rows of the weight have no direction")
        self.magnitude.copy_(norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the dtype of the base's output."""
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        down, up = self.factors()
        gain = (self.magnitude / self._norm(Factors(down, up))).to(y.dtype)
        added = functional.linear(functional.linear(x, down.to(x.dtype)), (up * self.spec.scale).to(x.dtype))
        straight = y if self.bias is None else y - self.bias
        return y + (gain - 1) * straight + gain * added.to(y.dtype)

    def delta_weight(self) -> Tensor:
        """``W' - W0``, ``(out_features, in_features)``, in float32 at least: what a merge adds."""
        delta = super().delta_weight()
        whole = self._rows().to(delta.dtype) + delta
        norm = torch.linalg.vector_norm(whole, dim=1, keepdim=True)
        directed: Tensor = self.magnitude.to(delta.dtype)[:, None] * whole / norm
        return directed - self._rows().to(delta.dtype)

    def _norm(self, factors: Factors) -> Tensor:
        """``|W0 + ΔW|`` of every output, without a gradient."""
        with torch.no_grad(), without_autocast(self.magnitude.device):
            rows = self._rows().to(self.magnitude.dtype)
            down, up = factors.down.to(rows), self.spec.scale * factors.up.to(rows)
            crossed = (up * (2 * (rows @ down.mT) + up @ (down @ down.mT))).sum(1)
            norm: Tensor = (rows.square().sum(1) + crossed).clamp(min=0).sqrt()
        return norm

    def _rows(self) -> Tensor:
        """W0, while it is merged too, with one row for each output."""
        weight = (self._unmerged[0] if self.merged else self.weight).detach()
        return weight.T if is_transposed(self.base) else weight


def decompose_weights(model: nn.Module) -> nn.Module:
    """Give every adapted layer a trained magnitude (:class:`MagnitudeLinear`); the function stays.

    Such a model is saved by its ``state_dict``, not as an adapter folder.

    Returns:
        ``model`` itself.

    Raises:
        TargetError: Where there are no adapted layers.
        UnsupportedError: Where σ is not linear, or a layer is merged.
        NumericalError: Where a row of a weight is zero.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = decompose_weights(adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(width=4)))
        >>> tuple(model[0].magnitude.shape)
        (8,)
    """
    return replace_layers(model, MagnitudeLinear)
