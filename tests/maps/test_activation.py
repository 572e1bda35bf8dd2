"""Activations: linearity and the odd part are what the table says."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.maps import ACTIVATIONS, Activation, activation

X = torch.linspace(-9, 9, 181, dtype=torch.float64)
NAMED = pytest.mark.parametrize("sigma", ACTIVATIONS.values(), ids=ACTIVATIONS)


@NAMED
def test_the_odd_part_is_a_multiple_of_x_where_stated(sigma: Activation) -> None:
    odd = sigma.function(X) - sigma.function(-X)
    slopes = odd[X != 0] / X[X != 0]
    if sigma.odd_gain is None:
        assert slopes.max() - slopes.min() > 0.1
    else:
        assert close(odd, sigma.odd_gain * X)


@NAMED
def test_linear_means_additive(sigma: Activation) -> None:
    f = sigma.function
    assert sigma.linear == bool(torch.equal(f(X + 1), f(X) + f(torch.ones_like(X))))


@NAMED
def test_found_by_name(sigma: Activation) -> None:
    assert activation(sigma.name) is sigma


@pytest.mark.parametrize("name", ["swish", "", None, ["relu"]])
def test_unknown_names(name: object) -> None:
    with pytest.raises(SpecError, match=r"unknown activation .*; known are identity, relu, gelu"):
        activation(name)
