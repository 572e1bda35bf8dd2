"""Law: any map of the family is analysed, and every number is that of the dense Jacobian or of autodiff."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from tests.cli.command import tntune
from tests.report.sample import expanded, layer_of
from tests.support.maps import EVERY, FAMILY, TRANSFORMED, tensors_of
from tests.support.tolerance import close
from tntune.adapters import adapt, save_adapters
from tntune.maps import DeltaTrain, Group, LoTR, Member, MetaTT, Site, Stack, WeightMap, single_site
from tntune.report import AdaptedLayer, Probe, analyze_adapter
from tntune.report.conditioning import layer_jacobian
from tntune.report.kernel import layer_kernel
from tntune.report.kernel_bounds import kernel_bounds
from tntune.report.network import network_plan
from tntune.theory import delta_jacobian, jacobian, layer_ntk

MAPS = {**FAMILY, **TRANSFORMED, "joined layers": EVERY["joined layers"]}
ALL = pytest.mark.parametrize("name", MAPS)
WIDE = LoTR(Stack(40, 30), 2, start="random")
PROBE = Probe(samples=6, outputs=3)


def alone(map: WeightMap, activation: str = "identity") -> AdaptedLayer:
    """The second site of a shared map, or the one of another, with standard normal params."""
    params, fixed = tensors_of(map)
    own, tensors = single_site(map, {**params, **fixed}, min(1, map.sites - 1))
    return AdaptedLayer("h.0.fc", Site(own, 0.5, activation), tensors)


def dense(layer: AdaptedLayer, of: str) -> Tensor:
    """Non-zero eigenvalues of J Jᵀ by autodiff, descending."""
    route = delta_jacobian if of == "delta" else jacobian
    values = torch.linalg.svdvals(route(layer.site.map, layer.tensors, layer.tensors)).square()
    return values[values > 1e-12 * values[0]]


@ALL
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_spectra_are_those_of_the_dense_jacobian(name: str, activation: str) -> None:
    layer = alone(MAPS[name], activation)
    found = layer_jacobian(layer)
    assert found.spectrum is not None
    assert found.spectrum.size == found.params == layer.site.map.num_parameters
    assert close(expanded(found.spectrum.values, found.spectrum.counts), dense(layer, found.of))
    if found.nullity_formula is not None:
        assert found.nullity_formula <= found.spectrum.nullity


@pytest.mark.parametrize(
    "map", [WIDE, MetaTT(Stack(30, 40), 2, heads=4, start="random")], ids=["lotr", "metatt"]
)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_long_legs_are_made_compact(map: WeightMap, activation: str) -> None:
    layer = alone(map, activation)
    found = layer_jacobian(layer)
    assert found.spectrum is not None
    assert max(found.spectrum.counts) > 10
    assert close(expanded(found.spectrum.values, found.spectrum.counts), dense(layer, found.of))


def test_what_is_too_large_has_no_spectrum() -> None:
    layer = alone(LoTR(Stack(60, 60), 20, start="random"))
    assert layer_jacobian(layer).spectrum is None
    bounds = kernel_bounds(layer, layer_kernel(layer, PROBE), layer_jacobian(layer))
    assert [bound.label for bound in bounds] == ["T6"]


def test_a_train_of_delta_has_its_nullity_its_gauge_and_its_bounds() -> None:
    map = DeltaTrain((3, 4), (5, 3), (1, 2, 4, 2, 1), start="random")
    layer = layer_of(map)
    found = layer_jacobian(layer)
    assert (found.of, found.nullity_formula, found.gauge_fixed_by) == ("delta", 2**2 + 4**2 + 2**2, "T2")
    assert found.spectrum is not None
    assert found.gauge_fixed is not None
    assert found.spectrum.nullity == found.nullity_formula == map.num_parameters - found.gauge_fixed.rank
    bounds = (*found.bounds, *kernel_bounds(layer, layer_kernel(layer, PROBE), found))
    assert {bound.label for bound in bounds} == {"T3", "T3'", "T5", "E26", "E26+", "T6"}
    assert all(bound.holds for bound in bounds if bound.label != "E26+")
    assert (layer.ranks, layer.modes) == ("1-2-4-2-1", "3-4-5-3")


def shared_folder(path: Path, name: str) -> Path:
    """A folder of one shared map, with standard normal params, in float64."""
    save_adapters(shared_model(name), path)
    return path


def shared_model(name: str) -> nn.ModuleDict:
    map = MAPS[name]
    torch.manual_seed(0)
    layers = {f"m{k}": nn.Linear(map.in_features, map.out_features) for k in range(map.sites)}
    model = nn.ModuleDict(layers).double()
    adapt(model, {"all": Group(map, tuple(layers), (0.5,) * map.sites)}, dtype=torch.float64)
    params, _ = tensors_of(map, seed=3)
    with torch.no_grad():
        for own, wanted in zip(model["m0"].generator.parameters(), params.values(), strict=True):
            own.copy_(wanted)
    return model


SHARED = pytest.mark.parametrize(
    "name", ["lotr", "lorta", "tenslora Att_QKV_Depth", "metatt", "joined layers"]
)


@SHARED
def test_each_layer_of_a_group_by_the_params_that_it_reads(name: str, tmp_path: Path) -> None:
    """What it does not read moves no output of it: its kernel is that over all params of the group."""
    folder, map = shared_folder(tmp_path / "shared", name), MAPS[name]
    found = analyze_adapter(folder, PROBE)
    assert (found.params, len(found.layers)) == (map.num_parameters, map.sites)
    tensors, _ = tensors_of(map, seed=3)
    for k, analysis in enumerate(found.layers):
        assert analysis.layer.site.map.kind == map.kind
        assert analysis.jacobian.params < map.num_parameters
        assert all(bound.holds for bound in analysis.bounds if bound.label != "E26+")
        x = PROBE.inputs_of(analysis.layer.name, map.in_features)
        directions = PROBE.readouts(map.out_features).expand(len(x), -1, -1)
        whole = layer_ntk(Site(Member(map, k), 0.5), tensors, x, gradients=directions)
        wanted = torch.linalg.eigvalsh(whole.values).flip(0)[: analysis.kernel.spectrum.rank]
        eigenvalues = torch.tensor(analysis.kernel.spectrum.eigenvalues, dtype=torch.float64)
        assert close(eigenvalues, wanted)


@SHARED
def test_the_command_analyses_groups(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder, page = shared_folder(tmp_path / "shared", name), tmp_path / "page.html"
    ran = tntune("analyze", folder, "--samples", 5, "--readouts", 3, "--html", page)
    assert ran.code == 0, ran.err
    assert "m0" in ran.out
    assert page.stat().st_size > 1000
    assert tntune("analyze", folder, "--samples", 5, "--readouts", 3, "--json").code == 0


class Sum(nn.Module):
    """What the first two layers of a model add up to."""

    def __init__(self, layers: nn.ModuleDict) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.m0(x)) + torch.tanh(self.m1(x))


@pytest.mark.parametrize("name", ["lotr", "joined layers"])
def test_the_kernel_of_a_network_knows_what_layers_share(name: str, tmp_path: Path) -> None:
    """The gradient of a shared tensor is the sum over its layers."""
    folder, model = shared_folder(tmp_path / "shared", name), shared_model(name)
    x = torch.randn(4, MAPS[name].in_features, generator=torch.Generator().manual_seed(5)).double()
    adapted = Sum(model)
    params = {key: p.detach() for key, p in adapted.named_parameters() if "generator" in key}
    parts = jacrev(lambda own: functional_call(adapted, own, x))(params).values()
    rows = torch.cat([part.flatten(2).flatten(0, 1) for part in parts], 1)
    bases = nn.ModuleDict({key: layer.base for key, layer in model.items()})
    found = network_plan(folder, Sum(bases), x, output="logits").run()
    assert close(found.values, rows @ rows.mT)
