"""Cores that are no train are refused, with the core and both sizes in the message."""

import pytest
import torch

from tntune.errors import DtypeError, ModeError, RankError
from tntune.tt.check import check_cores


def test_a_train_of_either_kind_passes() -> None:
    check_cores([torch.ones(1, 2, 3), torch.ones(3, 4, 1)], 3)
    check_cores([torch.ones(1, 2, 2, 3), torch.ones(3, 4, 1, 1)], 4)


def test_no_core_at_all() -> None:
    with pytest.raises(ModeError, match="at least one core"):
        check_cores([], 3)


@pytest.mark.parametrize(("order", "legs"), [(3, r"\(r, n, r'\)"), (4, r"\(r, n_in, n_out, r'\)")])
def test_wrong_number_of_ways(order: int, legs: str) -> None:
    with pytest.raises(ModeError, match=rf"core 1 has 2 ways, shape \(1, 1\); needed are {order}: {legs}"):
        check_cores([torch.ones((1,) * order), torch.ones(1, 1)], order)


def test_a_size_of_zero() -> None:
    with pytest.raises(ModeError, match=r"core 0 has a size of zero: shape \(1, 0, 1\)"):
        check_cores([torch.ones(1, 0, 1)], 3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 4, 2), (3, 4, 1)], "core 1 starts with rank 3, core 0 ends with rank 2"),
        ([(2, 4, 2), (2, 4, 1)], "core 0 starts with rank 2, the first rank must be 1"),
        ([(1, 4, 2), (2, 4, 5)], "core 1 ends with rank 5, the last rank must be 1"),
    ],
)
def test_a_broken_chain_of_ranks(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(RankError, match=message):
        check_cores([torch.ones(shape) for shape in shapes], 3)


def test_mixed_dtypes_and_devices() -> None:
    first = torch.ones(1, 2, 1)
    with pytest.raises(DtypeError, match=r"core 1 is torch.float64 on cpu, core 0 is torch.float32 on cpu"):
        check_cores([first, first.double()], 3)
    with pytest.raises(DtypeError, match=r"core 1 is torch.float32 on meta"):
        check_cores([first, first.to("meta")], 3)


def test_arrays_of_another_library() -> None:
    with pytest.raises(DtypeError, match="core 0 is a ndarray"):
        check_cores([torch.ones(1, 2, 1).numpy()], 3)
