"""Elementwise: a function of every entry of ΔW, after the product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters.generator import without_autocast
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import SpecError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import finite
from tntune.plugins.replacement import is_owner, replace_layers

__all__ = ["ElementwiseLinear", "ResidualSine", "Sine", "transform_deltas"]

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sine:
    """``f(x) = sin(frequency * x)``.

    Example:
        >>> Sine(2.0)(torch.zeros(1)).item()
        0.0
    """

    frequency: float = 1.0

    def __post_init__(self) -> None:
        finite("frequency", self.frequency)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


@dataclass(frozen=True)
class ResidualSine:
    """``f(x) = x + amplitude * sin(frequency * x)``.

    Example:
        >>> ResidualSine(0.5, 2.0)(torch.zeros(1)).item()
        0.0
    """

    amplitude: float = 1.0
    frequency: float = 1.0

    def __post_init__(self) -> None:
        finite("amplitude", self.amplitude)
        finite("frequency", self.frequency)

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.amplitude * torch.sin(self.frequency * x)


class ElementwiseLinear(AdaptedLinear):
    """``y = base(x) + f(ΔW) x`` with f entry by entry after the product ``ΔW = scale * up @ down``, f(0) = 0.

    f(ΔW) has full rank, so it is formed at every call: a forward makes two matrices of the base's size, ΔW
    and f(ΔW), and training keeps them, and what f keeps of its own, until backward, for every layer. Budget
    about three times the adapted weights in the dtype of the cores; with checkpointing it is one layer at a
    time. Merge first where the model only serves: merged, it costs what the base costs.

    Args:
        layer: The adapted layer whose base, generator and scale it takes.
        function: f, with f(0) = 0, so that a zero start stays the base's function.

    Raises:
        UnsupportedError: Where σ is not linear: there is no ΔW to apply f to.
        SpecError: Where f(0) is not 0, or f changes the shape.

    Example:
        >>> from tntune.adapters.generator import FactorGenerator
        >>> from tntune.maps.lora import LoRA
        >>> plain = AdaptedLinear(nn.Linear(4, 3), FactorGenerator.fresh(LoRA(4, 3, 2, "random")))
        >>> layer, x = ElementwiseLinear(plain, Sine()), torch.ones(5, 4)
        >>> torch.allclose(layer(x), plain.base(x) + x @ plain.delta_weight().sin().T)
        True

    Reference: after LoRAN (EMNLP Findings 2024), whose own function "Sinter" is described in ways that
    disagree; not a reproduction of it.
    """

    def __init__(self, layer: AdaptedLinear, function: Function) -> None:
        sigma = activation(layer.spec.activation)
        if not sigma.linear:
            raise UnsupportedError(
                f"f applies to a weight, and an adapter with activation {sigma.name!r} is none"
            )
        zeros = torch.zeros(2, 3)
        if function(zeros).shape != zeros.shape or bool(function(zeros).any()):
            raise SpecError(f"f must act on every entry alone with f(0) = 0, and {function!r} does not")
        scale, owner = layer.spec.scale, is_owner(layer)
        super().__init__(layer.base, layer.generator, scale=scale, site=layer.site, owner=owner)
        self.enabled = layer.enabled
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the dtype of the base's output."""
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        down, up = self.factors()
        with without_autocast(up.device):
            delta = self.function(self.spec.scale * (up @ down))
        return y + functional.linear(x, delta.to(x.dtype)).to(y.dtype)

    def delta_weight(self) -> Tensor:
        """``f(ΔW)``, ``(out_features, in_features)``, in float32 at least: what a merge adds."""
        return self.function(super().delta_weight())


def transform_deltas(model: nn.Module, function: Function) -> nn.Module:
    """Apply f to every ΔW of a model (:class:`ElementwiseLinear`); where ΔW = 0 the function stays.

    Such a model is saved by its ``state_dict``, or merged, not as an adapter folder.

    Returns:
        ``model`` itself.

    Raises:
        TargetError: Where there are no adapted layers.
        UnsupportedError: Where σ is not linear, or a layer is merged.
        SpecError: Where f(0) is not 0.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(width=4))
        >>> transform_deltas(model, torch.tanh)[0].delta_weight().any().item()
        False
    """
    return replace_layers(model, lambda layer: ElementwiseLinear(layer, function))
