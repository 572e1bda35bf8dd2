"""Jacobians and kernels of the tensor family: by network, by trains, by autodiff, and by counting gauges."""

import pytest
import torch
from torch import nn

from tests.support.maps import FAMILY, FLAT, tensors_of
from tests.support.tolerance import close
from tntune.adapters import adapt, adapted_layers
from tntune.errors import SpecError, UnsupportedError
from tntune.maps import DeltaMap, Group, LoRA, LoRTA, LoTR, MetaTT, Site, Stack, WeightMap
from tntune.theory import (
    delta_jacobian,
    jacobian,
    layer_ntk,
    map_jacobian,
    network_jacobian,
    ntk,
)

pytestmark = pytest.mark.statement("T0")

NETWORKS = {name: map for name, map in FAMILY.items() if isinstance(map, DeltaMap)}
TRAINS = {name: map for name, map in FAMILY.items() if map.kind in ("loretta", "delta_train")}
SINGLE = {name: map for name, map in FAMILY.items() if map.sites == 1}


@pytest.mark.parametrize("map", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("of", ["delta", "factors"])
def test_network_and_autodiff_agree(map: DeltaMap, of: str) -> None:
    params, fixed = tensors_of(map)
    J = (delta_jacobian if of == "delta" else jacobian)(map, params, fixed)
    found = network_jacobian(map, params, of=of)
    assert found.num_parameters == map.num_parameters
    assert close(found.gram(), J.mT @ J)
    assert found.effective_dimension == int(torch.linalg.matrix_rank(J))
    assert found.effective_dimension + found.nullity == map.num_parameters


@pytest.mark.parametrize("map", TRAINS.values(), ids=TRAINS)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (3.0, 0.5), (1.0, 0.0)])
def test_trains_and_autodiff_agree(map: WeightMap, scales: tuple[float, float]) -> None:
    params, fixed = tensors_of(map)
    J, first = jacobian(map, params, fixed), map.factors(params, fixed).down.numel()
    J = torch.cat([scales[0] * J[:first], scales[1] * J[first:]])
    found = map_jacobian(map, params, fixed, down_scale=scales[0], up_scale=scales[1])
    assert close(found.gram(), J.mT @ J)
    assert close(found.factor().mT @ found.factor(), J.mT @ J)
    assert found.nullity == map.num_parameters - int(torch.linalg.matrix_rank(J))


@pytest.mark.parametrize("name", ["delta train", "delta train random", "delta train published"])
def test_trains_and_networks_agree(name: str) -> None:
    params, fixed = tensors_of(FAMILY[name])
    by_train = map_jacobian(FAMILY[name], params, fixed).gram()
    assert close(network_jacobian(FAMILY[name], params, of="factors").gram(), by_train)


# Gauges, counted.


def test_a_train_lacks_the_squares_of_its_ranks() -> None:
    map = FAMILY["delta train"]
    assert network_jacobian(map, tensors_of(map)[0]).nullity == sum(r * r for r in map.ranks[1:-1])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_lotr_has_a_gauge_on_both_sides_of_its_cores(rank: int) -> None:
    """ΔW[s] = V G⁻¹ (G C[s] H) H⁻¹ U: two groups of r² directions."""
    map = LoTR(FLAT, rank)
    assert network_jacobian(map, tensors_of(map)[0]).nullity == 2 * rank * rank


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_metatt_has_a_gauge_on_every_bond(rank: int) -> None:
    map = MetaTT(Stack(9, 8, layers=4, projections=3), rank)
    wanted = sum(min(rank, cap) ** 2 for cap in (9, 36, 8))
    assert network_jacobian(map, tensors_of(map)[0]).nullity == wanted


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_cp_has_four_free_scales_in_each_term(rank: int) -> None:
    map = LoRTA(FLAT, rank, heads=2)
    assert network_jacobian(map, tensors_of(map)[0]).nullity == 4 * rank


def test_a_size_without_its_entries() -> None:
    """ΔW of 2^24 entries at each of 4 sites; J is never formed."""
    map = LoTR(Stack(4096, 4096, layers=4), 1)
    found = network_jacobian(map, tensors_of(map)[0])
    params = found.nodes
    gram, core = found.gram(), params["tn_core"][:, 0]
    inner = slice(4096, 4100)  # of the cores: |U|² |V|² on the diagonal, since sites are apart
    scale = params["tn_in"].square().sum() * params["tn_out"].square().sum()
    assert close(gram[inner, inner], scale * torch.eye(4, dtype=torch.float64))
    assert close(gram[0, 0], core.square().sum() * params["tn_out"].square().sum())


def test_what_is_refused() -> None:
    map = FAMILY["lotr"]
    params, fixed = tensors_of(map)
    with pytest.raises(UnsupportedError, match=r"lotr is not made of trains; .* or network_jacobian\(\)"):
        map_jacobian(map, params, fixed)
    with pytest.raises(UnsupportedError, match="lora is no network of ΔW; use map_jacobian"):
        network_jacobian(LoRA(4, 3, 2), {})
    with pytest.raises(SpecError, match="of must be delta or factors, not 'w'"):
        network_jacobian(map, params, of="w")
    large = LoTR(Stack(10_000, 4096, layers=4), 2)
    with pytest.raises(UnsupportedError, match=r"JᵀJ of 28208 parameters .* the limit is 16384"):
        network_jacobian(large, large.init()[0]).gram()


# Kernels.


@pytest.mark.parametrize("map", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_kernels_of_one_layer(map: WeightMap, activation: str) -> None:
    """By the structure of the layer, and by autodiff through it."""
    params, fixed = tensors_of(map)
    x = torch.randn(4, map.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    site = Site(map, 0.5, activation)
    sigma = {"identity": lambda h: h, "tanh": torch.tanh}[activation]

    def outputs(own: dict[str, torch.Tensor]) -> torch.Tensor:
        down, up = map.factors(own, fixed)
        return 0.5 * sigma(x @ down[0].mT) @ up[0].mT

    J = torch.cat([part.flatten(2) for part in torch.func.jacrev(outputs)(params).values()], -1).flatten(0, 1)
    assert close(layer_ntk(site, {**params, **fixed}, x).values, J @ J.mT)


@pytest.mark.parametrize(
    "name", ["lotr", "lorta input heads", "fact tucker", "metatt heads", "tenslora Att_QKV_Depth"]
)
def test_kernels_of_a_model_that_shares_a_map(name: str) -> None:
    """A model of linear layers: its kernel is that of J through all layers at once."""
    map = FAMILY[name]
    d, q = map.in_features, map.out_features
    roles = [f"{i}" for i in range(map.sites)]
    model = nn.ModuleDict({role: nn.Linear(d, q) for role in roles}).double()

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum((k + 1) * layer(x + k) for k, layer in enumerate(self.layers.values()))

    whole = Sum()
    group = Group(map, tuple(f"layers.{role}" for role in roles), (0.5,) * map.sites)
    adapt(whole, {"all": group}, dtype=torch.float64).eval()
    params, fixed = tensors_of(map)
    (generator,) = {layer.generator for _, layer in adapted_layers(whole)}
    generator.load_state_dict(params)
    x = torch.randn(3, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def outputs(own: dict[str, torch.Tensor]) -> torch.Tensor:
        deltas = map.delta(own, fixed)
        return sum(0.5 * (k + 1) * (x + k) @ delta.mT for k, delta in enumerate(deltas))

    J = torch.cat([part.flatten(2) for part in torch.func.jacrev(outputs)(params).values()], -1).flatten(0, 1)
    assert close(ntk(whole, x, lambda net, batch: net(batch)).values, J @ J.mT)
