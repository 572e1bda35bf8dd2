"""Laws of SpectrumReport: two constructors, known spectra, and no number that precision cannot carry."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.tolerance import close
from tntune.errors import ModeError, NumericalError, RankError, SpecError
from tntune.theory.bound import Bound
from tntune.theory.spectrum import SpectrumReport


def factor_of(values: list[float], columns: int, seed: int = 0, extra: int = 0) -> Tensor:
    """A (len(values) + extra, columns) of these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(values) + extra
    u, _ = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64, generator=generator))
    return u * torch.tensor(values, dtype=torch.float64) @ v.mT


@given(rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_both_routes_agree(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    y = torch.randn(rows, dtype=torch.float64, generator=generator)
    one = SpectrumReport.from_factor(A, targets=y)
    other = SpectrumReport.from_gram(A @ A.mT, columns=columns, targets=y)
    assert one.rank == min(rows, columns)
    kept = [value for value in one.eigenvalues if value > 1e-6 * one.lambda_max]
    assert close(torch.tensor(other.eigenvalues[: len(kept)]), torch.tensor(kept), factor=10)
    assert close(torch.tensor(other.trace), torch.tensor(one.trace))
    reached = A @ torch.linalg.pinv(A) @ y
    assert close(torch.tensor(1 - one.residual_fraction), reached.norm().square() / y.norm().square())
    assert (one.lambda_min == 0.0) == (columns < rows)
    assert (one.cond == math.inf) == (columns < rows)


def test_squared_norm_is_that_of_the_least_solution() -> None:
    A = factor_of([3.0, 2.0, 0.5], 5, extra=2)
    y = torch.arange(5.0, dtype=torch.float64)
    least = torch.linalg.pinv(A) @ y
    report = SpectrumReport.from_factor(A, targets=y)
    assert close(torch.tensor(report.norm_squared, dtype=torch.float64), least.square().sum())


def test_effective_ranks_of_a_projector_are_its_rank() -> None:
    report = SpectrumReport.from_factor(factor_of([2.0] * 4, 9, extra=3))
    for value in (report.stable_rank, report.participation_rank, report.entropy_rank):
        assert close(torch.tensor(value), torch.tensor(4.0))


def test_effective_ranks_of_an_uneven_spectrum() -> None:
    report = SpectrumReport.from_factor(torch.diag(torch.tensor([4.0, 2.0, 2.0], dtype=torch.float64).sqrt()))
    found = torch.tensor([report.stable_rank, report.participation_rank, report.entropy_rank])
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert close(found, torch.tensor([2.0, 64 / 24, math.exp(entropy)]))


def test_factor_resolves_what_the_gram_cannot() -> None:
    A = factor_of([1.0, 1e-3, 1e-7, 1e-11], 6)
    precise, coarse = SpectrumReport.from_factor(A), SpectrumReport.from_gram(A @ A.mT)
    assert precise.lambda_min_resolved
    assert close(torch.tensor(precise.lambda_min).sqrt(), torch.tensor(1e-11))
    assert coarse.lambda_min is None
    assert coarse.cond is None
    assert 0 < coarse.lambda_min_upper < 1e-13
    assert coarse.rank == 3
    assert min(coarse.eigenvalues) > coarse.zero_threshold


def test_threshold_is_that_of_the_dtype_given() -> None:
    A = factor_of([1.0, 1e-3], 4)
    single = SpectrumReport.from_gram((A @ A.mT).float())
    assert single.dtype == "float32"
    assert single.zero_threshold == 4 / 2 * torch.finfo(torch.float32).eps * single.lambda_max
    assert single.lambda_min is None or single.lambda_min > 0


def test_structure_makes_lambda_min_zero() -> None:
    A = factor_of([3.0, 2.0], 8, extra=3)
    noisy = A + 1e-13 * torch.randn(A.shape, dtype=A.dtype, generator=torch.Generator().manual_seed(1))
    report = SpectrumReport.from_factor(noisy, rank_bound=2)
    assert report.lambda_min == report.lambda_min_upper == 0.0
    assert report.rank == 2
    assert report.cond == math.inf
    assert close(torch.tensor(report.cond_plus), torch.tensor(2.25))


def test_zero_has_rank_zero() -> None:
    report = SpectrumReport.from_gram(torch.zeros(3, 3), targets=torch.ones(3))
    assert (report.rank, report.lambda_max, report.lambda_min, report.lambda_min_plus) == (0, 0.0, 0.0, None)
    assert (report.stable_rank, report.participation_rank, report.entropy_rank) == (0.0, 0.0, 0.0)
    assert (report.residual_fraction, report.norm_squared, report.cond_plus) == (1.0, 0.0, None)


def test_json_has_fields_and_properties() -> None:
    read = json.loads(SpectrumReport.from_factor(factor_of([2.0], 1, extra=1)).to_json())
    assert read["cond"] == "inf"
    assert read["rank"] == 1
    assert read["method"] == "factor"
    assert read["norm_squared"] is None


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.ones(2, 3), ModeError, "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), NumericalError, "not symmetric"),
        (torch.diag(torch.tensor([1.0, -0.5])), NumericalError, "eigenvalue -5"),
        (torch.full((2, 2), math.nan), NumericalError, "not finite"),
    ],
)
def test_what_is_no_gram_is_refused(matrix: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SpectrumReport.from_gram(matrix)


def test_wrong_bounds_and_targets_are_refused() -> None:
    with pytest.raises(RankError, match="rank bound of 1 was given"):
        SpectrumReport.from_factor(torch.eye(3), rank_bound=1)
    with pytest.raises(RankError, match="at least 0"):
        SpectrumReport.from_factor(torch.eye(3), rank_bound=-1)
    with pytest.raises(ModeError, match="targets have 2 entries"):
        SpectrumReport.from_factor(torch.eye(3), targets=torch.ones(2))
    with pytest.raises(ModeError, match="a factor is a matrix"):
        SpectrumReport.from_factor(torch.ones(3))


@pytest.mark.parametrize(
    ("sense", "value", "measured", "holds", "slack"),
    [
        ("upper", 4.0, 2.0, True, 2.0),
        ("upper", 2.0, 4.0, False, 0.5),
        ("lower", 2.0, 4.0, True, 2.0),
        ("lower", 0.0, 4.0, True, math.inf),
        ("upper", math.inf, 4.0, True, math.inf),
        ("upper", math.nan, 4.0, False, math.nan),
        ("equal", 2.0, 2.0 * (1 + 1e-12), True, 1.0),
        ("equal", 2.0, 2.1, False, 2.0 / 2.1),
        ("upper", 1.0, 1.0 + 1e-12, True, 1.0),
    ],
)
def test_bound_holds_up_to_rounding(
    sense: str, value: float, measured: float, holds: bool, slack: float
) -> None:
    bound = Bound("T3", "a <= b", value, measured, ("none",), sense)
    assert bound.holds is holds
    assert bound.slack == pytest.approx(slack, nan_ok=True)
    assert json.loads(bound.to_json())["holds"] is holds


def test_bound_needs_assumptions_and_a_sense() -> None:
    with pytest.raises(SpecError, match="needs a tuple of assumptions"):
        Bound("T3", "a <= b", 1.0, 1.0, ())
    with pytest.raises(SpecError, match="needs a tuple of assumptions"):
        Bound("T3", "a <= b", 1.0, 1.0, "minimal")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="upper, lower, equal"):
        Bound("T3", "a <= b", 1.0, 1.0, ("none",), "above")
