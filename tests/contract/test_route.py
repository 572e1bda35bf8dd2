"""Routes of trains: every one contracts to the same, and none is listed twice."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.contract import candidates, equation, plan, train_routes


def operands(order: int, *, has_z: bool) -> tuple[list[list[str]], list[str]]:
    cores = [[f"r{k}", *([f"n{k}"] if has_z else []), f"m{k}", f"r{k + 1}"] for k in range(order)]
    z = [[f"n{k}" for k in range(order)]] if has_z else []
    return cores + z, [f"m{k}" for k in range(order)]


@pytest.mark.parametrize("has_z", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_every_route_makes_the_train(order: int, has_z: bool) -> None:
    legs, output = operands(order, has_z=has_z)
    sizes = {"r0": 1, f"r{order}": 1}
    shapes = [tuple(sizes.get(leg, 2 + (int(leg[1]) + len(leg[0])) % 2) for leg in own) for own in legs]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    run = plan(equation(legs, output), *shapes, paths=train_routes(order, has_z=has_z))
    wanted = torch.einsum(run.equation, *tensors)
    assert all(close(one(*tensors), wanted) for one in candidates(run))


@pytest.mark.parametrize("has_z", [False, True])
def test_routes_are_different(has_z: bool) -> None:
    routes = train_routes(4, has_z=has_z)
    assert len(set(routes.values())) == len(routes)
    assert {"left to right", "right to left"} <= set(routes)
    assert any("z in the right" in name for name in routes) is has_z


def test_a_sweep_from_the_right_grows_from_the_right() -> None:
    legs, output = operands(4, has_z=False)
    shapes = [(1, 9, 2), (2, 8, 2), (2, 7, 2), (2, 6, 1)]
    run = plan(equation(legs, output), *shapes, paths=train_routes(4, has_z=False))
    (sweep,) = (one for one in candidates(run) if one.route == "right to left")
    assert [step.shape for step in sweep.steps][:2] == [(2, 7, 6), (2, 8, 7, 6)]
