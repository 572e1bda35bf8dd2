"""A small adapter network as a function of one flat vector, and its training: what bounds are checked on."""

from collections.abc import Callable

import torch
from torch import Tensor

from tntune.maps import ACTIVATIONS, Geometry, Joined, TensorGuide

Function = Callable[[Tensor], Tensor]  # θ (P,) to outputs (n, C)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def adapter(x: Tensor, outputs: int, *, rank: int = 3, width: int = 4) -> tuple[Function, Tensor]:
    """A TensorGuide layer with GELU on inputs x, and where it starts."""
    sizes = Geometry(x.shape[1], outputs, width)
    layout = Joined.auto("w1 w2 io1 io2", sizes)
    guide = TensorGuide(*sizes, layout, (1, 2, rank, 2, 1), start="random")
    params, _ = guide.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    shapes = {name: param.shape for name, param in params.items()}

    def function(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        own = {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        down, up = guide.factors(own, {})
        return 2 * ACTIVATIONS["gelu"].function(x @ down[0].mT) @ up[0].mT

    return function, torch.cat([param.flatten() for param in params.values()])


def jacobian(function: Function, theta: Tensor) -> Tensor:
    """A (n C, P)."""
    return torch.func.jacrev(function)(theta).flatten(0, 1)


def linearised(function: Function, theta: Tensor) -> Function:
    """The tangent model at θ: ``f(θ0) + A (θ − θ0)``."""
    start, a = function(theta), jacobian(function, theta)
    return lambda other: start + (a @ (other - theta)).reshape(start.shape)


def flow(gradient: Function, theta: Tensor, time: float, steps: int) -> list[Tensor]:
    """Gradient flow by Runge-Kutta of fourth order: θ at equal times, both ends included."""
    path, h = [theta], time / steps
    for _ in range(steps):
        k1 = -gradient(theta)
        k2 = -gradient(theta + h / 2 * k1)
        k3 = -gradient(theta + h / 2 * k2)
        k4 = -gradient(theta + h * k3)
        theta = theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(theta)
    return path
