"""Activations σ of an adapter, with what is known of each: linear or not, and its odd part."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tntune.errors import SpecError

__all__ = ["ACTIVATIONS", "Activation", "activation"]


@dataclass(frozen=True)
class Activation:
    """An element-wise σ.

    Attributes:
        name: Its name in specifications and checkpoints.
        function: σ itself.
        odd_gain: c where ``σ(x) − σ(−x) == c x`` for every x, else None. With it a LoRA of rank r equals
            a nonlinear adapter of width 2 r (:func:`tntune.convert.lift`).

    Example:
        >>> ACTIVATIONS["relu"].linear, ACTIVATIONS["relu"].odd_gain, ACTIVATIONS["tanh"].odd_gain
        (False, 1.0, None)
    """

    name: str
    function: Callable[[Tensor], Tensor]
    odd_gain: float | None

    @property
    def linear(self) -> bool:
        """Whether σ(x) = x, so that the adapter is a matrix and can be merged."""
        return self.name == "identity"


def _identity(x: Tensor) -> Tensor:
    return x


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    entry.name: entry
    for entry in (
        Activation("identity", _identity, 2.0),
        Activation("relu", functional.relu, 1.0),
        Activation("gelu", functional.gelu, 1.0),
        Activation("silu", functional.silu, 1.0),
        Activation("softplus", functional.softplus, 1.0),
        Activation("leaky_relu", functional.leaky_relu, 1.01),
        Activation("hardswish", functional.hardswish, 1.0),
        Activation("quick_gelu", _quick_gelu, 1.0),
        Activation("tanh", torch.tanh, None),
        Activation("sigmoid", torch.sigmoid, None),
    )
}


def activation(name: str) -> Activation:
    """The activation of this name; :class:`SpecError` lists the names otherwise.

    Example:
        >>> x = torch.tensor([-3.0, 0.5])
        >>> gelu = activation("gelu")
        >>> bool(torch.allclose(gelu.function(x) - gelu.function(-x), gelu.odd_gain * x))
        True
    """
    found = ACTIVATIONS.get(name) if isinstance(name, str) else None
    if found is None:
        raise SpecError(f"unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return found
