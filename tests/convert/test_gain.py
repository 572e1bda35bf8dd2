"""Gains: found by asking a rating, few times, and never worse than gains of one."""

import math
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from tntune.convert.gain import Gains, gains_by_role, rising_gains

LAYERS = [f"h.{block}.{role}" for block in range(3) for role in ("q", "v", "up")]
wanted_gains = st.fixed_dictionaries({role: st.floats(0.3, 4.0) for role in ("q", "v", "up")})


def distance(gains: Gains, wanted: Mapping[str, float]) -> float:
    return sum(abs(math.log(gain / wanted[name.split(".")[-1]])) for name, gain in gains.items())


@given(wanted=wanted_gains)
def test_a_search_never_ends_above_gains_of_one(wanted: dict[str, float]) -> None:
    start = distance(dict.fromkeys(LAYERS, 1.0), wanted)
    for search, most in ((rising_gains, 6), (gains_by_role, 6)):
        asked: list[float] = []

        def rate(gains: Gains, asked: list[float] = asked) -> float:
            asked.append(distance(gains, wanted))
            return asked[-1]

        found = search(LAYERS, rate, start)
        assert list(found) == LAYERS
        assert distance(found, wanted) == min([start, *asked])
        assert len(asked) <= most


@given(wanted=wanted_gains)
def test_roles_are_scaled_as_they_want_it(wanted: dict[str, float]) -> None:
    start = dict.fromkeys(LAYERS, 1.0)
    found = gains_by_role(LAYERS, lambda gains: distance(gains, wanted), distance(start, wanted))
    for name, gain in found.items():
        steps = [
            step for step in (1.25, 0.8) if distance({name: step}, wanted) < distance({name: 1.0}, wanted)
        ]
        assert gain == (steps[0] if steps else 1.0)


def test_where_every_layer_is_a_role_of_its_own_no_rating_is_asked() -> None:
    def never(gains: Gains) -> float:
        raise AssertionError(gains)

    names = [f"layer_{k}" for k in range(13)]
    assert set(gains_by_role(names, never, 0.0).values()) == {1.0}
