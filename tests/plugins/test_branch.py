"""Law: a chain's cores are those of a weighed tensor, whose distances are those of ΔW to first order."""

import math
from dataclasses import replace

import pytest
import torch

from tests.plugins.models import fill, number, tower
from tests.support.maps import EVERY, MAPS, joined
from tests.support.tolerance import close
from tntune.errors import TargetError, UnsupportedError
from tntune.maps import LoRA, WeightMap
from tntune.plugins import branches
from tntune.plugins.branch import Branch, Chain, chains, with_ranks
from tntune.tt import bond_spectra, cores, dense, tt_tensor

CHAINED: dict[str, WeightMap] = {
    **{name: MAPS[name] for name in ("lora", "tt_lora", "tt_lora fixed", "concat random", "joined mean")},
    **{
        name: MAPS[name]
        for name in ("joined", "joined digits", "joined interleaved", "joined io beside side")
    },
    "joined io": joined("w io", (5, 3, 2)),
    "delta train": EVERY["delta train"],
}
CHAINED = {name: map for name, map in CHAINED.items() if map.sites == 1}
EACH = pytest.mark.parametrize("map", CHAINED.values(), ids=CHAINED)


def branch_of(map: WeightMap, *, scale: float = 0.5) -> Branch:
    return branches(tower(map, scale=scale))[0]


def held(branch: Branch, names: tuple[str, ...]) -> list[torch.Tensor]:
    return [getattr(branch.generator, name) for name in names]


@EACH
def test_params_come_back_from_cores(map: WeightMap) -> None:
    branch = branch_of(map)
    names = []
    for chain in chains(branch):
        own = held(branch, chain.names)
        names += chain.names
        for one, other in zip(chain.params(chain.cores(own), own), own, strict=True):
            assert close(one, other)
    assert set(names) == set(map.param_shapes)
    assert with_ranks(map, [chain.ranks for chain in chains(branch)]) == map


@EACH
def test_small_changes_weigh_at_least_what_they_do_to_delta(map: WeightMap) -> None:
    """|δΔW|² <= 2 |δw|², with the weights before; the distance of a LoRA or a train of ΔW is exact."""
    branch = branch_of(map)
    parts = chains(branch)
    before, delta = [weighed(branch, chain) for chain in parts], product(branch)
    fill_by(branch, 1e-6)
    moved = [weighed(branch, chain) for chain in parts]
    distance = sum(float((one - other).square().sum()) for one, other in zip(moved, before, strict=True))
    change = float((product(branch) - delta).square().sum())
    assert change <= (2 + 1e-3) * distance * latent_gain(map)
    if map.kind in ("lora", "delta_train"):
        assert close(number(change / distance), number(1.0), factor=1e3)


def weighed(branch: Branch, chain: Chain) -> torch.Tensor:
    """The tensor of a chain."""
    return dense(tt_tensor(chain.cores(held(branch, chain.names))))


def product(branch: Branch) -> torch.Tensor:
    """ΔW of every site."""
    down, up = branch.factors()
    return up @ down


def latent_gain(map: WeightMap) -> float:
    """What a fixed latent can at most make of a change of the tensor that it is contracted with, squared."""
    trains = [getattr(map, name) for name in ("train", "down_train", "up_train") if hasattr(map, name)]
    return max([1.0, *(float(t.latent.power()) for t in trains if t.latent.stored)])


@torch.no_grad()
def fill_by(branch: Branch, spread: float) -> None:
    torch.manual_seed(7)
    for parameter in branch.generator.parameters():
        parameter.add_(spread * torch.randn_like(parameter))


@EACH
def test_scores_are_singular_values_of_unfoldings(map: WeightMap) -> None:
    """Of the weighed tensor, whatever the gauge of the cores."""
    branch = branch_of(map)
    for chain in chains(branch):
        own = tt_tensor(chain.cores(held(branch, chain.names)))
        whole = weighed(branch, chain)
        for k, values in enumerate(bond_spectra(own), 1):
            wanted = torch.linalg.svdvals(whole.reshape(math.prod(whole.shape[:k]), -1))
            count = min(len(values), len(wanted))
            assert close(values[:count], wanted[:count])


def test_weights_of_both_sides() -> None:
    """Entries of down bear s |up|₂, those of up s |down|₂; read off against the unweighed train."""
    map = MAPS["joined digits"]
    branch = branch_of(map, scale=-3.0)
    (chain,) = chains(branch)
    plain = replace(chain, weights=torch.ones_like(chain.weights))
    own = held(branch, chain.names)
    found, bare = (dense(tt_tensor(c.cores(own))) for c in (chain, plain))
    down, up = (torch.linalg.matrix_norm(f.detach(), ord=2) for f in branch.generator.stored())
    assert close(found[0], 3 * float(up) * bare[0])  # the side comes first in this layout
    assert close(found[1], 3 * float(down) * bare[1])


def test_branches_are_those_of_generators() -> None:
    model = tower(LoRA(5, 4, 2), LoRA(4, 3, 2))
    found = branches(model)
    assert [branch.name for branch in found] == ["0", "2"]
    assert [branch.layers for branch in found] == [(model[0],), (model[2],)]
    found[0].adopt(LoRA(5, 4, 1), {"lora_down": torch.ones(1, 5), "lora_up": torch.ones(4, 1)})
    assert model[0].spec.map == model[0].generator.map == LoRA(5, 4, 1)
    assert len(cores(tt_tensor(chains(found[0])[0].cores(held(found[0], ("lora_up", "lora_down")))))) == 2
    fill(model[0])


def test_what_it_refuses() -> None:
    with pytest.raises(TargetError, match="no adapted layers"):
        branches(torch.nn.Linear(3, 3))
    with pytest.raises(UnsupportedError, match="subtracts a frozen train"):
        chains(branch_of(MAPS["concat"]))
    boundary = replace(MAPS["concat boundary"], start="random")
    with pytest.raises(UnsupportedError, match="boundary ranks 2 and 2"):
        chains(branch_of(boundary))
    with pytest.raises(UnsupportedError, match="'loretta' has no bonds"):
        chains(branch_of(EVERY["loretta"]))
    with pytest.raises(UnsupportedError, match="'loretta' has no bonds"):
        with_ranks(EVERY["loretta"], [])


def test_new_params_train_where_the_old_ones_did() -> None:
    """A frozen param beside a trained one, as a chain of sampled factors has it."""
    model = tower(LoRA(5, 4, 2))
    model[0].generator.lora_down.requires_grad_(False)
    branches(model)[0].adopt(LoRA(5, 4, 1), {"lora_down": torch.ones(1, 5), "lora_up": torch.ones(4, 1)})
    own = {name: param.requires_grad for name, param in model[0].generator.named_parameters()}
    assert own == {"lora_down": False, "lora_up": True}
