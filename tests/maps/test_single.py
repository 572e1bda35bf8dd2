"""Law: one site by itself has the factors that the shared map has there, by the params that it reads."""

import pytest
import torch

from tests.support.maps import EVERY, TRANSFORMED, tensors_of
from tests.support.own_map import own_map
from tests.support.tolerance import close
from tntune.errors import UnsupportedError
from tntune.maps import WeightMap, single_site
from tntune.maps.member import Member

SHARED = {
    **{name: map for name, map in {**EVERY, **TRANSFORMED}.items() if map.sites > 1},
    "own map": own_map(),
}


@pytest.mark.parametrize("map", SHARED.values(), ids=SHARED)
def test_factors_are_those_of_the_site(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    for index in range(map.sites):
        own, tensors = single_site(map, {**params, **fixed}, index)
        assert own.sites == 1
        assert {name: tuple(t.shape) for name, t in tensors.items()} == own.tensor_shapes
        found, wanted = own.factors(tensors, tensors), map.site_factors(params, fixed, index)
        assert all(close(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["lotr", "joined layers", "tenslora Att", "gated stack"])
def test_it_holds_what_the_site_reads_and_nothing_else(name: str) -> None:
    """As many entries as those params of the whole map whose gradient through the site is not zero."""
    map = SHARED[name]
    params, fixed = tensors_of(map)
    own, _ = single_site(map, {**params, **fixed}, 1)
    leaves = [tensor.requires_grad_() for tensor in params.values()]
    down, up = map.site_factors(params, fixed, 1)
    gradients = torch.autograd.grad(down.square().sum() + up.square().sum(), leaves)
    assert own.num_parameters == sum(int(gradient.count_nonzero()) for gradient in gradients)


def test_a_map_of_one_site_is_itself() -> None:
    map = EVERY["lora"]
    params, fixed = tensors_of(map)
    assert single_site(map, {**params, **fixed}, 0) == (map, {**params, **fixed})


def test_what_has_no_slices() -> None:
    class Twice(Member):
        sites = 2

    with pytest.raises(UnsupportedError, match="of kind 'member' for 2 layers has no slices"):
        single_site(Twice(EVERY["lotr"], 0), {}, 0)
