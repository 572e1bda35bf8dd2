"""Rank rules refuse contradictions; budgets are kept; every step of a shrink path is admissible."""

from itertools import pairwise, product
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracles import is_admissible, parameters_of, tail_of
from tests.support.tolerance import close
from tntune.errors import RankError
from tntune.tt.rank_rule import (
    RankRule,
    admissible,
    allocate_ranks,
    count_parameters,
    interior,
    shrink_path,
    working_precision,
)

MODES = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple)


@st.composite
def bonds(draw: st.DrawFn) -> tuple[tuple[int, ...], list[torch.Tensor]]:
    """Modes and one descending spectrum for every bond, as long as the modes admit."""
    modes = draw(MODES)
    lengths = admissible([6] * (len(modes) - 1), modes)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return modes, [torch.from_numpy(np.sort(rng.exponential(size=n) ** 3)[::-1].copy()) for n in lengths]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\), got -0.1"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\), got 1.0"),
        ({"tolerance": float("nan")}, r"tolerance must be in \[0, 1\), got nan"),
        ({"energy": 0.0}, r"energy must be in \(0, 1\], got 0.0"),
        ({"energy": 1.5}, r"energy must be in \(0, 1\], got 1.5"),
        ({"tolerance": 0.1, "energy": 0.9}, "both state the accuracy"),
        ({"max_rank": 0}, "max_rank must be at least 1, got 0"),
        ({"max_params": -3}, "max_params must be at least 1, got -3"),
        ({"ranks": (2, 0)}, r"ranks must be at least 1, got \(2, 0\)"),
        ({"ranks": (2,), "max_rank": 3}, "explicit ranks exclude every other field"),
        ({"ranks": (2,), "tolerance": 0.0}, "explicit ranks exclude every other field"),
    ],
)
def test_contradictions_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(RankError, match=message):
        RankRule(**fields)


def test_accuracy_is_the_tolerance_or_what_the_energy_leaves() -> None:
    assert RankRule().accuracy == 0.0
    assert RankRule(tolerance=0.25, max_rank=2).accuracy == 0.25
    assert RankRule(energy=0.75).accuracy == 0.5
    assert RankRule(energy=1.0).accuracy == 0.0
    assert close(torch.tensor(RankRule(energy=1 - 1e-8).accuracy), torch.tensor(1e-4))


def test_ranks_may_be_listed() -> None:
    assert RankRule(ranks=[2, 3]).ranks == (2, 3)
    assert hash(RankRule(ranks=[2, 3])) == hash(RankRule(ranks=(2, 3)))


def test_interior_ranks_from_each_form() -> None:
    assert interior(3, 4) == (3, 3, 3)
    assert interior((2, 5), 3) == interior((1, 2, 5, 1), 3) == (2, 5)
    assert interior(7, 1) == interior((), 1) == interior((1, 1), 1) == ()
    for ranks in ((2,), (2, 2, 5, 1), (1, 2, 5, 3)):
        with pytest.raises(RankError, match=r"are no ranks of 3 cores: give 2, or 4 with 1 at both ends"):
            interior(ranks, 3)


@given(MODES, st.integers(1, 40))
def test_admissible_ranks_are_the_largest(modes: tuple[int, ...], wanted: int) -> None:
    ranks = admissible([wanted] * (len(modes) - 1), modes)
    assert is_admissible(ranks, modes)
    for k in range(len(ranks)):
        raised = (*ranks[:k], ranks[k] + 1, *ranks[k + 1 :])
        assert raised[k] > wanted or not is_admissible(raised, modes)


@given(MODES, st.integers(1, 8), st.integers(0, 60))
def test_caps_of_a_budget_are_ranks_some_train_within_it_has(
    modes: tuple[int, ...], largest: int, spare: int
) -> None:
    budget = sum(modes) + spare
    everything = product(range(1, largest + 1), repeat=len(modes) - 1)
    within = [r for r in everything if is_admissible(r, modes) and parameters_of(r, modes) <= budget]
    expected = tuple(max(ranks[k] for ranks in within) for k in range(len(modes) - 1))
    assert RankRule(max_rank=largest, max_params=budget).caps(modes) == expected


def test_caps_of_explicit_ranks_are_checked_against_the_cores() -> None:
    assert RankRule(ranks=(2, 9)).caps((2, 3, 4)) == (2, 4)
    with pytest.raises(RankError, match="no ranks of 4 cores"):
        RankRule(ranks=(2, 9)).caps((2, 3, 4, 5))


