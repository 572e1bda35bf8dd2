"""Rounding meets its rule, reports the error it made, and never raises a rank."""

import pytest
import tltorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.strategies import HALF, WIDE, random_train, regauged, trains
from tests.support.tolerance import close
from tntune.errors import NumericalError, RankError
from tntune.tt.algebra import add, relative_error, scale, subtract
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule, shrink_path, working_precision
from tntune.tt.rounding import Rounding, bond_spectra, round_tt
from tntune.tt.train import (
    Train,
    cores,
    dense,
    flatten,
    merged_modes,
    modes,
    num_parameters,
    ranks,
    to,
    tt_tensor,
)

DOUBLE = (torch.float64, torch.complex128)
TOLERANCES = st.sampled_from([0.7, 0.1, 1e-2, 1e-4, 1e-7, 1e-11, 0.0])


@st.composite
def decaying(draw: st.DrawFn, *, dtypes: tuple = DOUBLE) -> Train:
    """Sums of a train and much smaller ones of the same modes: spectra over up to twelve decades."""
    x = draw(trains(dtypes=dtypes))
    for k in range(draw(st.integers(0, 3))):
        small = random_train(modes(x), ranks(x), dtype=cores(x)[0].dtype, seed=k)
        x = add(x, scale(small, 10.0 ** -(4 * k + 4)))
    return x


def above_rounding(error: float | Tensor) -> Tensor:
    """An error plus a little, so that errors of rounding alone compare as equal."""
    return torch.tensor(float(error) + 1e4 * working_precision(torch.float64))


@given(decaying(), TOLERANCES)
def test_the_error_is_within_the_tolerance_and_is_the_one_reported(x: Train, tolerance: float) -> None:
    rounded = round_tt(x, RankRule(tolerance=tolerance))
    error = (dense(rounded.value) - dense(x)).norm() / dense(x).norm()
    assert float(error) <= tolerance + len(cores(x)) * working_precision(torch.float64)
    assert close(above_rounding(rounded.error), above_rounding(error))


@given(decaying(dtypes=(torch.float32,)), TOLERANCES)
def test_the_tolerance_holds_in_float32(x: Train, tolerance: float) -> None:
    rounded = round_tt(x, RankRule(tolerance=tolerance))
    wide = to(x, dtype=torch.float64)
    error = relative_error(to(rounded.value, dtype=torch.float64), wide)
    assert float(error) <= tolerance + len(cores(x)) * working_precision(torch.float32)


@given(trains(dtypes=(*WIDE, *HALF)), TOLERANCES)
def test_no_rank_rises_and_modes_and_dtype_stay(x: Train, tolerance: float) -> None:
    rounded = round_tt(x, RankRule(tolerance=tolerance))
    assert all(new <= old for new, old in zip(rounded.ranks, ranks(x), strict=True))
    assert modes(rounded.value) == modes(x)
    assert type(rounded.value) is type(x)
    assert {core.dtype for core in cores(rounded.value)} == {cores(x)[0].dtype}


@given(trains())
def test_redundant_ranks_vanish(x: Train) -> None:
    lean = round_tt(x)
    doubled = round_tt(add(x, x))
    assert doubled.ranks == lean.ranks
    assert close(dense(doubled.value), 2 * dense(x))
    assert close(dense(lean.value), dense(x))


@given(trains(dtypes=DOUBLE))
def test_rounding_twice_is_rounding_once(x: Train) -> None:
    once = round_tt(x, RankRule(tolerance=0.1)).value
    twice = round_tt(once)
    assert twice.ranks == ranks(once)
    assert close(dense(twice.value), dense(once))


@given(trains(dtypes=DOUBLE), TOLERANCES)
def test_the_gauge_does_not_matter(x: Train, tolerance: float) -> None:
    own, other = (round_tt(y, RankRule(tolerance=tolerance)) for y in (x, regauged(x, seed=2)))
    assert own.ranks == other.ranks
    assert close(dense(own.value), dense(other.value))


@given(trains(dtypes=DOUBLE), st.integers(1, 3))
def test_limited_ranks_are_within_the_tails(x: Train, rank: int) -> None:
    rounded = round_tt(x, RankRule(max_rank=rank))
    assert max(rounded.ranks) <= rank
    tails = [float((s[rank:] ** 2).sum()) for s in bond_spectra(x)]
    squared = float((dense(rounded.value) - dense(x)).norm() ** 2)
    slack = working_precision(torch.float64) * float(dense(x).norm() ** 2)
    assert max(tails, default=0) - slack <= squared <= sum(tails) + slack


@given(trains(dtypes=DOUBLE))
def test_the_errors_of_a_shrink_path_are_bounds(x: Train) -> None:
    sizes = merged_modes(x)
    for step in shrink_path(bond_spectra(x), sizes)[::3]:
        rounded = round_tt(x, RankRule(ranks=step.ranks))
        squared = float((dense(rounded.value) - dense(x)).norm() ** 2)
        assert squared <= step.squared_error + working_precision(torch.float64) * float(dense(x).norm() ** 2)
        assert num_parameters(rounded.value) <= step.params


@given(trains(dtypes=DOUBLE), st.integers(0, 100))
def test_the_budget_is_kept(x: Train, spare: int) -> None:
    budget = sum(merged_modes(x)) + spare
    rounded = round_tt(x, RankRule(max_params=budget))
    assert num_parameters(rounded.value) <= budget
    error = (dense(rounded.value) - dense(x)).norm() / dense(x).norm()
    assert close(above_rounding(rounded.error), above_rounding(error))
    lean = round_tt(x)
    assert num_parameters(lean.value) > budget or rounded.ranks == lean.ranks


