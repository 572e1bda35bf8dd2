"""Laws of parts: the same factors at fewer sites, and tensors of their own."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.errors import ModeError, UnsupportedError
from tntune.maps import Geometry, Joined, LoRA, TensorGuide
from tntune.maps.part import Part

PATTERNS = ("io (layer side w)", "io layer side w", "side (f layer) w", "layer side f1 (f2 w)")


def guide(pattern: str, layers: int = 5) -> TensorGuide:
    layout = Joined.auto(pattern, Geometry(6, 5, 2), layers=layers)
    ranks = (1, *(3 for _ in layout.modes[1:]), 1)
    return TensorGuide(6, 5, 2, layout, ranks, start="random")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sites", [(0,), (3, 1), (4, 2, 0), tuple(range(5))])
def test_a_part_has_the_factors_of_its_sites(pattern: str, sites: tuple[int, ...]) -> None:
    whole = guide(pattern)
    tensors, _ = whole.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    part = Part(whole, sites)
    own = part.tensors(tensors)
    assert {name: tuple(value.shape) for name, value in own.items()} == part.map.tensor_shapes
    assert part.map.sites == len(sites)
    for found, exact in zip(part.map.factors(own, {}), whole.factors(tensors, {}), strict=True):
        assert close(found, exact[list(sites)])


def test_all_sites_in_order_are_the_whole() -> None:
    whole = guide(PATTERNS[0])
    tensors, _ = whole.init(torch.Generator().manual_seed(0))
    part = Part(whole, tuple(range(5)))
    assert part.map == whole
    assert all(torch.equal(part.tensor(name, value), value) for name, value in tensors.items())


def test_a_map_of_one_site_is_its_only_part() -> None:
    map = LoRA(4, 3, 2)
    assert Part(map, (0,)).map is map
    assert Part(map, (0,)).tensor("lora_down", torch.ones(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("sites", [(), (0, 0), (5,), (-1,)])
def test_sites_that_a_map_does_not_have(sites: tuple[int, ...]) -> None:
    with pytest.raises(ModeError, match="are not some of the 5 of the map, each once"):
        Part(guide(PATTERNS[0]), sites)


def test_maps_that_are_not_cut() -> None:
    layout = Joined.auto("layer proj side f w", Geometry(6, 5, 2), layers=2, projections=2)
    projections = TensorGuide(6, 5, 2, layout, (1, 2, 2, 2, 2, 1), start="random")
    subtracted = TensorGuide(
        6, 5, 2, Joined.auto("layer io1 io2 w", Geometry(6, 5, 2), layers=2), (1, 2, 2, 2, 1)
    )
    for map in (projections, subtracted):
        with pytest.raises(UnsupportedError, match="only plain trains with a layer leg and no proj leg are"):
            Part(map, (0,))
