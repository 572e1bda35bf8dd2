"""Layers that apply their factors as products: the same function as with whole factors, in every state."""

import copy

import pytest
import torch
from torch import nn

from tests.support.tolerance import close
from tntune.adapters import AdaptedLinear, FactorGenerator
from tntune.maps import Geometry, TensorGuide, build_map
from tntune.maps.chain import Chains

SIZES = Geometry(24, 20, 40)
WIDE = {
    "random": build_map("tensorguide", SIZES, rank=3, start="random"),
    "zero": build_map("tensorguide", SIZES, rank=3),
    "latent": build_map("tensorguide", SIZES, rank=2, latent="fixed", start="random"),
}
ALL = pytest.mark.parametrize("map", WIDE.values(), ids=WIDE)


def layer(map: TensorGuide, activation: str = "identity") -> AdaptedLinear:
    base = nn.Linear(*SIZES[:2], dtype=torch.float64)
    generator = FactorGenerator.fresh(map, torch.Generator().manual_seed(0), dtype=torch.float64)
    return AdaptedLinear(base, generator, scale=0.7, activation=activation)


def whole(one: AdaptedLinear) -> AdaptedLinear:
    """The same layer, which applies whole factors."""
    other = copy.deepcopy(one)
    other.generator._halves = None
    return other


@ALL
@pytest.mark.parametrize("activation", ["identity", "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_output_and_gradients_are_those_of_whole_factors(
    map: TensorGuide, activation: str, training: bool
) -> None:
    own = layer(map, activation).train(training)
    other = whole(own)
    x = torch.randn(2, 3, SIZES.in_features, dtype=torch.float64)
    assert len(own.generator(0, Chains).down) == 2
    assert len(other.generator(0, Chains).down) == 1
    for one in (own, other):
        one(x).square().sum().backward()
    assert close(own(x), other(x))
    pairs = zip(own.generator.parameters(), other.generator.parameters(), strict=True)
    assert all(close(first.grad, second.grad) for first, second in pairs)


def test_a_zero_start_is_exact() -> None:
    own = layer(WIDE["zero"])
    x = torch.randn(5, SIZES.in_features, dtype=torch.float64)
    assert torch.equal(own(x), own.base(x))


@ALL
def test_merging_is_the_same_function(map: TensorGuide) -> None:
    own = layer(map).eval()
    x = torch.randn(5, SIZES.in_features, dtype=torch.float64)
    before = own(x)
    own.merge()
    assert close(own(x), before)


@torch.no_grad()
def test_products_are_kept_until_a_core_changes() -> None:
    generator = layer(WIDE["random"]).eval().generator
    first = generator(0, Chains)
    assert generator(0, Chains) is first
    generator.tt_core_1.mul_(2)
    again = generator(0, Chains)
    assert again is not first
    assert close(again.down[0], 2 * first.down[0])


def test_whole_factors_and_products_are_kept_apart() -> None:
    generator = layer(WIDE["random"]).eval().generator
    with torch.no_grad():
        factors, chains = generator(0), generator(0, Chains)
        assert generator(0) is factors
    assert close(chains.down[1] @ chains.down[0], factors.down[0])


def test_a_resampled_latent_is_drawn_for_both_halves_together() -> None:
    map = build_map("tensorguide", Geometry(24, 20, 64), rank=2, latent="resample", start="random")
    generator = FactorGenerator.fresh(map).train()
    torch.manual_seed(3)
    chains = generator(0, Chains)
    torch.manual_seed(3)
    factors = generator(0)
    assert len(chains.up) == 2
    assert close(chains.up[1] @ chains.up[0], factors.up[0])
    torch.manual_seed(4)
    assert not torch.equal(generator(0, Chains).up[0], chains.up[0])


def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    own = layer(WIDE["random"])
    x = torch.randn(5, SIZES.in_features, dtype=torch.float64)
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    assert close(compiled(x), own(x))


def test_half_precision_inputs_keep_their_dtype() -> None:
    own = AdaptedLinear(nn.Linear(24, 20).bfloat16(), FactorGenerator.fresh(WIDE["random"]))
    assert own(torch.ones(2, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
