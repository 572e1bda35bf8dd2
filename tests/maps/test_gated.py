"""Law: up diag(gate) down on any map."""

import pytest
import torch

from tests.support.maps import EVERY, MAPS, tensors_of
from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.maps import Gated, LoRA, WeightMap, decode_map, encode

GATEABLE = {name: map for name, map in EVERY.items() if map.factor_width == map.width}


@pytest.mark.parametrize("map", GATEABLE.values(), ids=GATEABLE)
def test_factors_are_gated(map: WeightMap) -> None:
    gated = Gated(map)
    params, fixed = tensors_of(gated)
    down, up = map.factors(params, fixed)
    gate = torch.stack([torch.diag(row) for row in params["gate"]])
    assert close(gated.delta(params, fixed), up @ gate @ down)
    for site in range(map.sites):
        for own, whole in zip(
            gated.site_factors(params, fixed, site), gated.factors(params, fixed), strict=True
        ):
            assert close(own[0], whole[site])
    params, fixed = gated.from_factors(down, up)
    assert close(gated.delta(params, fixed), map.delta(*map.from_factors(down, up)))


def test_starts() -> None:
    normal, zero = Gated(LoRA(5, 3, 2)), Gated(LoRA(5, 3, 2, "random"), "zero")
    for map in (normal, zero):
        params, fixed = map.init(torch.Generator().manual_seed(0))
        own = {name: tensor.requires_grad_() for name, tensor in params.items()}
        delta = map.delta(own, fixed)
        assert not delta.any()
        delta.sum().backward()
        assert any(bool(tensor.grad.any()) for tensor in own.values())
    assert normal.init()[0]["gate"].any()


def test_what_it_refuses() -> None:
    with pytest.raises(SpecError, match="never train"):
        Gated(LoRA(5, 3, 2), "zero")
    with pytest.raises(SpecError, match="one of normal, zero"):
        Gated(LoRA(5, 3, 2), "ones")
    with pytest.raises(SpecError, match="without gates"):
        Gated(Gated(LoRA(5, 3, 2)))
    with pytest.raises(SpecError, match="a part of them"):
        Gated(MAPS["concat mean"])


def test_what_cannot_be_decoded() -> None:
    with pytest.raises(SpecError, match=r"kind 'gated': missing keys \['inner'\]"):
        decode_map({"kind": "gated"})
    with pytest.raises(SpecError, match="without gates, not"):
        decode_map({"kind": "gated", "inner": encode(MAPS["joined"])["layout"]})
    with pytest.raises(SpecError, match="serves 6 modules, where 1 are named"):
        decode_map({"kind": "gated", "inner": encode(EVERY["lotr"])}, sites=1)
