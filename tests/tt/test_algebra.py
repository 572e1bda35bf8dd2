"""dense() is a homomorphism: each verb does to trains what its namesake does to tensors."""

from collections.abc import Callable

import pytest
import tltorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.strategies import HALF, WIDE, matrices, of_modes, random_train, regauged, trains, twins
from tests.support.tolerance import close
from tntune.errors import DtypeError, ModeError
from tntune.tt.algebra import (
    add,
    hadamard,
    inner,
    matmul,
    matvec,
    norm,
    relative_error,
    scale,
    subtract,
    transpose,
)
from tntune.tt.train import Train, cores, dense, modes, ranks, to, tt_matrix, tt_tensor

ALL = (*WIDE, *HALF)
PAIRWISE = {
    "add": (add, torch.add),
    "subtract": (subtract, torch.sub),
    "hadamard": (hadamard, torch.mul),
}


@pytest.mark.parametrize("verb", PAIRWISE)
@given(pair=twins(dtypes=WIDE))
def test_entrywise_verbs(verb: str, pair: tuple[Train, Train]) -> None:
    ours, theirs = PAIRWISE[verb]
    x, y = pair
    result = ours(x, y)
    assert close(dense(result), theirs(dense(x), dense(y)))
    assert type(result) is type(x)
    assert modes(result) == modes(x)


@given(twins(dtypes=HALF))
def test_half_precision_keeps_its_dtype(pair: tuple[Train, Train]) -> None:
    x, y = pair
    dtype = cores(x)[0].dtype
    for result in (add(x, y), hadamard(x, y), scale(x, 0.5)):
        assert {core.dtype for core in cores(result)} == {dtype}
    assert inner(x, y).dtype == norm(x).dtype == dtype
    wide = [to(z, dtype=torch.float32) for z in (x, y)]
    assert torch.equal(inner(x, y), inner(*wide).to(dtype))
    assert torch.equal(norm(x), norm(wide[0]).to(dtype))


@given(twins())
def test_ranks_add_under_sums_and_multiply_under_products(pair: tuple[Train, Train]) -> None:
    x, y = pair
    inside = list(zip(ranks(x)[1:-1], ranks(y)[1:-1], strict=True))
    assert ranks(add(x, y)) == (1, *(r + s for r, s in inside), 1)
    assert ranks(hadamard(x, y)) == (1, *(r * s for r, s in inside), 1)


@given(twins(dtypes=WIDE))
def test_the_inner_product_conjugates_the_first(pair: tuple[Train, Train]) -> None:
    x, y = pair
    scale_of = dense(x).norm() * dense(y).norm()
    assert close(inner(x, y) / scale_of, (dense(x).conj() * dense(y)).sum() / scale_of)
    assert close(inner(x, y) / scale_of, inner(y, x).conj() / scale_of)


@given(trains(dtypes=WIDE))
def test_the_norm_is_real_and_that_of_the_tensor(x: Train) -> None:
    assert close(norm(x), dense(x).norm())
    assert not norm(x).is_complex()
    assert close(norm(x) ** 2, inner(x, x).real)


@given(trains(dtypes=(torch.float64, torch.complex128)))
def test_the_gauge_does_not_matter(x: Train) -> None:
    assert close(norm(regauged(x, seed=5)), norm(x))
    assert close(inner(regauged(x, seed=5), x), inner(x, x))


def test_the_norm_of_a_small_difference_keeps_its_digits() -> None:
    x, y = (random_train((4, 5, 4), (1, 3, 3, 1), dtype=torch.float64, seed=seed) for seed in (0, 1))
    step = scale(y, 1e-9 / norm(y))
    difference = subtract(add(regauged(x, seed=0), step), x)
    assert close(norm(difference).float(), torch.tensor(1e-9))
    by_squaring = float(inner(difference, difference).abs().sqrt())
    assert not 0.5e-9 < by_squaring < 2e-9


@given(twins(dtypes=(torch.float64,)))
def test_the_relative_error_is_that_of_the_tensors(pair: tuple[Train, Train]) -> None:
    x, y = pair
    assert close(relative_error(x, y), (dense(x) - dense(y)).norm() / dense(y).norm())


def test_the_relative_error_against_zero() -> None:
    zero, one = tt_tensor([torch.zeros(1, 3, 1)]), tt_tensor([torch.ones(1, 3, 1)])
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == float("inf")
    assert relative_error(one, one) == 0


@given(trains(dtypes=ALL), st.sampled_from([-2.0, 0.0, 0.5, torch.tensor(3.0)]))
def test_scaling(x: Train, factor: float | Tensor) -> None:
    assert close(dense(scale(x, factor)), dense(x) * factor)


def test_a_complex_factor_needs_a_complex_train() -> None:
    x = random_train((2, 3), (1, 2, 1), dtype=torch.float64, seed=0)
    assert close(dense(scale(to(x, dtype=torch.complex128), 2j)), 2j * dense(x))
    with pytest.raises(DtypeError, match=r"a factor of 2j turns torch.float64 into torch.complex128"):
        scale(x, 2j)


