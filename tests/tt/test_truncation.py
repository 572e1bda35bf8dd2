"""The account of a sweep: what is discarded never exceeds what is allowed, and is reported in full."""

from math import sqrt

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracles import tail_of
from tests.support.tolerance import close
from tntune.tt.rank_rule import RankRule, working_precision
from tntune.tt.train import tt_tensor
from tntune.tt.truncation import Rounded, Sweep

WIDE_MODES = (16,) * 6


def spectra(seed: int, decades: float, scale: float = 1.0) -> list[np.ndarray]:
    """Five spectra of the same norm, falling over some decades."""
    rng = np.random.default_rng(seed)
    decaying = [np.sort(rng.random(12) * 10 ** (-decades * np.arange(12) / 12))[::-1] for _ in range(5)]
    return [scale * s / np.linalg.norm(s) for s in decaying]


@given(st.integers(0, 2**31), st.floats(0, 16), st.floats(0, 0.9))
def test_the_error_stays_within_the_tolerance_and_is_the_sum_of_tails(
    seed: int, decades: float, tolerance: float
) -> None:
    sweep, lost = Sweep(RankRule(tolerance=tolerance), WIDE_MODES, torch.float64), 0.0
    for s in spectra(seed, decades):
        rank = sweep.rank(torch.from_numpy(s.copy()))
        assert 1 <= rank <= len(s)
        lost += tail_of(s, rank)
    assert close(torch.tensor(sweep.error), torch.tensor(sqrt(lost)))
    assert sweep.error <= tolerance + len(WIDE_MODES) * working_precision(torch.float64)


@given(st.integers(0, 2**31), st.integers(-150, 150))
def test_the_scale_does_not_matter(seed: int, exponent: int) -> None:
    plain, scaled = (Sweep(RankRule(tolerance=0.1), WIDE_MODES, torch.float64) for _ in range(2))
    for s in spectra(seed, 3):
        large = torch.from_numpy(s * 10.0**exponent)
        assert plain.rank(torch.from_numpy(s.copy())) == scaled.rank(large)
    assert close(torch.tensor(plain.error), torch.tensor(scaled.error))


def test_what_one_bond_leaves_unused_serves_the_next() -> None:
    sweep = Sweep(RankRule(tolerance=0.5), (4, 4, 4), torch.float64)
    half = torch.tensor([sqrt(0.76), sqrt(0.24)], dtype=torch.float64)
    assert sweep.rank(torch.tensor([1.0, 0.0])) == 1
    assert sweep.rank(half) == 1
    other = Sweep(RankRule(tolerance=0.5), (4, 4, 4), torch.float64)
    assert other.rank(half) == 2


def test_limits_win() -> None:
    sweep = Sweep(RankRule(tolerance=0.0, max_rank=1), (4, 4), torch.float64)
    assert sweep.rank(torch.tensor([0.8, 0.6])) == 1
    assert close(torch.tensor(sweep.error), torch.tensor(0.6))


def test_nothing_but_zeros_keeps_one_rank() -> None:
    sweep = Sweep(RankRule(), (4, 4, 4), torch.float32)
    assert [sweep.rank(torch.zeros(4)), sweep.rank(torch.zeros(4))] == [1, 1]
    assert sweep.error == 0.0


def test_ranks_of_the_value() -> None:
    assert Rounded(tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)]), 0.0).ranks == (1, 3, 1)
