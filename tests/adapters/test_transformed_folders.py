"""Maps that act on factors of another, or on free params, through every door that any map goes through."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.cli.command import tntune
from tests.support.maps import TRANSFORMED
from tests.support.tolerance import TOLERANCE, close
from tntune.adapters import adapt, adapted_layers, load_adapters, merge, save_adapters, unmerge
from tntune.convert import compare_adapters, export_lora
from tntune.maps import Group, NormBounded, Site, WeightMap, norm_bounded

ALL = pytest.mark.parametrize("map", TRANSFORMED.values(), ids=TRANSFORMED)


def base(map: WeightMap) -> nn.ModuleList:
    """As many layers as the map has sites."""
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(map.in_features, map.out_features) for _ in range(map.sites))


def adapted(map: WeightMap) -> nn.ModuleList:
    """All sites adapted, with standard normal params."""
    paths = tuple(str(k) for k in range(map.sites))
    entry = Site(map, 0.5) if map.sites == 1 else Group(map, paths, (0.5,) * map.sites)
    model = adapt(base(map), {"0": entry})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator)
    return model.eval()


@torch.no_grad()
def outputs(model: nn.ModuleList) -> Tensor:
    x = torch.linspace(-1, 1, 4 * model[0].base.in_features).reshape(4, -1)
    return torch.stack([layer(x) for layer in model])


@ALL
def test_folders_round_trip_bit_for_bit(map: WeightMap, tmp_path: Path) -> None:
    model = adapted(map)
    save_adapters(model, tmp_path / "adapter")
    other = load_adapters(base(map), tmp_path / "adapter")
    assert next(adapted_layers(other))[1].generator.map == map
    assert torch.equal(outputs(other.eval()), outputs(model))


@ALL
def test_merging_is_undone(map: WeightMap) -> None:
    model = adapted(map)
    wanted = outputs(model)
    merge(model)
    assert close(outputs(model), wanted)
    unmerge(model)
    assert torch.equal(outputs(model), wanted)


@ALL
def test_export_is_exact(map: WeightMap, tmp_path: Path) -> None:
    model = adapted(map)
    save_adapters(model, tmp_path / "adapter")
    report = export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert (report.layers, report.rank) == (map.sites, map.width)
    assert report.params_before == map.num_parameters
    compared = compare_adapters(tmp_path / "adapter", tmp_path / "lora")
    assert compared.relative_error < TOLERANCE[torch.float32]
    assert len(compared.layers) == map.sites


@ALL
def test_the_command_line_reads_them(map: WeightMap, tmp_path: Path) -> None:
    save_adapters(adapted(map), tmp_path / "adapter")
    found = tntune("inspect", tmp_path / "adapter", "--json")
    assert found.code == 0
    assert found.json["params"] == map.num_parameters
    assert tntune("verify", tmp_path / "adapter", tmp_path / "adapter", "--tolerance", 1e-12).code == 0
    refused = tntune("round", tmp_path / "adapter", "-o", tmp_path / "small", "--params", 0.5)
    assert refused.code == 2
    assert any(why in refused.err for why in ("has no train of its own to round", "share one map"))


def test_a_cayley_transform_is_made_once_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = norm_bounded.cayley
    monkeypatch.setattr(norm_bounded, "cayley", lambda free: calls.append(1) or original(free))
    model = adapted(NormBounded(5, 4, 3))
    wanted = outputs(model)
    assert torch.equal(outputs(model), wanted)
    assert len(calls) == 1
    with torch.no_grad():
        model[0].generator.free_up.mul_(2)
    assert not torch.equal(outputs(model), wanted)
    assert len(calls) == 2
