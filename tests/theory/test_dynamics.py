"""Bounds on the loss, each beside a training run that must keep it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from tests.support.kernels import adapter, flow, jacobian, linearised, normal
from tests.support.tolerance import close
from tntune.errors import ModeError, SpecError
from tntune.theory import (
    cross_entropy_bound,
    descent_bound,
    flow_bound,
    linear_descent,
    linear_flow,
    path_bound,
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A and r, with A wide, tall or of less than full rank."""
    rows, columns, rank = (draw(st.integers(1, 7)) for _ in range(3))
    seed = draw(st.integers(0, 2**31))
    return normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 1), normal(rows, seed=seed + 2)


def squared(values: Tensor) -> float:
    return float(values.square().sum())


@pytest.mark.statement("E10")
@given(problems(), st.floats(0, 3))
def test_linear_flow_is_the_matrix_exponential(problem: tuple[Tensor, Tensor], time: float) -> None:
    a, r = problem
    wanted = torch.linalg.matrix_exp(-time * a @ a.T) @ r
    (found,) = linear_flow(a, r, [time])
    assert close(found, wanted.square().sum())
    bound = flow_bound(a, r, time, measured=squared(wanted))
    assert bound.holds
    assert bound.label == "E10"


@pytest.mark.statement("N5")
@given(problems(), st.integers(0, 9), st.floats(0.01, 1.0))
def test_linear_descent_is_descent(problem: tuple[Tensor, Tensor], steps: int, share: float) -> None:
    a, r = problem
    rate = share / float(torch.linalg.matrix_norm(a, 2)) ** 2
    theta = torch.zeros(a.shape[1], dtype=torch.float64)
    for _ in range(steps):
        theta = theta - rate * a.T @ (a @ theta + r)
    measured = squared(a @ theta + r)
    assert close(linear_descent(a, r, [steps], rate=rate)[0], torch.tensor(measured, dtype=torch.float64))
    assert descent_bound(a, r, steps, rate=rate, measured=measured).holds


@pytest.mark.statement("E10")
def test_the_floor_stays_where_the_rank_is_short() -> None:
    """A bond of rank 1 before 3 outputs: the paper's one exponential falls below the run, ours does not."""
    x = normal(12, 5, seed=1)
    function, theta = adapter(x, 3, rank=1)
    a, r = jacobian(function, theta), function(theta).flatten() - normal(36, seed=2)
    measured = float(linear_flow(a, r, [1e7])[0])
    bound = flow_bound(a, r, 1e7, measured=measured)
    assert bound.holds
    assert measured > 0.1 * squared(r)
    values = torch.linalg.eigvalsh(a @ a.T)
    least = float(values[values > 1e-10 * values[-1]][0])
    assert math.exp(-2 * least * 1e7) * squared(r) < 0.1 * measured  # the form without the floor is broken


@pytest.mark.statement("E10")
def test_a_linearised_run_keeps_the_bound_at_all_times() -> None:
    x, y = normal(6, 5, seed=1), normal(6, 2, seed=2)
    function, theta = adapter(x, 2)
    tangent, a = linearised(function, theta), jacobian(function, theta)

    def gradient(other: Tensor) -> Tensor:
        return a.T @ (tangent(other) - y).flatten()

    r = (function(theta) - y).flatten()
    path = flow(gradient, theta, 2.0, 400)
    for step in (0, 40, 200, 400):
        measured = squared(tangent(path[step]) - y)
        exact = linear_flow(a, r, [step / 200])[0]
        assert close(
            torch.tensor(measured, dtype=torch.float64), exact, factor=1e3
        )  # Runge-Kutta's own error
        assert flow_bound(a, r, step / 200, measured=measured).holds