def test_budget_and_tolerance_limit_together() -> None:
    x = random_train((4, 4, 4, 4), (1, 4, 8, 4, 1), dtype=torch.float64, seed=0)
    loose = round_tt(x, RankRule(tolerance=0.3))
    assert round_tt(x, RankRule(tolerance=0.3, max_params=10**5)).ranks == loose.ranks
    tight = round_tt(x, RankRule(tolerance=0.3, max_params=60, max_rank=3))
    assert num_parameters(tight.value) <= 60
    assert tight.error > 0.3


def test_a_budget_does_not_lift_other_limits() -> None:
    eye, one = torch.eye(4, dtype=torch.float64), torch.ones(1, 4, 1, dtype=torch.float64)
    flat = tt_tensor([one, eye.reshape(1, 4, 4), eye.reshape(4, 4, 1), one])
    noise = random_train((4, 4, 4, 4), (1, 2, 2, 2, 1), dtype=torch.float64, seed=0)
    x = add(flat, scale(noise, 1e-3))
    assert round_tt(x, RankRule(max_params=40)).ranks == (1, 1, 4, 1, 1)
    limited = RankRule(max_params=40, max_rank=2)
    assert max(round_tt(x, limited).ranks) == max(tt_svd(dense(x), limited).ranks) == 2


@pytest.mark.parametrize("dtype", [*WIDE, *HALF])
def test_a_zero_train_has_ranks_of_one(dtype: torch.dtype) -> None:
    x = tt_tensor([torch.zeros(1, 3, 2), torch.ones(2, 4, 2), torch.ones(2, 2, 1)])
    rounded = round_tt(to(x, dtype=dtype), RankRule(tolerance=0.1))
    assert rounded.ranks == (1, 1, 1, 1)
    assert rounded.error == 0.0
    assert not dense(rounded.value).any()


def test_a_difference_that_vanishes_is_rounded_to_rounding() -> None:
    x = random_train((3, 4, 3), (1, 2, 2, 1), dtype=torch.float64, seed=0)
    rounded = round_tt(subtract(x, x), RankRule(tolerance=1e-3))
    assert close(dense(rounded.value) + dense(x), dense(x))


def test_repeated_singular_values_are_cut_within_the_tolerance() -> None:
    eye = torch.eye(8, dtype=torch.float64)
    x = tt_tensor([eye.reshape(1, 8, 8), eye.reshape(8, 8, 1)])
    rounded = round_tt(x, RankRule(tolerance=0.5))
    assert rounded.ranks == (1, 6, 1)
    assert close(torch.tensor(rounded.error), torch.tensor(0.5))
    assert close(bond_spectra(rounded.value)[0], torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("scale_by", [1e-150, 1e150])
def test_the_scale_does_not_matter(scale_by: float) -> None:
    x = random_train((3, 4, 3), (1, 3, 3, 1), dtype=torch.float64, seed=0)
    plain, scaled = (round_tt(y, RankRule(tolerance=0.3)) for y in (x, scale(x, scale_by)))
    assert plain.ranks == scaled.ranks
    assert close(dense(scaled.value) / scale_by, dense(plain.value))


@given(decaying(), st.lists(TOLERANCES, min_size=1, max_size=3))
def test_one_rounding_serves_many_rules(x: Train, tolerances: list[float]) -> None:
    """What was asked before leaves no trace, and the spectra are those of the train itself."""
    rounding = Rounding(x)
    for tolerance in tolerances:
        rule = RankRule(tolerance=tolerance)
        own, alone = rounding(rule), round_tt(x, rule)
        assert own.error == alone.error
        assert all(map(torch.equal, cores(own.value), cores(alone.value)))
    assert rounding.sizes == merged_modes(x)
    spectra = bond_spectra(x)
    assert len(rounding.spectra()) == len(spectra)
    for found, wanted in zip(rounding.spectra(), spectra, strict=True):
        assert close(found, wanted)


def test_values_are_left_orthogonal_and_plain_memory() -> None:
    x = random_train(((3, 2), (2, 4), (3, 3)), (1, 4, 5, 1), dtype=torch.complex128, seed=0)
    *left, _ = cores(flatten(round_tt(x).value))
    for core in left:
        m = core.flatten(0, 1)
        assert close(m.mH @ m, torch.eye(m.shape[1], dtype=m.dtype))
        assert core.is_contiguous()
        assert not core.is_conj()


def test_modules_of_tensorly_torch_are_rounded() -> None:
    module = tltorch.BlockTT.new(((3, 4), (5, 2)), rank=(1, 3, 1)).normal_(0, 1)
    rounded = round_tt(module, RankRule(max_rank=2))
    assert rounded.ranks == (1, 2, 1)
    assert not any(core.requires_grad for core in cores(rounded.value))


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused(where: int, value: float) -> None:
    x = random_train((3, 4, 3), (1, 2, 2, 1), dtype=torch.float64, seed=0)
    cores(x)[where][0, 0, 0] = value
    with pytest.raises(NumericalError, match="not finite"):
        round_tt(x)


def test_a_single_core_is_checked_too() -> None:
    with pytest.raises(NumericalError, match="a core of the train has entries that are not finite"):
        round_tt(tt_tensor([torch.full((1, 3, 1), float("nan"))]))


def test_what_cannot_be_is_refused() -> None:
    x = random_train((3, 4), (1, 2, 1), dtype=torch.float64, seed=0)
    with pytest.raises(RankError, match=r"no ranks of 2 cores"):
        round_tt(x, RankRule(ranks=(2, 2)))
    with pytest.raises(RankError, match="the least is 7"):
        round_tt(x, RankRule(max_params=6))
