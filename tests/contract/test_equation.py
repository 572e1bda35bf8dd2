"""equation: named legs to einsum strings."""

import numpy as np
import pytest

from tntune.contract import equation, plan
from tntune.errors import ModeError


def test_equal_names_are_one_leg() -> None:
    assert equation([["a", "b"], ["b", "c"]], ["c", "a"]) == "ab,bc->ca"
    assert equation([[("r", 0), 5], [5, None]], [None]) == "ab,bc->c"


def test_any_hashable_names_a_leg() -> None:
    x, y = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    found = np.einsum(equation([[1, "m"], ["m", (2, "n")]], [(2, "n"), 1]), x, y)
    assert np.array_equal(found, (x @ y).T)


def test_more_legs_than_letters() -> None:
    legs = [[k, k + 1] for k in range(120)]
    text = equation(legs, [0, 120])
    assert len(set(text) - set(",->")) == 121
    assert plan(text, *[(1, 1)] * 120).peak == 1


def test_empty_operands_and_outputs() -> None:
    assert equation([[], ["a"]], []) == ",a->"


def test_an_output_needs_an_operand() -> None:
    with pytest.raises(
        ModeError, match=r"the output has legs \['w'\] that no operand has; there are \['m'\]"
    ):
        equation([["m"]], ["m", "w"])
