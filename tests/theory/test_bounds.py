"""T3, T5, T6 and the approximation bounds E5, E8, E9: each holds on draws, and is tight where it can be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.strategies import regauged
from tests.support.tolerance import close
from tests.theory.trains import Case, cases, plain
from tntune.errors import ModeError, RankError
from tntune.maps.activation import ACTIVATIONS
from tntune.maps.base import Factors
from tntune.maps.lora import LoRA
from tntune.theory.approximation import LIPSCHITZ, function_error, risk_gap, truncation_error
from tntune.theory.bounds import conditioning, kernel_interval, kernel_rank, kernel_rank_bound
from tntune.theory.gauge import gauge_fixed_spectrum
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.orthogonal import orthogonalize
from tntune.tt.train import cores, tt_tensor


@pytest.mark.statement("T3")
@given(case=cases(latents=("none", "product"), minimal=True), seed=st.integers(0, 2**31))
def test_conditioning_holds_in_every_gauge(case: Case, seed: int) -> None:
    bounds = conditioning(TrainJacobian(case.wide, case.weights))
    assert all(bound.holds for bound in bounds)
    assert bounds[0].value > 0
    if case.latent is None:
        other = cores(regauged(tt_tensor(case.cores), seed))
        assert all(bound.holds for bound in conditioning(TrainJacobian.plain(other)))


@pytest.mark.statement("T3")
@given(case=cases(latents=("generic", "low")))
def test_conditioning_says_nothing_below_for_entangled_latents(case: Case) -> None:
    bounds = conditioning(TrainJacobian(case.wide, case.weights))
    assert all(bound.holds for bound in bounds)
    if any(weight.shape[0] > 1 for weight in case.weights[1:]):
        assert bounds[0].value == 0.0


@pytest.mark.statement("T3")
def test_conditioning_of_canonical_cores_is_delta() -> None:
    x = tt_tensor(plain((4, 5, 3, 4), 3))
    bounds = conditioning(TrainJacobian.plain(cores(orthogonalize(x))))
    assert close(torch.tensor(bounds[0].value), torch.tensor(gauge_fixed_spectrum(x).delta))


@pytest.mark.statement("T5")
@given(case=cases(minimal=True), samples=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_kernel_lies_between_projected_gradients(case: Case, samples: int, seed: int) -> None:
    J = case.jacobian()
    G = torch.randn(samples, len(J), dtype=J.dtype, generator=torch.Generator().manual_seed(seed))
    lower, upper = kernel_interval(G, J)
    assert lower.holds
    assert upper.holds
    assert 0 < lower.value <= upper.value * (1 + 1e-9)


@pytest.mark.statement("T5")
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_interval_scales_with_the_jacobian(scale: float) -> None:
    """Its rank, and so the number of its eigenvalues, are those of J at any size."""
    generator = torch.Generator().manual_seed(0)
    G, J = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (6, 5)))
    J[:, 3:] = J[:, :2] * torch.tensor([1.0, 1 + 1e-13])  # no directions of their own
    plain, scaled = kernel_interval(G, J), kernel_interval(G, scale * J)
    for one, other in zip(plain, scaled, strict=True):
        assert other.holds
        assert other.rounding < 1e-5  # or it would hold whatever was measured
        assert other.value == pytest.approx(scale**2 * one.value, rel=1e-6)
        assert other.measured == pytest.approx(scale**2 * one.measured, rel=1e-6)


@pytest.mark.statement("T5")
def test_without_the_projection_the_lower_bound_is_false() -> None:
    J = torch.eye(6, 2, dtype=torch.float64)
    G = torch.tensor([[0.1, 0, 5, 0, 0, 0], [0, 0.1, 0, 5, 0, 0]], dtype=torch.float64)
    smallest = float(torch.linalg.svdvals(G @ J)[-1]) ** 2
    assert smallest < 1e-3 * float(torch.linalg.svdvals(G)[-1]) ** 2  # times λ_min⁺(J Jᵀ) = 1
    assert all(bound.holds for bound in kernel_interval(G, J))


def kernel_factor(samples: int, outputs: int, rank: int, seed: int = 0) -> Tensor:
    """Derivative of ``up σ(x)`` with ``up = L R`` of that rank by the entries of L, R and x."""
    generator = torch.Generator().manual_seed(seed)
    L, R, D, x = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((outputs, rank), (rank, 12), (12, 9), (samples, 9))
    )
    columns = torch.func.jacrev(
        lambda L, R, D: (torch.tanh(x @ D.mT) @ R.mT @ L.mT).flatten(), argnums=(0, 1, 2)
    )(L, R, D)
    return torch.cat([column.flatten(1) for column in columns], dim=1)


@pytest.mark.statement("T6")
@pytest.mark.parametrize(("samples", "outputs", "rank"), [(6, 5, 2), (3, 6, 2), (2, 4, 3), (5, 3, 3)])
def test_kernel_rank_is_bounded_and_attained(samples: int, outputs: int, rank: int) -> None:
    bound = kernel_rank(kernel_factor(samples, outputs, rank), samples=samples, up_rank=rank)
    assert bound.holds
    assert bound.measured == bound.value == min(samples * outputs, kernel_rank_bound(samples, outputs, rank))


@pytest.mark.statement("T6")
def test_effective_dimension_caps_the_rank() -> None:
    A = kernel_factor(4, 3, 2)[:, :5]
    assert kernel_rank(A, samples=4, up_rank=3, effective_dimension=5).value == 5
    assert kernel_rank(A, samples=4, up_rank=3).value == 5
    assert not kernel_rank(A, samples=4, up_rank=3, effective_dimension=4).holds


@pytest.mark.statement("E8")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_upper_bounds_and_nearly_attained(name: str) -> None:
    x = torch.linspace(-6, 6, 200001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVATIONS[name].function(x).sum(), x)
    assert 0.99 * LIPSCHITZ[name] < float(slope.abs().max()) <= LIPSCHITZ[name]


@pytest.mark.statement("E8")
@given(name=st.sampled_from(sorted(ACTIVATIONS)), seed=st.integers(0, 2**31), near=st.booleans())
def test_function_error_is_bounded_by_that_of_the_factors(name: str, seed: int, near: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = LoRA(6, 4, 3, "random").factors(*LoRA(6, 4, 3, "random").init(generator))
    other = LoRA(6, 4, 3, "random").factors(*LoRA(6, 4, 3, "random").init(generator))
    target = Factors(one.down + 1e-3 * other.down, one.up + 1e-3 * other.up) if near else other
    x = torch.randn(7, 6, generator=generator)
    assert function_error(one, target, x, activation=name).holds


@pytest.mark.statement("E9")
@given(
    modes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 4),
)
def test_truncation_is_bounded_by_the_tails(modes: list[int], seed: int, rank: int) -> None:
    tensor = torch.randn(modes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    bound = truncation_error(tensor, (rank,) * (len(modes) - 1))
    assert bound.holds
    if len(modes) == 2:
        assert close(torch.tensor(1 + bound.value), torch.tensor(1 + bound.measured))


@pytest.mark.statement("E5")
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 10))
def test_risks_differ_by_less_than_the_logits(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 9, 4, generator=generator) * spread
    labels = torch.randint(4, (9,), generator=generator)
    assert risk_gap(one, other, labels).holds
    assert risk_gap(other, one, labels).measured == -risk_gap(one, other, labels).measured


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModeError, match="G has 3 columns, but J has 2 rows"):
        kernel_interval(torch.eye(3), torch.eye(2))
    with pytest.raises(ModeError, match="4 rows, which are not 3 samples"):
        kernel_rank(torch.eye(4), samples=3, up_rank=1)
    with pytest.raises(RankError, match="at least 1"):
        kernel_rank_bound(0, 1, 1)
    one = Factors(torch.ones(1, 2, 3), torch.ones(1, 3, 2))
    with pytest.raises(ModeError, match="equal shapes"):
        function_error(one, Factors(torch.ones(1, 2, 4), torch.ones(1, 3, 2)), torch.ones(1, 3))
