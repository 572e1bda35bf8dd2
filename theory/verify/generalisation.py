"""Complexity and generalisation bounds, beside averages over signs and a run judged on fresh data.

    python theory/verify/generalisation.py

The tangent model of a TensorGuide (5 -> 1 features at width 4) is trained inside a ball of radius B on the
hinge loss, and judged by the ramp loss, which is 1-Lipschitz and lies in [0, 1]; confidence 0.95, 4000 fresh
inputs.
"""

import torch
from dynamics import adapter, jacobian, normal

from tntune.theory import (
    Bound,
    generalisation_bound,
    interpolation_bound,
    kappa_bound,
    rademacher_bound,
    uniform_bound,
)

FRESH, RADIUS = 4000, 0.5


def line(case: str, bound: Bound) -> None:
    holds = "yes" if bound.holds else "NO"
    print(
        f"| {bound.label} | {case} | {bound.measured:.3e} | {bound.value:.3e} | {bound.slack:.2f} | {holds} |"
    )


def run(samples: int) -> None:
    directions = normal(FRESH + samples, 5, seed=1)
    x = directions / directions.norm(dim=1, keepdim=True)
    y = torch.sign(x[:, 0] + 0.3 * x[:, 1] * x[:, 2])
    function, theta = adapter(x, 1)
    a, fixed = jacobian(function, theta), function(theta)[:, 0]
    seen, v = slice(samples), torch.zeros(len(theta), dtype=torch.float64)
    for _ in range(300):
        active = (y[seen] * (fixed[seen] + a[seen] @ v) < 1).double()
        v = v + 0.5 / samples * a[seen].T @ (active * y[seen])
        v = v * min(1.0, RADIUS / float(v.norm()))
    ramp = (1 - y * (fixed + a @ v)).clamp(0, 1)
    train, test = float(ramp[seen].mean()), float(ramp[samples:].mean())
    case, kappa = f"n = {samples}, B = {RADIUS}", float(a.norm(dim=1).max())
    signs = torch.Generator().manual_seed(0)
    line(case, rademacher_bound(a[seen], RADIUS, samples=samples, draws=2000, generator=signs))
    line(case, kappa_bound(a[seen], RADIUS, samples=samples, draws=2000, generator=signs))
    losses = {"train_loss": train, "test_loss": test, "samples": samples}
    line(case, generalisation_bound(a[seen], RADIUS, **losses))
    line(case, uniform_bound(kappa, RADIUS, **losses))


def interpolation() -> None:
    for samples in (4, 12, 40):
        function, theta = adapter(normal(samples, 5, seed=3), 1)
        bound = interpolation_bound(jacobian(function, theta), normal(samples, seed=4))
        line(f"n = {samples}, random labels, P = {len(theta)}", bound)


def main() -> None:
    print("| label | case | measured | bound | ratio | holds |\n|---|---|---|---|---|---|")
    for samples in (100, 500, 2500):
        run(samples)
    interpolation()


if __name__ == "__main__":
    main()
