"""A train is its cores: reading, flattening and summing up never change the tensor."""

from types import SimpleNamespace

import numpy as np
import pytest
import tltorch
import torch
from hypothesis import given

from tests.support.oracles import matrix_of, tensor_of
from tests.support.strategies import HALF, WIDE, matrices, random_train, regauged, tensors, trains
from tests.support.tolerance import close
from tntune.errors import DtypeError, ModeError
from tntune.tt.train import (
    Train,
    compute_dtype,
    cores,
    dense,
    flatten,
    merged_modes,
    modes,
    num_parameters,
    ranks,
    restored,
    to,
    tt_matrix,
    tt_tensor,
    unflatten,
    working_cores,
)


def as_numpy(x: Train) -> list[np.ndarray]:
    return [core.detach().numpy() for core in cores(x)]


@given(tensors())
def test_dense_tensor_is_the_product_of_slices(x: Train) -> None:
    assert close(dense(x), torch.from_numpy(tensor_of(as_numpy(x))))


@given(matrices())
def test_dense_matrix_is_the_product_of_slices(x: Train) -> None:
    assert close(dense(x), torch.from_numpy(matrix_of(as_numpy(x))))


@given(trains(dtypes=HALF))
def test_half_precision_is_computed_in_float32_and_kept(x: Train) -> None:
    assert dense(x).dtype == cores(x)[0].dtype
    assert torch.equal(dense(x), dense(to(x, dtype=torch.float32)).to(cores(x)[0].dtype))


@given(trains(dtypes=(torch.float64, torch.complex128)))
def test_a_gauge_on_the_bonds_changes_nothing(x: Train) -> None:
    assert close(dense(regauged(x, seed=1)), dense(x))


@given(trains())
def test_flattening_is_undone(x: Train) -> None:
    back = unflatten(flatten(x), modes(x))
    assert type(back) is type(x)
    assert all(torch.equal(a, b) for a, b in zip(cores(back), cores(x), strict=True))
    assert merged_modes(x) == modes(flatten(x))


@given(trains(dtypes=(*WIDE, *HALF)))
def test_working_cores_are_undone(x: Train) -> None:
    own = working_cores(x)
    back = restored(own, modes(x), cores(x)[0].dtype)
    assert all(torch.equal(a, b) for a, b in zip(cores(back), cores(x), strict=True))
    assert {core.dtype for core in own} == {compute_dtype(cores(x)[0].dtype)}


def test_restored_cores_are_plain_memory() -> None:
    sliced, conjugated = torch.ones(1, 4, 8, dtype=torch.complex64)[:, :, :2], torch.ones(1, 1, 2).cfloat().mH
    assert conjugated.is_conj()
    for core in cores(restored([sliced, conjugated.reshape(2, 1, 1)], (4, 1), torch.complex64)):
        assert core.is_contiguous()
        assert not core.is_conj()


@given(trains())
def test_sizes_are_those_of_the_cores(x: Train) -> None:
    assert ranks(x) == tuple(x.rank)
    assert num_parameters(x) == sum(core.numel() for core in x.factors)
    assert dense(x).numel() == np.prod(merged_modes(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conversion_of_dtype_and_device(dtype: torch.dtype) -> None:
    x = random_train((2, 3), (1, 2, 1), dtype=torch.float32, seed=0)
    assert {core.dtype for core in cores(to(x, dtype=dtype))} == {dtype}
    assert {core.device.type for core in cores(to(x, device="meta"))} == {"meta"}
    assert torch.equal(dense(to(x)), dense(x))


def test_modules_of_tensorly_torch_are_trains() -> None:
    tensor = tltorch.TTTensor.new((3, 4, 5), rank=(1, 2, 2, 1))
    matrix = tltorch.BlockTT.new(((3, 4), (5, 2)), rank=(1, 3, 1))
    for module in (tensor, matrix):
        module.normal_(0, 1)
    assert close(dense(tensor), tensor.to_tensor())
    assert close(dense(matrix), matrix.to_matrix())
    assert modes(matrix) == ((3, 5), (4, 2))
    dense(matrix).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in matrix.parameters())


def test_gradients_flow_through_dense() -> None:
    def entries(*own: torch.Tensor) -> torch.Tensor:
        return dense(tt_tensor(own))

    x = random_train((2, 3, 2), (1, 2, 2, 1), dtype=torch.float64, seed=0)
    assert torch.autograd.gradcheck(entries, [core.requires_grad_() for core in cores(x)])


def test_what_is_no_train_is_refused() -> None:
    with pytest.raises(ModeError, match="Tensor is no tensor train: it has no cores"):
        cores(torch.ones(3))
    with pytest.raises(ModeError, match=r"cores of \[2\] ways"):
        cores(tltorch.CPTensor.new((3, 4), rank=2))
    with pytest.raises(DtypeError, match="core 0 is a ndarray; torch tensors are needed"):
        cores(SimpleNamespace(factors=[torch.ones(1, 2, 1).numpy()]))


def test_integers_have_no_trains() -> None:
    with pytest.raises(DtypeError, match=r"torch.int64 is not supported; use one of torch.float16"):
        tt_tensor([torch.ones(1, 2, 1, dtype=torch.int64)])
    with pytest.raises(DtypeError, match=r"torch.bool is not supported"):
        tt_matrix([torch.ones(1, 2, 2, 1, dtype=torch.bool)])


def test_modes_that_do_not_fit_are_refused() -> None:
    x = tt_tensor([torch.ones(1, 6, 1), torch.ones(1, 4, 1)])
    with pytest.raises(ModeError, match="1 modes given for 2 cores"):
        unflatten(x, ((2, 3),))
    with pytest.raises(ModeError, match=r"core 1 has mode 4, which is not the product of \(2, 3\)"):
        unflatten(x, ((2, 3), (2, 3)))
    with pytest.raises(ModeError, match="core 1 has 3 ways"):
        unflatten(x, ((2, 3), 4))
