"""Steps to a target, and what a number at the start foretells of them."""

from dataclasses import replace

import pytest
from scipy import stats

from tests.experiments.sample import a_record
from tntune.experiments.convergence import correlations, steps_to, target_score
from tntune.experiments.record import Record


@pytest.fixture(scope="module")
def record() -> Record:
    return a_record()


def curve(record: Record, scores: list[float], kernel: dict[str, float] | None = None) -> Record:
    """The record with these validation scores at steps 0, 10, 20, ..."""
    points = [(10 * k, {"accuracy": score, "loss": 1.0}) for k, score in enumerate(scores)]
    return replace(record, scores=points, steps=10 * (len(scores) - 1), kernel=kernel)


def test_the_target_is_nine_tenths_of_the_way(record: Record) -> None:
    slow, fast = curve(record, [0.5, 0.6, 0.7]), curve(record, [0.5, 1.0, 0.9])
    assert target_score([slow, fast]) == 0.5 + 0.9 * 0.5
    assert (steps_to(slow, 0.65), steps_to(fast, 0.65), steps_to(slow, 0.95)) == (20.0, 10.0, float("inf"))


def test_a_score_that_falls_is_reached_from_above(record: Record) -> None:
    falling = replace(curve(record, [9.0, 5.0, 3.0]), higher_is_better=False)
    assert target_score([falling]) == 9.0 - 0.9 * 6.0
    assert steps_to(falling, 5.0) == 10.0


def test_correlations_are_scipys_over_runs_that_never_arrive_last(record: Record) -> None:
    curves = [[0.5, 0.99], [0.5, 0.6, 0.97], [0.5, 0.6, 0.7, 1.0], [0.5, 0.55, 0.6, 0.6], [0.5, 0.95]]
    values, steps = [3.0, 5.0, 40.0, 100.0, 2.0], [10.0, 20.0, 30.0, 61.0, 10.0]
    records = [
        curve(record, scores, {"cond_plus": value, "rank": 4.0})
        for scores, value in zip(curves, values, strict=True)
    ]
    (found,) = correlations(records)  # a rank that is the same in all foretells nothing
    assert (found.name, found.n) == ("cond_plus", 5)
    assert (found.rho, found.p) == tuple(stats.spearmanr(values, steps))


def test_few_runs_and_runs_without_kernels_say_nothing(record: Record) -> None:
    some = [curve(record, [0.5, 0.9], {"rank": float(k)}) for k in range(3)]
    assert correlations(some) == ()
    assert correlations([curve(record, [0.5, 0.9])] * 9) == ()
