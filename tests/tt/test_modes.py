"""Mode sizes exist for every integer, multiply to it with its padding, and are balanced."""

from itertools import combinations_with_replacement
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tntune.errors import ModeError
from tntune.tt.modes import Modes, auto_modes

ORDERS = st.one_of(st.none(), st.integers(1, 12))


@given(st.integers(1, 10**9), ORDERS)
def test_the_product_is_n_and_its_padding(n: int, order: int | None) -> None:
    modes = auto_modes(n, order=order)
    assert prod(modes.sizes) == n + modes.padding
    assert modes.padding >= 0
    assert order in (None, len(modes.sizes))
    assert list(modes.sizes) == sorted(modes.sizes)


@given(st.integers(1, 10**9), st.integers(2, 40))
def test_the_largest_mode_is_kept_with_the_fewest_modes_or_one_more(n: int, largest: int) -> None:
    modes = auto_modes(n, max_mode=largest)
    fewest = next(order for order in range(1, 32) if largest**order >= n)
    assert max(modes.sizes) <= largest
    if len(modes.sizes) > fewest:
        assert len(modes.sizes) == fewest + 1
        assert auto_modes(n, order=fewest, max_mode=largest).padding > max(n // 100, modes.padding)


@given(st.integers(1, 10**9), st.integers(1, 8))
def test_no_mode_is_twice_a_balanced_one(n: int, order: int) -> None:
    assert (max(auto_modes(n, order=order).sizes) / 2 - 1) ** order < n


@pytest.mark.parametrize("order", [1, 2, 3])
def test_against_all_products(order: int) -> None:
    for n in range(1, 65):
        root = next(c for c in range(1, n + 1) if c**order >= n)
        choices = list(combinations_with_replacement(range(1, 2 * root + 1), order))
        least = min(prod(sizes) for sizes in choices if prod(sizes) >= n)
        flattest = min(max(sizes) for sizes in choices if prod(sizes) == least)
        modes = auto_modes(n, order=order)
        assert modes.padding == least - n
        assert max(modes.sizes) == flattest


@pytest.mark.parametrize(
    ("n", "sizes", "padding"),
    [(1, (1,), 0), (64, (8, 8), 0), (768, (8, 8, 12), 0), (4096, (16, 16, 16), 0), (257, (4, 5, 13), 3)],
)
def test_sizes_one_meets(n: int, sizes: tuple[int, ...], padding: int) -> None:
    assert auto_modes(n) == Modes(sizes, padding)


def test_large_primes_are_padded_by_little() -> None:
    for n in (999_999_937, 1_000_003, 65_537):
        assert 0 < auto_modes(n).padding <= n // 100


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ModeError, match="n >= 1, order >= 1, max_mode >= 2; got n=0"):
        auto_modes(0)
    with pytest.raises(ModeError, match="order=0"):
        auto_modes(5, order=0)
    with pytest.raises(ModeError, match="max_mode=1"):
        auto_modes(5, max_mode=1)
    with pytest.raises(ModeError, match=r"2 modes of at most 4 make 16, below n=17; allow 5"):
        auto_modes(17, order=2, max_mode=4)