@pytest.mark.statement("E22")
def test_a_run_of_the_adapter_itself_keeps_the_bound_along_its_path() -> None:
    x, y = normal(2, 5, seed=1), normal(2, 2, seed=11)
    function, theta = adapter(x, 2)

    def gradient(other: Tensor) -> Tensor:
        return torch.func.grad(lambda own: (function(own) - y).square().sum() / 2)(other)

    path, time = flow(gradient, theta, 2.0, 200), 2.0
    smallest = [float(torch.linalg.svdvals(jacobian(function, point))[-1]) ** 2 for point in path]
    times = [time * k / 200 for k in range(201)]
    measured = squared(function(path[-1]) - y)
    bound = path_bound(smallest, times, initial=squared(function(theta) - y), measured=measured)
    assert bound.holds
    assert bound.value < 0.1 * squared(function(theta) - y)  # it says something
    assert min(smallest) < smallest[0]  # the start alone would promise more than the path keeps


@pytest.mark.statement("N6")
def test_a_run_with_cross_entropy_keeps_its_bound() -> None:
    x, labels = normal(4, 5, seed=1), torch.tensor([0, 2, 1, 0])
    function, theta = adapter(x, 3)
    tangent, a = linearised(function, theta), jacobian(function, theta)

    def loss(other: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(tangent(other), labels, reduction="sum")

    initial = float(loss(theta)) / 4
    path = flow(torch.func.grad(loss), theta, 4.0, 400)
    for step in (0, 20, 100, 400):
        measured = float(loss(path[step])) / 4
        assert cross_entropy_bound(a, step / 100, outputs=3, initial=initial, measured=measured).holds
    bound = cross_entropy_bound(a, 1e4, outputs=3, initial=initial, measured=0.0)
    assert 0 < bound.value < initial


@pytest.mark.statement("N6")
def test_cross_entropy_falls_like_one_over_time_and_no_faster() -> None:
    """Two classes, one sample, T = 1: the logit gap g has g' = 2 / (1 + e^g), so g + e^g = 2 t + 1."""
    a = torch.eye(2, dtype=torch.float64)
    for time in (0.1, 2.0, 1e3):
        gap = brentq(lambda g, time=time: g + math.exp(g) - 2 * time - 1, 0.0, 20.0, xtol=1e-14)
        exact = math.log1p(math.exp(-gap))
        bound = cross_entropy_bound(a, time, outputs=2, initial=math.log(2), measured=exact)
        assert bound.holds
        assert bound.slack == pytest.approx(1, abs=1e-9)
    late = [cross_entropy_bound(a, t, outputs=2, initial=1.0, measured=0.0).value * t for t in (1e4, 1e6)]
    assert late[0] == pytest.approx(0.5, rel=1e-2)
    assert late[1] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.statement("N6")
@pytest.mark.parametrize(("samples", "outputs", "time"), [(1, 4, 0.3), (3, 2, 5.0), (5, 3, 40.0)])
def test_samples_and_classes_divide_the_time(samples: int, outputs: int, time: float) -> None:
    """With T = 1, λ is 1: what the bound solves is solved anew."""
    a = torch.eye(samples * outputs, dtype=torch.float64)
    goal = math.log(math.expm1(1.0)) - 1 / math.expm1(1.0) - outputs * time / ((outputs - 1) * samples)
    exact = brentq(lambda v: math.log(math.expm1(v)) - 1 / math.expm1(v) - goal, 1e-4, 2.0, xtol=1e-14)
    bound = cross_entropy_bound(a, time, outputs=outputs, initial=1.0, measured=0.0)
    assert bound.value == pytest.approx(exact, rel=1e-9)


def test_errors() -> None:
    a, r = torch.eye(3), torch.ones(3)
    with pytest.raises(ModeError, match=r"shape \(3, 3\) does not fit 2 residuals"):
        flow_bound(a, torch.ones(2), 1.0, measured=0.0)
    with pytest.raises(SpecError, match=r"at most 1 / λ_max = 1, not 1\.5"):
        descent_bound(a, r, 3, rate=1.5, measured=0.0)
    with pytest.raises(SpecError, match="2 eigenvalues need as many ascending times"):
        path_bound([1.0, 1.0], [0.0, 0.0], initial=1.0, measured=0.0)
    with pytest.raises(ModeError, match="no whole samples of 2 >= 2 outputs"):
        cross_entropy_bound(a, 1.0, outputs=2, initial=1.0, measured=0.0)
    with pytest.raises(SpecError, match="initial loss must be positive, not 0"):
        cross_entropy_bound(a, 1.0, outputs=3, initial=0.0, measured=0.0)
