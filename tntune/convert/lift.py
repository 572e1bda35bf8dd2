"""The exact lift: a linear adapter of width r as a nonlinear one of width 2 r."""

import torch

from tntune.errors import UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors

__all__ = ["check_lift", "lift"]


def lift(factors: Factors, name: str) -> Factors:
    """Factors of twice the width: ``up' σ(down' x) == up down x`` for every x.

    ``down' = [down; −down]`` and ``up' = [up, −up] / c`` for a σ with σ(x) − σ(−x) = c x: ReLU, GELU, SiLU
    and others. So a trained LoRA becomes a nonlinear adapter without any error, and training can go on.

    Args:
        factors: down ``(..., r, in)``, up ``(..., out, r)``.
        name: Name of σ.

    Raises:
        UnsupportedError: Where σ(x) − σ(−x) is not a multiple of x; names those for which it is.

    Example:
        >>> down, up = lift(Factors(torch.eye(2), torch.eye(2)), "relu")
        >>> x = torch.tensor([3.0, -5.0])
        >>> up @ torch.relu(down @ x)
        tensor([ 3., -5.])
    """
    gain = check_lift(name)
    down = torch.cat([factors.down, -factors.down], dim=-2)
    up = torch.cat([factors.up, -factors.up], dim=-1) / gain
    return Factors(down, up)


def check_lift(name: str) -> float:
    """The c of σ(x) − σ(−x) = c x; :class:`UnsupportedError` where there is none.

    Example:
        >>> check_lift("gelu"), check_lift("leaky_relu")
        (1.0, 1.01)
    """
    gain = activation(name).odd_gain
    if gain is None:
        raise UnsupportedError(
            f"a linear adapter has no exact form with activation {name!r}: σ(x) − σ(−x) is no multiple of x; "
            "it is for relu, gelu, silu, softplus, leaky_relu, hardswish, quick_gelu"
        )
    return gain