@given(matrices(), st.data())
def test_matrix_times_vector(matrix: Train, data: st.DataObject) -> None:
    inside = tuple(mode[1] for mode in modes(matrix))
    x = data.draw(of_modes(inside, dtypes=(cores(matrix)[0].dtype,)))
    product = matvec(matrix, x)
    assert close(dense(product).flatten(), dense(matrix) @ dense(x).flatten())
    assert modes(product) == tuple(mode[0] for mode in modes(matrix))


@given(matrices(), st.data())
def test_matrix_times_matrix(left: Train, data: st.DataObject) -> None:
    pairs = tuple((mode[1], data.draw(st.integers(1, 3))) for mode in modes(left))
    right = data.draw(of_modes(pairs, max_rank=3, dtypes=(cores(left)[0].dtype,)))
    assert close(dense(matmul(left, right)), dense(left) @ dense(right))


@given(matrices(dtypes=ALL))
def test_transposing(matrix: Train) -> None:
    assert close(dense(transpose(matrix)), dense(matrix).mT)


@given(matrices(dtypes=(torch.complex128,)), st.data())
def test_the_adjoint_moves_across_the_inner_product(matrix: Train, data: st.DataObject) -> None:
    x = data.draw(of_modes(tuple(mode[1] for mode in modes(matrix)), dtypes=(torch.complex128,)))
    y = data.draw(of_modes(tuple(mode[0] for mode in modes(matrix)), dtypes=(torch.complex128,)))
    adjoint = tt_matrix([core.conj() for core in cores(transpose(matrix))])
    assert close(inner(y, matvec(matrix, x)), inner(matvec(adjoint, y), x))


GRADIENTS: dict[str, Callable[[Train, Train], Tensor]] = {
    "inner": inner,
    "norm": lambda x, _: norm(x),
    "add": lambda x, y: dense(add(x, y)),
    "hadamard": lambda x, y: dense(hadamard(x, y)),
    "scale": lambda x, y: dense(scale(x, cores(y)[0].sum())),
    "matvec": lambda x, y: dense(matvec(_as_matrix(x), y)),
    "matmul": lambda x, y: dense(matmul(_as_matrix(x), transpose(_as_matrix(y)))),
}


def _as_matrix(x: Train) -> Train:
    """The train as a matrix of one row."""
    return tt_matrix([core.unsqueeze(1) for core in cores(x)])


@pytest.mark.parametrize("verb", GRADIENTS)
def test_every_verb_is_differentiable(verb: str) -> None:
    x, y = (random_train((3, 2, 3), (1, 2, 2, 1), dtype=torch.float64, seed=seed) for seed in (0, 1))
    parameters = [core.requires_grad_() for core in (*cores(x), *cores(y))]

    def value(*own: Tensor) -> Tensor:
        return GRADIENTS[verb](tt_tensor(own[:3]), tt_tensor(own[3:]))

    assert torch.autograd.gradcheck(value, parameters)


def test_modules_of_tensorly_torch_are_operands() -> None:
    module = tltorch.TTTensor.new((3, 4), rank=(1, 2, 1)).normal_(0, 1)
    x = random_train((3, 4), (1, 2, 1), dtype=torch.float32, seed=0)
    assert close(dense(add(module, x)), module.to_tensor() + dense(x))
    inner(module, x).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("verb", [add, subtract, hadamard, inner])
def test_unlike_trains_are_refused(verb: Callable[[Train, Train], object]) -> None:
    x = random_train((3, 4), (1, 2, 1), dtype=torch.float64, seed=0)
    with pytest.raises(ModeError, match="the modes of core 1 are 4 and 5; they must be equal"):
        verb(x, random_train((3, 5), (1, 2, 1), dtype=torch.float64, seed=0))
    with pytest.raises(ModeError, match="the trains have 2 and 1 cores"):
        verb(x, random_train((3,), (1, 1), dtype=torch.float64, seed=0))
    with pytest.raises(ModeError, match=r"the modes of core 0 are 3 and \(3, 1\)"):
        verb(x, random_train(((3, 1), (4, 1)), (1, 2, 1), dtype=torch.float64, seed=0))
    with pytest.raises(DtypeError, match=r"the trains are torch.float64 on cpu and torch.float32 on cpu"):
        verb(x, to(x, dtype=torch.float32))


def test_products_that_do_not_fit_are_refused() -> None:
    matrix = random_train(((3, 2), (4, 5)), (1, 2, 1), dtype=torch.float64, seed=0)
    vector = random_train((2, 4), (1, 2, 1), dtype=torch.float64, seed=0)
    with pytest.raises(ModeError, match="the modes of core 1 are 5 and 4"):
        matvec(matrix, vector)
    with pytest.raises(ModeError, match="the modes of core 0 are 2 and 3"):
        matmul(matrix, matrix)
    with pytest.raises(ModeError, match=r"a TT-matrix is needed, .* core 0 is \(1, 2, 2\)"):
        matvec(vector, vector)
    with pytest.raises(ModeError, match="a TT-matrix is needed"):
        transpose(vector)
