"""Chains: the factors as products, equal to the factors, with their gradients, wherever a bond allows it."""

from functools import reduce

import pytest
import torch
from torch import Tensor

from tests.support.maps import MAPS, joined, tensors_of
from tests.support.tolerance import close
from tntune.maps import Geometry, Joined, Latent, TensorGuide, WeightMap, build_map
from tntune.maps.base import Factors
from tntune.maps.chain import Chains, halves

SEPARATED = {name: map for name, map in MAPS.items() if map.sites == 1 and halves(map) is not None} | {
    "width first": joined("w (side f1) f2", (6, 4, 3)),
    "side apart": joined("f1 f2 side w", (7, 5, 4)),
    "joint digits": joined("io1 io2 w1 w2", (5, 4, 6), start="random"),
    "latent": joined("f1 f2 w1 (side w2)", (5, 7, 6), latent="fixed"),
    "latent, width first": joined("(w side) f", (5, 5, 2), latent="resample"),
}
ALL = pytest.mark.parametrize("map", SEPARATED.values(), ids=SEPARATED)


def product(matrices: tuple[Tensor, ...]) -> Tensor:
    return reduce(lambda first, second: second @ first, matrices)


@ALL
def test_products_are_the_factors(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    chains, factors = halves(map)(params, fixed), map.factors(params, fixed)
    assert len(chains.down) == len(chains.up) == 2
    assert close(product(chains.down), factors.down[0])
    assert close(product(chains.up), factors.up[0])


@ALL
def test_gradients_are_those_of_the_factors(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    weights = [torch.randn_like(factor) for factor in map.factors(params, fixed)]

    def loss(own: dict[str, Tensor], *, whole: bool) -> Tensor:
        if whole:
            made = map.factors(own, fixed)
        else:
            chains = halves(map)(own, fixed)
            made = Factors(product(chains.down)[None], product(chains.up)[None])
        return sum((factor * weight).square().sum() for factor, weight in zip(made, weights, strict=True))

    found, wanted = (torch.func.grad(lambda own, w=w: loss(own, whole=w))(params) for w in (False, True))
    assert all(close(found[name], wanted[name]) for name in params)


def test_what_has_products() -> None:
    """A joined layout with its widths at one end, and nothing that mixes the halves otherwise."""
    assert {"joined", "joined digits", "joined unequal primes", "joined io"} <= set(SEPARATED)
    without = ("lora", "concat", "joined interleaved", "joined mean", "joined io digits", "joined layers")
    assert all(halves(MAPS[name]) is None for name in without)


@pytest.mark.parametrize(
    ("width", "rank", "pays"), [(8, 4, False), (16, 2, False), (32, 4, True), (32, 16, True), (32, 17, False)]
)
def test_products_pay_where_the_bond_is_narrow(width: int, rank: int, pays: bool) -> None:
    products = halves(build_map("tensorguide", Geometry(96, 64, width), rank=rank))
    assert products.pays is pays


def test_the_bond_counts_the_latent_legs_of_the_features() -> None:
    layout = Joined.auto("f1 f2 (side w)", Geometry(9, 9, 4))
    map = TensorGuide(9, 9, 4, layout, (1, 2, 3, 1), Latent("fixed", (2, 3, 5)))
    assert halves(map).bond == 3 * 2 * 3


def test_products_have_fewer_entries_where_they_pay() -> None:
    map = build_map("tensorguide", Geometry(96, 64, 32), rank=4, start="random")
    params, fixed = map.init(torch.Generator().manual_seed(0))
    chains, factors = halves(map)(params, fixed), map.factors(params, fixed)
    entries = sum(matrix.numel() for chain in chains for matrix in chain)
    assert 2 * entries < factors.down.numel() + factors.up.numel()


def test_a_chain_of_one() -> None:
    down, up = Chains.of(Factors(torch.ones(1, 2, 5), torch.ones(1, 3, 2)))
    assert [tuple(matrix.shape) for matrix in (*down, *up)] == [(2, 5), (3, 2)]
