"""TT-SVD meets its rule, reports the error it made, and is as accurate in float32 as float32 allows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.oracles import damped_sines, parameters_of, spectra_of, tail_of
from tests.support.strategies import HALF, WIDE, random_train, tensors
from tests.support.tolerance import close
from tntune.errors import DtypeError, ModeError, NumericalError, RankError
from tntune.tt.decompose import tt_matrix_svd, tt_svd
from tntune.tt.rank_rule import RankRule, working_precision
from tntune.tt.train import Train, cores, dense, flatten, merged_modes, modes, num_parameters

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=6).map(tuple)


def decaying(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A full-rank tensor with unfolding spectra over about eight decades, repeated values among them."""
    rng = np.random.default_rng(seed)
    pieces = [10.0 ** -(k // 2) * _product(rng, shape) for k in range(16)]
    return torch.from_numpy(np.asarray(sum(pieces))).to(dtype)


def _product(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor of rank one and norm one."""
    piece = np.ones(())
    for n in shape:
        vector = rng.standard_normal(n)
        piece = np.multiply.outer(piece, vector / np.linalg.norm(vector))
    return piece


def actual_error(x: Train, tensor: Tensor) -> float:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return float((dense(x).to(wide) - tensor.to(wide)).norm() / (tensor.to(wide).norm() or 1.0))


def above_rounding(error: float | Tensor) -> Tensor:
    """An error plus a little, so that errors of rounding alone compare as equal."""
    return torch.tensor(float(error) + 1e4 * working_precision(torch.float64))


@given(tensors(dtypes=(*WIDE, torch.complex64)))
def test_without_a_rule_it_is_exact(x: Train) -> None:
    rounded = tt_svd(dense(x))
    assert close(dense(rounded.value), dense(x))
    assert modes(rounded.value) == modes(x)
    assert all(new <= old for new, old in zip(rounded.ranks, x.rank, strict=True))
    assert rounded.error <= len(cores(x)) * working_precision(cores(x)[0].dtype)


@given(SHAPES, st.integers(0, 2**31), st.sampled_from([0.7, 0.1, 1e-2, 1e-4, 1e-7, 1e-11, 0.0]))
def test_the_error_is_within_the_tolerance_and_is_the_one_reported(
    shape: tuple[int, ...], seed: int, tolerance: float
) -> None:
    tensor = decaying(shape, seed)
    rounded = tt_svd(tensor, RankRule(tolerance=tolerance))
    error = actual_error(rounded.value, tensor)
    assert error <= tolerance + len(shape) * working_precision(tensor.dtype)
    assert close(above_rounding(rounded.error), above_rounding(error))


@given(SHAPES, st.integers(0, 2**31), st.sampled_from([0.1, 1e-3, 1e-5, 1e-12]))
def test_the_tolerance_holds_in_float32(shape: tuple[int, ...], seed: int, tolerance: float) -> None:
    tensor = decaying(shape, seed, torch.float32)
    error = actual_error(tt_svd(tensor, RankRule(tolerance=tolerance)).value, tensor)
    assert error <= tolerance + len(shape) * working_precision(tensor.dtype)


@given(SHAPES, st.integers(0, 2**31), st.integers(1, 4))
def test_limited_ranks_are_within_a_factor_of_the_best(shape: tuple[int, ...], seed: int, rank: int) -> None:
    tensor = decaying(shape, seed)
    rounded = tt_svd(tensor, RankRule(max_rank=rank))
    tails = [tail_of(s, rank) for s in spectra_of(tensor.numpy())]
    squared = (actual_error(rounded.value, tensor) * float(tensor.norm())) ** 2
    slack = working_precision(tensor.dtype) * float(tensor.norm()) ** 2
    assert max(tails, default=0) - slack <= squared <= sum(tails) + slack
    assert max(rounded.ranks) <= rank


@given(SHAPES, st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_the_energy_asked_for_is_kept(shape: tuple[int, ...], seed: int, energy: float) -> None:
    tensor = decaying(shape, seed)
    kept = dense(tt_svd(tensor, RankRule(energy=energy)).value).norm() ** 2 / tensor.norm() ** 2
    assert float(kept) >= energy - len(shape) * working_precision(tensor.dtype)


@given(SHAPES, st.integers(0, 2**31), st.integers(0, 200))
def test_the_budget_is_kept(shape: tuple[int, ...], seed: int, spare: int) -> None:
    tensor = decaying(shape, seed)
    rule = RankRule(max_params=sum(shape) + spare)
    rounded = tt_svd(tensor, rule)
    assert num_parameters(rounded.value) <= sum(shape) + spare
    assert close(above_rounding(rounded.error), above_rounding(actual_error(rounded.value, tensor)))


def test_a_tolerance_within_the_budget_is_met() -> None:
    tensor = decaying((4, 4, 4, 4), 0)
    loose = tt_svd(tensor, RankRule(tolerance=0.1))
    assert tt_svd(tensor, RankRule(tolerance=0.1, max_params=10**4)).ranks == loose.ranks


def test_a_budget_spends_where_the_spectrum_is_flat() -> None:
    left, right = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), torch.eye(16, 4)
    tensor = (left @ right).reshape(2, 2, 1, 2, 2) + torch.zeros(2, 2, 1, 2, 2)
    full = tt_svd(tensor.double())
    same = tt_svd(tensor.double(), RankRule(max_params=num_parameters(full.value)))
    assert same.ranks == full.ranks


def test_explicit_ranks_are_those_kept() -> None:
    tensor = torch.randn(3, 4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert tt_svd(tensor, RankRule(ranks=(2, 5, 3))).ranks == (1, 2, 5, 3, 1)
    assert tt_svd(tensor, RankRule(ranks=(1, 2, 5, 3, 1))).ranks == (1, 2, 5, 3, 1)
    assert tt_svd(tensor, RankRule(ranks=(9, 2, 2))).ranks == (1, 3, 2, 2, 1)


@given(tensors(max_order=4), st.integers(0, 3))
def test_all_but_the_last_core_are_left_orthogonal(x: Train, cut: int) -> None:
    for core in cores(tt_svd(dense(x), RankRule(tolerance=10.0**-cut / 2)).value)[:-1]:
        left = core.flatten(0, 1)
        assert close(left.mH @ left, torch.eye(left.shape[1], dtype=left.dtype))
        assert core.is_contiguous()


@pytest.mark.parametrize("dtype", [*WIDE, *HALF])
def test_a_zero_tensor_has_ranks_of_one(dtype: torch.dtype) -> None:
    rounded = tt_svd(torch.zeros(4, 70, 3, 5, dtype=dtype), RankRule(tolerance=0.1))
    assert rounded.ranks == (1, 1, 1, 1, 1)
    assert rounded.error == 0.0
    assert torch.equal(dense(rounded.value), torch.zeros(4, 70, 3, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    tensor = dense(random_train((4, 5, 6), (1, 2, 3, 1), dtype=torch.float32, seed=0)).to(dtype)
    rounded = tt_svd(tensor, RankRule(max_rank=3))
    assert {core.dtype for core in cores(rounded.value)} == {dtype}
    assert rounded.error == tt_svd(tensor.float(), RankRule(max_rank=3)).error
    assert close(dense(rounded.value), tensor)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.float64, 1e200)]
)
def test_the_scale_does_not_matter(dtype: torch.dtype, scale: float) -> None:
    tensor = decaying((4, 5, 4, 6), 0).to(dtype)
    plain, scaled = (tt_svd(tensor * by, RankRule(tolerance=1e-3)) for by in (1.0, scale))
    assert plain.ranks == scaled.ranks
    assert close(dense(scaled.value) / scale, dense(plain.value))


@pytest.mark.parametrize(
    "shape", [(300, 7), (7, 300), (300, 2, 300), (5000, 3, 2), (2, 3, 5000), (65, 1, 65)]
)
def test_long_modes_at_either_end(shape: tuple[int, ...]) -> None:
    tensor = decaying(shape, 0)
    rounded = tt_svd(tensor, RankRule(tolerance=1e-5))
    assert actual_error(rounded.value, tensor) <= 1e-5
    assert close(dense(tt_svd(tensor).value), tensor)


@pytest.mark.parametrize("order", [10, pytest.param(12, marks=pytest.mark.slow)], ids=["2^20", "2^24"])
def test_long_float32_unfoldings_keep_float32_accuracy(order: int) -> None:
    exact = torch.from_numpy(damped_sines(4**order, 0.0)).reshape([4] * order)
    tensor = exact.float()
    assert close(dense(tt_svd(tensor, RankRule(tolerance=1e-6)).value), tensor, factor=0.1)
    noisy = torch.from_numpy(damped_sines(4**order, 1e-4)).reshape([4] * order).float()
    rounded = tt_svd(noisy, RankRule(tolerance=1e-3))
    assert actual_error(rounded.value, noisy) <= 1e-3
    assert rounded.ranks == tt_svd(noisy.double(), RankRule(tolerance=1e-3)).ranks


def test_the_ranks_of_a_sum_of_sines_are_found() -> None:
    tensor = torch.from_numpy(damped_sines(4**6, 0.0)).reshape([4] * 6)
    assert max(tt_svd(tensor, RankRule(tolerance=1e-9)).ranks) == 10
    assert tt_svd(torch.sin(torch.arange(4.0**6, dtype=torch.float64)).reshape([4] * 6)).ranks == (
        1,
        2,
        2,
        2,
        2,
        2,
        1,
    )


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7])
def test_a_constant_has_rank_one(value: float, dtype: torch.dtype) -> None:
    assert tt_svd(torch.full((4,) * 9, value, dtype=dtype)).ranks == (1,) * 10


def test_a_complex_wave_has_rank_one() -> None:
    phase = torch.linspace(0, 20, 4**8 + 1, dtype=torch.float64)[:-1]
    wave = torch.exp(1j * phase).reshape([4] * 8)
    rounded = tt_svd(wave)
    assert rounded.ranks == (1,) * 9
    assert close(dense(rounded.value), wave)


@given(st.data(), st.integers(0, 2**31))
def test_a_matrix_is_decomposed_in_pairs_of_modes(data: st.DataObject, seed: int) -> None:
    rows = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    columns = data.draw(st.lists(st.integers(1, 4), min_size=len(rows), max_size=len(rows)))
    matrix = decaying((int(np.prod(rows)), int(np.prod(columns))), seed)
    exact = tt_matrix_svd(matrix, rows, columns)
    assert modes(exact.value) == tuple(zip(rows, columns, strict=True))
    assert close(dense(exact.value), matrix)
    rounded = tt_matrix_svd(matrix, rows, columns, RankRule(tolerance=0.03))
    assert actual_error(rounded.value, matrix) <= 0.03 + working_precision(matrix.dtype)


def test_a_kronecker_product_has_rank_one() -> None:
    a, b = decaying((2, 5), 0), decaying((4, 3), 1)
    rounded = tt_matrix_svd(torch.kron(a, b), (2, 4), (5, 3))
    assert rounded.ranks == (1, 1, 1)
    assert merged_modes(rounded.value) == modes(flatten(rounded.value)) == (10, 12)


def test_no_gradient_is_recorded() -> None:
    tensor = torch.ones(3, 4, requires_grad=True)
    assert not any(core.requires_grad for core in cores(tt_svd(tensor).value))


def test_a_vector_is_one_core() -> None:
    rounded = tt_svd(torch.arange(5.0), RankRule(tolerance=0.1, max_params=5))
    assert close(dense(rounded.value), torch.arange(5.0))
    assert parameters_of((), (5,)) == num_parameters(rounded.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 200)])
def test_entries_that_are_not_finite_are_refused(value: float, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape)
    tensor[..., -1] = value
    with pytest.raises(NumericalError, match="has entries that are not finite"):
        tt_svd(tensor)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ModeError, match=r"a tensor of shape \(\) has no train"):
        tt_svd(torch.ones(()))
    with pytest.raises(ModeError, match=r"a tensor of shape \(2, 0\) has no train"):
        tt_svd(torch.ones(2, 0))
    with pytest.raises(DtypeError, match=r"torch.int64 is not supported"):
        tt_svd(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(RankError, match=r"\(2, 2\) are no ranks of 2 cores"):
        tt_svd(torch.ones(2, 2), RankRule(ranks=(2, 2)))
    with pytest.raises(RankError, match="the least is 4"):
        tt_svd(torch.ones(2, 2), RankRule(max_params=3))
    with pytest.raises(ModeError, match=r"a \(4, 6\) matrix does not split into \(2, 2\) x \(6,\)"):
        tt_matrix_svd(torch.ones(4, 6), (2, 2), (6,))
    with pytest.raises(ModeError, match=r"does not split into \(2, 2\) x \(3, 3\)"):
        tt_matrix_svd(torch.ones(4, 6), (2, 2), (3, 3))
