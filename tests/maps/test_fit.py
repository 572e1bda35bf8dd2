"""Fits of dense tensors: exact where they can be, and within their bounds where not."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.dense_maps import full_tensor
from tests.support.oracles import tail_of
from tests.support.tolerance import close
from tntune.errors import RankError
from tntune.maps.fit import cp_als, hosvd, padded, tucker2

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
seeds = st.integers(0, 2**31)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tucker(core: Tensor, factors: list[Tensor]) -> Tensor:
    return torch.from_numpy(full_tensor([factor.numpy() for factor in factors], core.numpy()))


def cp(factors: list[Tensor]) -> Tensor:
    return torch.from_numpy(full_tensor([factor.numpy() for factor in factors], None))


def tail(x: Tensor, mode: int, rank: int) -> float:
    return tail_of(np.linalg.svd(x.movedim(mode, 0).flatten(1).numpy(), compute_uv=False), rank)


@given(shape=shapes, rank=st.integers(1, 5), seed=seeds)
def test_hosvd_loses_at_most_what_its_modes_lose(shape: tuple[int, ...], rank: int, seed: int) -> None:
    x = random(*shape, seed=seed)
    core, factors = hosvd(x, (rank,) * len(shape))
    tails = [tail(x, mode, rank) for mode in range(len(shape))]
    error = float((tucker(core, factors) - x).square().sum())
    floor = 1e-20 * float(x.square().sum())
    assert max(tails) - floor <= error * (1 + 1e-9) + floor
    assert error <= sum(tails) * (1 + 1e-9) + floor


@given(shape=shapes, extra=st.integers(0, 2), seed=seeds)
def test_hosvd_is_exact_at_full_ranks(shape: tuple[int, ...], extra: int, seed: int) -> None:
    x = random(*shape, seed=seed)
    core, factors = hosvd(x, tuple(n + extra for n in shape))
    assert core.shape == tuple(n + extra for n in shape)
    assert close(tucker(core, factors), x)


@given(shape=shapes, rank=st.integers(1, 5), seed=seeds)
def test_tucker2_loses_at_most_what_both_sides_lose(shape: tuple[int, ...], rank: int, seed: int) -> None:
    x = random(*shape, seed=seed)
    core, u, v = tucker2(x, rank)
    assert core.shape == (*shape[:-2], rank, rank)
    error = float((u @ core @ v.mT - x).square().sum())
    bound = tail(x, len(shape) - 2, rank) + tail(x, len(shape) - 1, rank)
    assert error <= bound * (1 + 1e-9) + 1e-20 * float(x.square().sum())


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 2, 3, 4)])
def test_cp_is_exact_where_the_rank_is_enough_for_any_factors(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    assert close(cp(cp_als(x, 2 * prod(sorted(shape)[:-1]))), x)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_cp_of_a_matrix_is_its_svd(rank: int) -> None:
    """No matrix of that rank is nearer, so alternating least squares must find the truncated SVD."""
    x = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    x = torch.linalg.qr(random(4, 4)).Q @ x @ torch.linalg.qr(random(5, 4, seed=1)).Q.mT
    error = float((cp(cp_als(x, rank)) - x).square().sum())
    assert abs(error - tail(x, 0, rank)) <= 1e-6 * float(x.square().sum())


def test_cp_finds_a_term_again() -> None:
    x = cp([random(n, 1, seed=n) for n in (3, 4, 5)])
    assert close(cp(cp_als(x, 1)), x)


def test_cp_of_zero_is_zero() -> None:
    assert not cp(cp_als(torch.zeros(2, 3, 4, dtype=torch.float64), 2)).any()


def test_fits_draw_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    assert torch.equal(cp_als(random(2, 3), 1)[0], cp_als(random(2, 3), 1)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_padded_keeps_the_corner() -> None:
    x = random(2, 3)
    wide = padded(x, (4, 3))
    assert torch.equal(wide[:2], x)
    assert not wide[2:].any()


def test_ranks_must_be_as_many_as_modes() -> None:
    with pytest.raises(RankError, match=r"2 modes need as many ranks, not \(1, 1, 1\)"):
        hosvd(torch.ones(2, 2), (1, 1, 1))
