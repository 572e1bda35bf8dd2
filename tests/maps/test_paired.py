"""The paired start: opposite units side by side, and what was zero stays zero."""

import pytest
import torch

from tests.support.maps import joined
from tntune.maps import Geometry, LoRA, WeightMap, build_map
from tntune.maps.paired import paired

EVEN = {
    "lora": LoRA(5, 3, 4),
    "tt_lora": build_map("tt_lora", Geometry(6, 4, 2)),
    "default": build_map("tensorguide", Geometry(12, 8, 4)),
    "latent": build_map("tensorguide", Geometry(12, 8, 4), latent="fixed"),
    "digits": joined("w2 f side w1", (5, 3, 4)),
    "io": joined("io1 w io2", (5, 4, 2), latent="fixed"),
    "layers": joined("layer proj side f1 f2 w", (4, 4, 2), layers=3, projections=2),
}
KEPT = {"odd": LoRA(5, 3, 3), "flat": build_map("tensorguide", Geometry(5, 3, 4), layout="concat")}


def started(map: WeightMap) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    params, fixed = map.init(torch.Generator().manual_seed(0))
    return paired(map, params), paired(map, fixed)


@pytest.mark.parametrize("map", EVEN.values(), ids=EVEN)
def test_units_are_opposite(map: WeightMap) -> None:
    down, up = map.factors(*started(map))
    half = map.width // 2
    assert torch.equal(down[:, half:], -down[:, :half])
    assert down.abs().amax(dim=-1).min() > 0
    assert not up.any()


@pytest.mark.parametrize("map", EVEN.values(), ids=EVEN)
def test_a_relu_of_few_units_is_never_dead(map: WeightMap) -> None:
    down, _ = map.factors(*started(map))
    x = torch.randn(100, map.in_features, generator=torch.Generator().manual_seed(1))
    active = torch.relu(torch.einsum("nd,swd->snw", x, down)) > 0
    assert bool((active.sum(-1) == map.width // 2).all())


@pytest.mark.parametrize("map", KEPT.values(), ids=KEPT)
def test_other_starts_are_kept(map: WeightMap) -> None:
    params, fixed = map.init(torch.Generator().manual_seed(0))
    assert all(torch.equal(paired(map, t)[name], t[name]) for t in (params, fixed) for name in t)
