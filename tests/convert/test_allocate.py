"""Laws: allocation keeps the budget, is near the best of all choices, and names the least possible budget."""

import itertools
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tolerance import TOLERANCE
from tntune.convert.allocate import allocate, lower_hull
from tntune.convert.option import Option
from tntune.convert.target import Target, choose
from tntune.convert.truncation import svd_errors
from tntune.errors import RankError, SpecError

SLACK = 100 * TOLERANCE[torch.float64]  # allocation does not tell errors apart that differ by rounding
Curves = Mapping[str, Sequence[Option]]

OPTIONS = st.lists(
    st.builds(
        Option,
        st.sampled_from(["svd", "tensorguide"]),
        st.just(""),
        st.just((1,)),
        st.integers(1, 40),
        st.floats(0, 10),
    ),
    min_size=1,
    max_size=5,
)
CURVES = st.lists(OPTIONS, min_size=1, max_size=4).map(lambda all: {str(i): o for i, o in enumerate(all)})


def cost(chosen: Mapping[str, Option]) -> int:
    return sum(option.params for option in chosen.values())


def loss(chosen: Mapping[str, Option]) -> float:
    return math.fsum(option.squared_error for option in chosen.values())


def best(curves: Curves, budget: int) -> float:
    """Least loss of all choices within the budget, by trying them all."""
    choices = (dict(zip(curves, picked, strict=True)) for picked in itertools.product(*curves.values()))
    return min(loss(choice) for choice in choices if cost(choice) <= budget)


@given(CURVES, st.integers(0, 160))
def test_the_budget_is_kept(curves: Curves, budget: int) -> None:
    least = sum(min(option.params for option in options) for options in curves.values())
    if budget < least:
        with pytest.raises(RankError, match=rf"budget of {budget} .* least possible is {least}$"):
            allocate(curves, budget)
        return
    chosen = allocate(curves, budget)
    assert cost(chosen) <= budget
    assert all(option in curves[name] for name, option in chosen.items())


@given(CURVES, st.integers(0, 160))
def test_the_loss_is_within_one_move_of_the_least(curves: Curves, budget: int) -> None:
    least = sum(min(option.params for option in options) for options in curves.values())
    if budget < least:
        return
    steps = [
        first.squared_error - second.squared_error
        for options in curves.values()
        for first, second in itertools.pairwise(lower_hull(options))
    ]
    found, optimum = loss(allocate(curves, budget)), best(curves, budget)
    assert optimum - SLACK <= found <= optimum + max(steps, default=0) + SLACK


@given(OPTIONS)
def test_no_option_is_below_the_hull(options: list[Option]) -> None:
    hull = lower_hull(options)
    points = [(option.params, option.squared_error) for option in hull]
    assert points == sorted(set(points))
    assert all(first[1] > second[1] for first, second in itertools.pairwise(points))
    assert points[-1][1] <= min(option.squared_error for option in options) + SLACK
    for (p, e), (q, f) in itertools.pairwise(points):
        for option in options:
            if p <= option.params <= q:
                assert option.squared_error >= e + (f - e) * (option.params - p) / (q - p) - SLACK


@given(CURVES, st.integers(0, 160))
def test_a_choice_of_methods_is_never_worse_than_one_method(curves: Curves, budget: int) -> None:
    dropped = Option("dropped", "", (), 0, 11.0)
    free = {name: [*options, dropped] for name, options in curves.items()}
    found = loss(choose(free, dict.fromkeys(free, 1.0), Target(max_params=max(budget, 1)), 160))
    for method in ("svd", "tensorguide"):
        own = {
            name: [o for o in options if o.method in (method, "dropped")] for name, options in free.items()
        }
        assert found <= loss(allocate(own, max(budget, 1))) + SLACK


SPECTRA = st.lists(
    st.lists(st.floats(0, 5), min_size=1, max_size=3).map(lambda s: sorted(s, reverse=True)),
    min_size=1,
    max_size=3,
)


@given(SPECTRA, st.integers(0, 60))
def test_svd_errors_are_within_one_rank_of_the_least(spectra: list[list[float]], budget: int) -> None:
    named = {str(i): torch.tensor(values, dtype=torch.float64) for i, values in enumerate(spectra)}
    sizes = {name: 5 + int(name) for name in named}
    found = svd_errors(named, sizes, budget)
    tails = [[sum(v * v for v in values[r:]) for r in range(len(values) + 1)] for values in spectra]
    choices = itertools.product(*(range(len(values) + 1) for values in spectra))
    least = min(
        sum(tail[rank] for tail, rank in zip(tails, ranks, strict=True))
        for ranks in choices
        if sum((5 + i) * rank for i, rank in enumerate(ranks)) <= budget
    )
    largest = max(value**2 for values in spectra for value in values)
    assert least - SLACK <= sum(found.values()) <= least + largest + SLACK


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "given: none"),
        ({"params": 0.5, "max_rank": 2}, "given: params, max_rank"),
        ({"params": 0.0}, r"in \(0, 1\], not 0.0"),
        ({"params": 1.5}, r"in \(0, 1\], not 1.5"),
        ({"params": float("nan")}, r"in \(0, 1\], not nan"),
        ({"tolerance": 1.0}, r"in \[0, 1\), not 1.0"),
        ({"tolerance": -0.1}, r"in \[0, 1\), not -0.1"),
        ({"max_params": 0}, "max_params must be at least 1, not 0"),
        ({"max_rank": 0}, "max_rank must be at least 1, not 0"),
    ],
)
def test_targets_that_contradict_themselves(given: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Target(**given)


def test_a_move_that_costs_too_much_does_not_hold_up_those_of_other_layers() -> None:
    sizes = {"a": ((6, 27.0), (12, 25.0)), "b": ((7, 55.0), (15, 54.0), (18, 47.0))}
    curves = {
        name: [Option("svd", "", (rank,), *size) for rank, size in enumerate(curve, 1)]
        for name, curve in sizes.items()
    }  # by gain: b to 18, for which 21 is too little; a to 12
    chosen = allocate(curves, 21)
    assert {name: option.params for name, option in chosen.items()} == {"a": 12, "b": 7}
