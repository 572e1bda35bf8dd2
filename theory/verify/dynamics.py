"""What a kernel says of training, beside training: equations 10 and 22 as they hold, and cross-entropy.

    python theory/verify/dynamics.py

A TensorGuide with GELU, 5 -> C features at width 4, trained by gradient flow (Runge-Kutta) in float64. The
paper's bound is one exponential in λ_min; where T is singular that column has λ⁺ in its place.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tntune.maps import Geometry, Joined, TensorGuide
from tntune.theory import (
    SpectrumReport,
    cross_entropy_bound,
    descent_bound,
    flow_bound,
    linear_flow,
    path_bound,
)

Function = Callable[[Tensor], Tensor]  # θ (P,) to outputs (n, C)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def adapter(x: Tensor, outputs: int, *, rank: int = 3) -> tuple[Function, Tensor]:
    """The layer as a function of one flat vector, and where it starts."""
    sizes = Geometry(x.shape[1], outputs, 4)
    guide = TensorGuide(*sizes, Joined.auto("w1 w2 io1 io2", sizes), (1, 2, rank, 2, 1), start="random")
    params, _ = guide.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes_of = [param.numel() for param in params.values()]

    def function(theta: Tensor) -> Tensor:
        parts = zip(params, theta.split(sizes_of), strict=True)
        down, up = guide.factors({name: part.reshape(params[name].shape) for name, part in parts}, {})
        return 2 * functional.gelu(x @ down[0].mT) @ up[0].mT

    return function, torch.cat([param.flatten() for param in params.values()])


def jacobian(function: Function, theta: Tensor) -> Tensor:
    return torch.func.jacrev(function)(theta).flatten(0, 1)


def linearised(function: Function, theta: Tensor) -> Function:
    start, a = function(theta), jacobian(function, theta)
    return lambda other: start + (a @ (other - theta)).reshape(start.shape)


def flow(gradient: Function, theta: Tensor, time: float, steps: int) -> list[Tensor]:
    path, h = [theta], time / steps
    for _ in range(steps):
        k1 = -gradient(theta)
        k2 = -gradient(theta + h / 2 * k1)
        k3 = -gradient(theta + h / 2 * k2)
        k4 = -gradient(theta + h * k3)
        theta = theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(theta)
    return path


def squared(values: Tensor) -> float:
    return float(values.square().sum())


def line(label: str, run: str, time: float, measured: float, bound: float, paper: str, holds: bool) -> None:
    verdict = "yes" if holds else "NO"
    print(f"| {label} | {run} | {time:.3g} | {measured:.3e} | {bound:.3e} | {paper} | {verdict} |")


def squared_loss() -> None:
    for name, n, outputs, rank in (("full rank", 6, 2, 3), ("bond of rank 1", 12, 3, 1)):
        x, y = normal(n, 5, seed=1), normal(n, outputs, seed=2)
        function, theta = adapter(x, outputs, rank=rank)
        tangent, a = linearised(function, theta), jacobian(function, theta)
        r = (function(theta) - y).flatten()
        report = SpectrumReport.from_factor(a)
        path = flow(lambda other: a.T @ (tangent(other) - y).flatten(), theta, 1.0, 2000)  # noqa: B023
        for step in (200, 2000):
            time, measured = step / 2000, squared(tangent(path[step]) - y)
            bound = flow_bound(a, r, time, measured=measured)
            paper = math.exp(-2 * (report.lambda_min_plus or 0.0) * time) * squared(r)
            line("E10", f"tangent model, {name}", time, measured, bound.value, f"{paper:.3e}", bound.holds)
        late = 10 / (report.lambda_min_plus or 1.0)
        measured = float(linear_flow(a, r, [late])[0])
        bound, paper = flow_bound(a, r, late, measured=measured), f"{math.exp(-20) * squared(r):.3e}"
        line("E10", f"tangent model, {name}, in closed form", late, measured, bound.value, paper, bound.holds)
        rate, moved = 1 / report.lambda_max, theta
        for _ in range(500):
            moved = moved - rate * a.T @ (tangent(moved) - y).flatten()
        measured = squared(tangent(moved) - y)
        bound = descent_bound(a, r, 500, rate=rate, measured=measured)
        line("N5", f"tangent model, {name}, descent", 500, measured, bound.value, "", bound.holds)


def whole_model() -> None:
    for seed in (1, 4):
        x, y = normal(2, 5, seed=seed), normal(2, 2, seed=seed + 10)
        function, theta = adapter(x, 2)

        def loss(own: Tensor, function: Function = function, y: Tensor = y) -> Tensor:
            return (function(own) - y).square().sum() / 2

        path = flow(torch.func.grad(loss), theta, 2.0, 200)
        smallest = [float(torch.linalg.svdvals(jacobian(function, point))[-1]) ** 2 for point in path]
        measured, initial = squared(function(path[-1]) - y), squared(function(theta) - y)
        bound = path_bound(smallest, [k / 100 for k in range(201)], initial=initial, measured=measured)
        paper = f"{math.exp(-4 * smallest[0]) * initial:.3e}"
        line("E22", f"the adapter itself, seed {seed}", 2.0, measured, bound.value, paper, bound.holds)


def cross_entropy() -> None:
    x, labels = normal(2, 5, seed=1), torch.tensor([0, 2])
    function, theta = adapter(x, 3)
    tangent, a = linearised(function, theta), jacobian(function, theta)

    def loss(other: Tensor) -> Tensor:
        return functional.cross_entropy(tangent(other), labels, reduction="sum")

    initial, path = float(loss(theta)) / 2, flow(torch.func.grad(loss), theta, 10.0, 1000)
    for step in (100, 1000):
        measured = float(loss(path[step])) / 2
        bound = cross_entropy_bound(a, step / 100, outputs=3, initial=initial, measured=measured)
        line("N6", "tangent model, cross-entropy", step / 100, measured, bound.value, "", bound.holds)
    for time in (1e2, 1e3, 1e4):
        bound = cross_entropy_bound(torch.eye(2), time, outputs=2, initial=math.log(2), measured=0.0)
        print(f"| N6 | T = 1, two classes: loss times t | {time:g} | {bound.value * time:.4f} | exact | | |")


def main() -> None:
    print("| label | run | t | measured | bound | one exponential | holds |\n|---|---|---|---|---|---|---|")
    squared_loss()
    whole_model()
    cross_entropy()


if __name__ == "__main__":
    main()
