"""Laws: the balanced gauge keeps ΔW, is balanced, and forgets the gauge it was given; norms are dense."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.convert.sample import same
from tests.support.tolerance import close
from tntune.convert import balance, delta_distance, delta_norm
from tntune.errors import NumericalError
from tntune.maps.base import Factors


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 10**6))


@given(SIZES)
def test_balance_keeps_delta_and_is_balanced(sizes: tuple[int, int, int, int]) -> None:
    inside, outside, width, seed = sizes
    down, up = random(width, inside, seed=seed), random(outside, width, seed=seed + 1)
    found = balance(down, up, 0.3)
    assert close(found.up @ found.down, 0.3 * up @ down)
    assert close(found.down @ found.down.mT, torch.diag(found.values))
    assert close(found.up.mT @ found.up, torch.diag(found.values))
    assert found.values.tolist() == sorted(found.values.tolist(), reverse=True)
    dense = torch.from_numpy(np.linalg.svd((0.3 * up @ down).numpy(), compute_uv=False))
    assert close(found.values, dense[: len(found.values)])


@given(SIZES)
def test_balance_forgets_the_gauge(sizes: tuple[int, int, int, int]) -> None:
    inside, outside, width, seed = sizes
    down, up = random(width, inside, seed=seed), random(outside, width, seed=seed + 1)
    gauge = torch.linalg.qr(random(width, width, seed=seed + 2)).Q * (1 + torch.arange(width))
    first, second = balance(down, up), balance(gauge @ down, up @ torch.linalg.inv(gauge))
    assert close(first.values, second.values)
    assert close(first.up @ first.down, second.up @ second.down)


def test_balance_gives_the_same_factors_where_singular_values_differ() -> None:
    down, up, gauge = random(3, 8, seed=0), random(7, 3, seed=1), random(3, 3, seed=2)
    first, second = balance(down, up), balance(gauge @ down, up @ torch.linalg.inv(gauge))
    assert close(first.down, second.down)
    assert close(first.up, second.up)


@pytest.mark.parametrize("exponent", [-30, -8, 0, 8, 30])
def test_balance_at_any_scale(exponent: int) -> None:
    down, up = random(3, 8, seed=0), random(7, 3, seed=1)
    found = balance(down, up, 10.0**exponent)
    assert close(found.values / 10.0**exponent, balance(down, up).values)
    assert same(found.norm / 10.0**exponent, (up @ down).norm())


def test_rank_deficient_factors_lose_the_redundant_rows() -> None:
    down, up = random(2, 8, seed=0), random(7, 2, seed=1)
    found = balance(torch.cat([down, down]), torch.cat([up, up], dim=1))
    assert len(found.values) == 2
    assert close(found.up @ found.down, 2 * up @ down)


def test_a_zero_update_is_one_zero_row() -> None:
    found = balance(random(3, 8, seed=0), torch.zeros(7, 3))
    assert found.values.tolist() == [0.0]
    assert not found.down.any()
    assert not found.up.any()


def test_a_product_beyond_float64_is_refused() -> None:
    huge = torch.full((2, 3), 1e200, dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"not finite|overflows"):
        balance(huge, huge.mT)


@given(SIZES, st.sampled_from([1.0, 1e-1, 1e-3, 1e-6, 1e-9]))
def test_delta_distance_is_the_dense_one(sizes: tuple[int, int, int, int], gap: float) -> None:
    inside, outside, width, seed = sizes
    one = Factors(random(width, inside, seed=seed), random(outside, width, seed=seed + 1))
    change = gap * random(outside, width, seed=seed + 2)
    found = delta_distance(one, Factors(one.down, one.up + change))
    expected, norm = float((change @ one.down).norm()), float((one.up @ one.down).norm())
    assert same(norm + found, norm + expected)
    if gap > 0.01:
        assert same(found, expected)


def test_tiny_distances_keep_their_digits() -> None:
    """By inner products alone a distance of 1e-9 would drown in rounding."""
    one = Factors(random(3, 8, seed=0), random(7, 3, seed=1))
    change = 1e-9 * random(7, 3, seed=2)
    found = delta_distance(one, Factors(one.down, one.up + change))
    assert same(found, (change @ one.down).norm(), factor=1e5)


def test_distance_between_factors_of_other_widths() -> None:
    one = Factors(random(3, 8, seed=0), random(7, 3, seed=1))
    two = Factors(random(5, 8, seed=2), random(7, 5, seed=3))
    expected = float((one.up @ one.down - two.up @ two.down).norm())
    assert same(delta_distance(one, two), expected)
    assert same(delta_norm(one), (one.up @ one.down).norm())
    assert same(delta_norm(one) + delta_distance(one, one), delta_norm(one))