@given(MODES, st.integers(1, 9))
def test_parameters_are_counted(modes: tuple[int, ...], rank: int) -> None:
    ranks = (rank,) * (len(modes) - 1)
    assert count_parameters(ranks, modes) == parameters_of(ranks, modes)


@given(bonds())
def test_the_path_falls_from_full_ranks_to_ones(drawn: tuple[tuple[int, ...], list[torch.Tensor]]) -> None:
    modes, spectra = drawn
    path = shrink_path(spectra, modes)
    assert path[0].ranks == tuple(len(s) for s in spectra)
    assert path[-1].ranks == (1,) * len(spectra)
    for step in path:
        assert is_admissible(step.ranks, modes)
        assert step.params == parameters_of(step.ranks, modes)
        tails = sum(tail_of(s.numpy(), r) for s, r in zip(spectra, step.ranks, strict=True))
        assert close(torch.tensor(step.squared_error), torch.tensor(tails))
    for above, below in pairwise(path):
        assert below.params < above.params
        assert all(b <= a for a, b in zip(above.ranks, below.ranks, strict=True))


@given(bonds())
def test_each_step_is_the_cheapest_per_parameter(drawn: tuple[tuple[int, ...], list[torch.Tensor]]) -> None:
    modes, spectra = drawn
    for above, below in pairwise(shrink_path(spectra, modes)):
        chosen = (below.squared_error - above.squared_error) / (above.params - below.params)
        for k in range(len(spectra)):
            lone = (*above.ranks[:k], above.ranks[k] - 1, *above.ranks[k + 1 :])
            if min(lone) >= 1 and is_admissible(lone, modes):
                added = float(spectra[k][lone[k]] ** 2)
                assert chosen <= added / (above.params - parameters_of(lone, modes)) * (1 + 1e-6)


@given(bonds(), st.integers(0, 80))
def test_the_budget_is_kept_and_used(drawn: tuple[tuple[int, ...], list[torch.Tensor]], spare: int) -> None:
    modes, spectra = drawn
    budget = sum(modes) + spare
    ranks = allocate_ranks(spectra, modes, budget)
    assert parameters_of(ranks, modes) <= budget
    path = shrink_path(spectra, modes)
    larger = [step for step in path if step.params > parameters_of(ranks, modes)]
    assert all(step.params > budget for step in larger)


def test_the_flat_bond_keeps_its_ranks() -> None:
    steep, flat = torch.tensor([1.0, 1e-3, 1e-3, 1e-3]), torch.tensor([1.0, 0.9, 0.8, 0.7])
    assert allocate_ranks([steep, flat], (4, 4, 4), 40) == (1, 4)
    assert allocate_ranks([flat, steep], (4, 4, 4), 40) == (4, 1)


def test_bonds_around_a_mode_of_one_move_together() -> None:
    s = torch.tensor([3.0, 2.0, 1.0])
    assert [step.ranks for step in shrink_path([s, s], (3, 1, 3))] == [(3, 3), (2, 2), (1, 1)]


def test_a_start_bounds_the_path() -> None:
    s = torch.tensor([3.0, 2.0, 1.0])
    assert shrink_path([s, s], (3, 3, 3), start=(2, 9))[0].ranks == (2, 3)
    assert allocate_ranks([s, s], (3, 3, 3), 10**6, start=(2, 1)) == (2, 1)


def test_a_single_core_has_one_step() -> None:
    assert shrink_path([], (7,)) == [((), 7, 0)]


def test_what_cannot_be_is_refused() -> None:
    s = torch.ones(2)
    with pytest.raises(RankError, match=r"no train of modes \(2, 3, 2\) has 6 entries; the least is 7"):
        allocate_ranks([s, s], (2, 3, 2), 6)
    with pytest.raises(RankError, match="the least is 7"):
        RankRule(max_params=6).caps((2, 3, 2))
    with pytest.raises(RankError, match="1 spectra given for the 2 bonds of 3 cores"):
        shrink_path([s], (2, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_working_precision_is_what_sums_lose(dtype: torch.dtype) -> None:
    one = torch.ones((), dtype=dtype)
    assert one + working_precision(dtype) > one
    assert 0 < working_precision(dtype) < working_precision(torch.float16) < inf
