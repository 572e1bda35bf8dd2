"""Law: sizes by block are those that were asked for, in models of ours and of PEFT."""

import pytest
from torch import nn

from tests.support.models import Tower
from tntune.adapters import AdapterSpec, adapt, adapted_layers
from tntune.errors import SpecError
from tntune.plugins import by_block, linear_sizes, scheduled_sites


def test_linear_sizes_have_both_ends_and_their_mean() -> None:
    """PRILoRA's numbers: 12 layers from 4 to 12, 8 on average."""
    sizes = linear_sizes(12, first=4, last=12)
    assert sizes[0] == 4
    assert sizes[-1] == 12
    assert sum(sizes) == 12 * 8
    assert list(sizes) == sorted(sizes)
    assert linear_sizes(12, first=12, last=4) == sizes[::-1]
    assert linear_sizes(1, first=5, last=9) == (5,)


@pytest.mark.parametrize("what", ["width", "rank"])
def test_each_target_has_its_size(what: str) -> None:
    model = Tower(blocks=3)
    spec = AdapterSpec(targets=("up", "down"), width=4, rank=4, alpha=8.0)
    names = tuple(spec.sites_for(model))
    sizes = by_block(names, linear_sizes(3, first=1, last=3))
    assert sizes == {f"blocks.{k}.{name}": k + 1 for k in range(3) for name in ("up", "down")}
    sites = scheduled_sites(model, spec, sizes, what=what)
    plain = spec.sites_for(model)
    for name, site in sites.items():
        width = sizes[name] if what == "width" else 4
        assert site.map.width == width
        assert site.scale == 8.0 / width
        assert max(site.map.ranks) <= (4 if what == "width" else sizes[name])
        assert site.map.latent == plain[name].map.latent
    adapt(model, sites)
    assert [name for name, _ in adapted_layers(model)] == list(names)


def test_latents_differ_as_they_do_without_a_schedule() -> None:
    model, spec = Tower(blocks=2), AdapterSpec(targets=("up",), width=2, latent="fixed", seed=5)
    sites = scheduled_sites(model, spec, {"blocks.0.up": 2, "blocks.1.up": 3})
    assert [site.map.latent.seed for site in sites.values()] == [5, 6]


@pytest.mark.peft
def test_by_block_is_a_rank_pattern() -> None:
    peft = pytest.importorskip("peft")
    from tntune.peft import TensorGuideConfig

    targets = [f"blocks.{k}.{name}" for k in range(12) for name in ("up", "down")]
    sizes = by_block(targets, linear_sizes(12, first=1, last=4))
    config = TensorGuideConfig(r=2, ranks=2, target_modules=["up", "down"], rank_pattern=sizes)
    model = peft.get_peft_model(Tower(blocks=12), config)
    layers = dict(model.base_model.model.named_modules())
    assert {name: layers[name].r["default"] for name in targets} == sizes


def test_what_they_refuse() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(SpecError, match=r"1 sizes given for the 2 blocks \[0, 1\]"):
        by_block(["h.0.q", "h.1.q"], [3])
    with pytest.raises(SpecError, match="belongs to no block"):
        by_block(["head"], [3])
    with pytest.raises(SpecError, match=r"differ in \['1'\]"):
        scheduled_sites(model, AdapterSpec(), {"0": 3})
    with pytest.raises(SpecError, match="lotr"):
        scheduled_sites(model, AdapterSpec(method="lotr", rank=2), {"0": 3, "1": 3}, what="rank")
    with pytest.raises(SpecError, match="what='depth'"):
        scheduled_sites(model, AdapterSpec(), {"0": 3, "1": 3}, what="depth")
    with pytest.raises(SpecError, match="first must be a positive integer"):
        linear_sizes(3, first=0, last=2)


def test_a_budget_leaves_no_sizes_to_schedule() -> None:
    with pytest.raises(SpecError, match="params=90 is a budget of all layers together"):
        scheduled_sites(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(params=90), {"0": 4})
