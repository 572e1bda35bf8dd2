"""Complexity and generalisation: bounds beside averages over signs, and beside a run on fresh data."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.kernels import adapter, jacobian, linearised, normal
from tests.support.tolerance import close
from tntune.errors import ModeError, SpecError
from tntune.theory import (
    generalisation_bound,
    interpolation_bound,
    kappa_bound,
    rademacher_bound,
    uniform_bound,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.statement("E18")
@pytest.mark.statement("E17")
@given(st.integers(1, 6), st.integers(1, 2), st.integers(1, 5), st.integers(0, 2**31))
def test_complexity_is_the_mean_over_all_signs(samples: int, outputs: int, columns: int, seed: int) -> None:
    a, radius = normal(samples * outputs, columns, seed=seed), 1.7
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(a))), dtype=torch.float64)
    exact = float((signs @ a).norm(dim=1).mean()) * radius / samples
    bound = rademacher_bound(a, radius, samples=samples, draws=4000, generator=generator(seed))
    assert bound.holds
    assert abs(bound.measured - exact) <= 2 * bound.rounding * exact + 1e-12
    assert exact <= bound.value * (1 + 1e-12)


@pytest.mark.statement("E17")
def test_its_error_falls_with_the_root_of_the_draws() -> None:
    a = normal(12, 5, seed=0)
    few, many = (rademacher_bound(a, 1.0, samples=12, draws=n, generator=generator()) for n in (100, 10_000))
    repeated = [rademacher_bound(a, 1.0, samples=12, draws=100, generator=generator(k)) for k in range(200)]
    means = torch.tensor([bound.measured for bound in repeated], dtype=torch.float64)
    assert few.rounding / many.rounding == pytest.approx(10, rel=0.3)
    assert 1 < few.rounding * float(means.mean() / means.std()) < 6  # some standard errors


@pytest.mark.statement("E19")
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31))
def test_kappa_is_the_coarser_bound(samples: int, outputs: int, seed: int) -> None:
    a = normal(samples * outputs, 4, seed=seed)
    fine = rademacher_bound(a, 2.0, samples=samples, generator=generator(seed))
    coarse = kappa_bound(a, 2.0, samples=samples, generator=generator(seed))
    assert coarse.holds
    assert coarse.value >= fine.value * (1 - 1e-12)
    assert coarse.measured == fine.measured


@pytest.mark.statement("E14")
@pytest.mark.statement("E16")
def test_the_tangent_model_starts_at_f_of_theta_0_and_errs_by_the_square_of_the_step() -> None:
    x = normal(6, 5, seed=1)
    function, theta = adapter(x, 2)
    tangent, step = linearised(function, theta), normal(len(theta), seed=3)
    assert close(tangent(theta), function(theta))
    assert float(function(theta).norm()) > 0  # what equation 14 leaves out is not zero
    errors = [float((function(theta + h * step) - tangent(theta + h * step)).norm()) for h in (1e-2, 1e-3)]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)


def run(samples: int, radius: float) -> tuple[Tensor, float, float, float]:
    """Train the tangent model of an adapter inside a ball on the hinge loss; judge it by the ramp loss.

    Returns A of the sample, the losses on it and on fresh data, and κ: inputs are bounded, so it is known.
    """
    directions = normal(2000 + samples, 5, seed=1)
    x = directions / directions.norm(dim=1, keepdim=True)
    y = torch.sign(x[:, 0] + 0.3 * x[:, 1] * x[:, 2])
    function, theta = adapter(x, 1)
    a = jacobian(function, theta)
    kappa = float(a.norm(dim=1).max())
    fixed = function(theta)[:, 0]
    v = torch.zeros(a.shape[1], dtype=torch.float64)
    for _ in range(300):
        active = (y[:samples] * (fixed[:samples] + a[:samples] @ v) < 1).double()
        v = v + 0.5 / samples * a[:samples].T @ (active * y[:samples])
        v = v * min(1.0, radius / float(v.norm()))
    ramp = (1 - y * (fixed + a @ v)).clamp(0, 1)
    return a[:samples], float(ramp[:samples].mean()), float(ramp[samples:].mean()), kappa


@pytest.mark.statement("E20")
@pytest.mark.statement("E21")
@pytest.mark.statement("E15")
def test_a_training_run_keeps_both_bounds_and_they_are_not_vacuous() -> None:
    radius, samples = 0.5, 500
    a, train, test, kappa = run(samples, radius)
    empirical = generalisation_bound(a, radius, train_loss=train, test_loss=test, samples=samples)
    uniform = uniform_bound(kappa, radius, train_loss=train, test_loss=test, samples=samples)
    assert empirical.holds
    assert uniform.holds
    assert max(empirical.value, uniform.value) < 1
    spread = kappa_bound(a, radius, samples=samples, generator=generator()).value
    assert uniform.value - train - 2 * spread >= math.sqrt(math.log(20) / 1000) - 1e-9


@pytest.mark.statement("E20")
def test_several_outputs_pay_for_the_contraction() -> None:
    a = normal(8, 3, seed=0)
    parts = [
        generalisation_bound(
            a, 1.0, train_loss=0.0, test_loss=0.0, samples=samples, confidence=0.9, lipschitz=2.0
        ).value
        - 3 * math.sqrt(math.log(20) / (2 * samples))
        for samples in (8, 4)
    ]
    frobenius = float(a.norm())
    assert parts[0] == pytest.approx(4 * frobenius / 8)
    assert parts[1] == pytest.approx(4 * math.sqrt(2) * frobenius / 4)


@pytest.mark.statement("N7")
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_the_norm_of_interpolation_is_that_of_the_least_solution(rows: int, seed: int) -> None:
    a, y = normal(rows, rows + 2, seed=seed), normal(rows, seed=seed + 1)
    bound = interpolation_bound(a, y)
    least = torch.linalg.lstsq(a, y, driver="gelsd").solution
    assert close(torch.tensor(bound.measured, dtype=torch.float64), least.square().sum(), factor=1e3)
    assert bound.holds


@pytest.mark.statement("N7")
def test_targets_out_of_reach_have_no_norm() -> None:
    a = torch.eye(3, dtype=torch.float64)[:, :2]
    bound = interpolation_bound(a, torch.ones(3, dtype=torch.float64))
    assert bound.measured == bound.value == math.inf


def test_errors() -> None:
    a = torch.eye(3)
    with pytest.raises(ModeError, match="no whole rows for 2 samples"):
        rademacher_bound(a, 1.0, samples=2, generator=generator())
    with pytest.raises(SpecError, match="radius must be at least 0, not -1"):
        kappa_bound(a, -1.0, samples=3, generator=generator())
    with pytest.raises(SpecError, match="at least 2 draws are needed, not 1"):
        rademacher_bound(a, 1.0, samples=3, draws=1, generator=generator())
    with pytest.raises(SpecError, match="confidence must lie between 0 and 1, not 1"):
        generalisation_bound(a, 1.0, train_loss=0.0, test_loss=0.0, samples=3, confidence=1.0)
    with pytest.raises(SpecError, match="need κ, B >= 0 and n >= 1"):
        uniform_bound(1.0, 1.0, train_loss=0.0, test_loss=0.0, samples=0)
