"""Ranks for a budget: nearest by trying all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tntune.errors import RankError, SpecError
from tntune.maps import isoparameter_ranks, isorank_ranks, nearest_rank
from tntune.maps.budget import FORMS, count_tensor

MODES = {"in": 9, "dh": 4, "head": 2, "proj": 3}

modes = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5)).map(
    lambda sizes: dict(zip(("in", "out", "layer"), sizes, strict=True))
)


@given(modes=modes, budget=st.integers(1, 5000), copies=st.integers(1, 3), form=st.sampled_from(FORMS))
def test_no_other_rank_is_nearer(modes: dict[str, int], budget: int, copies: int, form: str) -> None:
    def count(ranks: tuple[int, ...]) -> int:
        return copies * count_tensor(modes, ranks, form=form)

    found = isoparameter_ranks(modes, budget, copies=copies, form=form)
    others = (
        [(r,) for r in range(1, budget + 1)]
        if form == "cp"
        else [(min(r, modes["in"]), min(r, modes["out"]), modes["layer"]) for r in range(1, 31)]
    )
    assert found in others
    assert abs(count(found) - budget) == min(abs(count(ranks) - budget) for ranks in others)


@given(slope=st.integers(1, 50), budget=st.integers(1, 2000), largest=st.integers(1, 60))
def test_nearest_rank_of_a_line(slope: int, budget: int, largest: int) -> None:
    found = nearest_rank(lambda rank: slope * rank, budget, largest)
    assert abs(slope * found - budget) == min(abs(slope * r - budget) for r in range(1, largest + 1))


def test_of_two_as_near_the_smaller_is_taken() -> None:
    assert nearest_rank(lambda rank: 10 * rank, 15, 5) == 1


def test_counts_by_hand() -> None:
    assert count_tensor(MODES, (2, 3, 2, 1)) == 18 + 12 + 4 + 3 + 12
    assert count_tensor(MODES, (5,), form="cp") == 5 * 18
    assert isorank_ranks(MODES, 3) == (3, 3, 2, 3)
    assert isoparameter_ranks(MODES, 1)[2:] == (2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: count_tensor(MODES, (1,)), RankError, r"form 'tucker' needs 4 ranks here, not \(1,\)"),
        (lambda: count_tensor(MODES, (1, 1), form="cp"), RankError, "form 'cp' needs 1 ranks"),
        (
            lambda: isoparameter_ranks(MODES, 9, form="tt"),
            SpecError,
            "form must be one of tucker, cp, not 'tt'",
        ),
        (lambda: isoparameter_ranks(MODES, 0, form="cp"), SpecError, "budget must be a positive integer"),
        (lambda: isoparameter_ranks(MODES, 9, copies=0), SpecError, "copies must be a positive integer"),
        (lambda: isorank_ranks(MODES, 0), SpecError, "rank must be a positive integer, not 0"),
        (lambda: nearest_rank(lambda rank: rank, 1, 0), SpecError, "largest must be a positive integer"),
    ],
)
def test_refuses(call: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
