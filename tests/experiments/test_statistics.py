"""Intervals agree with scipy's and with what they promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.experiments.statistics import Interval, detectable, mean_interval, paired_interval, verdict

VALUES = st.lists(st.floats(-10, 10), min_size=2, max_size=9)


def same(found: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    return close(*(torch.tensor(values, dtype=torch.float64) for values in (found, wanted)))


@given(VALUES, st.integers(0, 2**32))
def test_paired_intervals_are_scipys(values: list[float], seed: int) -> None:
    noise = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = [value + float(x) for value, x in zip(values, noise, strict=True)]
    found = paired_interval(other, values)
    wanted = stats.ttest_rel(other, values).confidence_interval(0.95)
    assert same(found[1:3], tuple(wanted))


@given(VALUES)
def test_intervals_hold_their_mean_and_move_with_the_values(values: list[float]) -> None:
    one, moved = mean_interval(values), mean_interval([value + 1 for value in values])
    assert one.low <= one.mean <= one.high
    assert same(moved[:3], tuple(end + 1 for end in one[:3]))


def test_an_interval_covers_as_often_as_it_says() -> None:
    draws = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    covered = sum(mean_interval(row).low <= 0 <= mean_interval(row).high for row in draws) / len(draws)
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(draws))


def test_a_single_value_tells_nothing() -> None:
    assert mean_interval([0.5]) == Interval(0.5, -math.inf, math.inf, 0.0, 1)
    assert verdict(paired_interval([1.0], [0.0]), higher_is_better=True) == "not told apart"


@pytest.mark.parametrize(
    ("low", "high", "higher", "word"),
    [
        (0.1, 0.2, True, "better"),
        (0.1, 0.2, False, "worse"),
        (-0.2, -0.1, True, "worse"),
        (-0.1, 0.2, True, "not told apart"),
    ],
)
def test_nothing_is_better_within_the_interval(low: float, high: float, higher: bool, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 0.1, 5), higher_is_better=higher) == word


def test_the_detectable_difference_is_found_in_four_of_five_experiments() -> None:
    """By simulation: two models of 400 examples each, apart by what is said to be detectable."""
    p, n, trials = 0.8, 400, 4000
    gap = detectable(p, n)
    generator = torch.Generator().manual_seed(0)
    rates = [
        (torch.rand(trials, n, generator=generator) < q).double().mean(1) for q in (p - gap / 2, p + gap / 2)
    ]
    error = torch.stack([r * (1 - r) / n for r in rates]).sum(0).sqrt()
    found = float(((rates[1] - rates[0]) > 1.96 * error).double().mean())
    assert 0.75 < found < 0.87


def test_values_must_be_there_and_pair() -> None:
    with pytest.raises(SpecError, match="at least one value"):
        mean_interval([])
    with pytest.raises(SpecError, match="not 2 and 1"):
        paired_interval([1.0, 2.0], [1.0])
