"""Law: the lift computes the same function, for every σ whose odd part is linear, and refuses all others."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.convert import lift
from tntune.errors import SpecError, UnsupportedError
from tntune.maps.activation import ACTIVATIONS
from tntune.maps.base import Factors

EXACT = [name for name, sigma in ACTIVATIONS.items() if sigma.odd_gain is not None]
OTHERS = [name for name in ACTIVATIONS if name not in EXACT]


def sample() -> tuple[Factors, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    down, up, x = (torch.randn(shape, generator=draw).double() for shape in ((3, 6), (5, 3), (40, 6)))
    return Factors(down, up), 3 * x


@pytest.mark.parametrize("name", EXACT)
def test_lift_computes_the_same_function(name: str) -> None:
    factors, x = sample()
    lifted = lift(factors, name)
    assert lifted.down.shape == (6, 6)
    y = ACTIVATIONS[name].function(x @ lifted.down.mT) @ lifted.up.mT
    assert close(y, x @ factors.down.mT @ factors.up.mT)


def test_the_same_factors_without_lift_compute_something_else() -> None:
    factors, x = sample()
    y = torch.relu(x @ factors.down.mT) @ factors.up.mT
    assert not torch.allclose(y, x @ factors.down.mT @ factors.up.mT)


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}.*it is for relu, gelu"):
        lift(sample()[0], name)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown activation 'swoosh'"):
        lift(sample()[0], "swoosh")
