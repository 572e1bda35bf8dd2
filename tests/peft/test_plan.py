"""Plans: from fields of a configuration to maps, and from paths of modules to the grid of a shared train."""

import itertools
import random

import pytest
import torch

pytest.importorskip("peft")

from tests.peft.models import MARKS
from tntune.errors import ModeError, SpecError
from tntune.maps import LoRA, TensorGuide, TTLoRA
from tntune.maps.site import Site
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig
from tntune.peft.plan import Sizes, plan_groups, plan_site

pytestmark = MARKS

SQUARE = (12, 12)
GRID = {f"h.{i}.{name}": SQUARE for i in range(3) for name in ("q", "v")}


def shared(**fields: object) -> SharedTensorGuideConfig:
    return SharedTensorGuideConfig(**{"r": 4, "ranks": 3, **fields})


def legs(targets: dict[str, Sizes], **fields: object) -> dict[str, int]:
    (group,) = plan_groups(shared(**fields), targets).values()
    return group.map.layout.legs


def test_layers_and_projections_fill_a_grid() -> None:
    (group,) = plan_groups(shared(), GRID).values()
    assert group.modules == tuple(GRID)
    assert (group.map.layout.legs["layer"], group.map.layout.legs["proj"]) == (3, 2)
    assert group.map.sites == 6


def test_projections_keep_their_place_in_every_layer() -> None:
    """Whatever order the modules of a block come in, one role has one index."""
    shuffled = list(GRID)
    random.Random(0).shuffle(shuffled)
    (group,) = plan_groups(shared(), dict.fromkeys(shuffled, SQUARE)).values()
    roles = [module.rpartition(".")[2] for module in group.modules]
    assert set(group.modules) == set(GRID)
    assert roles[:2] == roles[2:4] == roles[4:]


def test_a_number_within_a_name_is_no_block() -> None:
    named = {f"h2o.{module}": SQUARE for module in GRID}
    assert legs(named) == legs(GRID)


def test_targets_that_fill_no_grid_are_a_list_of_layers() -> None:
    ragged = {name: SQUARE for name in GRID if name != "h.1.v"}
    assert {"layer": 5}.items() <= legs(ragged).items()
    (group,) = plan_groups(shared(), ragged).values()
    assert group.modules == tuple(ragged)


def test_legs_of_size_one_are_left_out_of_the_default_layout() -> None:
    one = {"h.0.q": SQUARE}
    assert not {"layer", "proj"} & set(legs(one))
    assert "proj" not in legs({name: SQUARE for name in GRID if name.endswith("q")})
    assert "layer" not in legs({name: SQUARE for name in GRID if name.startswith("h.0")})
    assert {"layer", "proj"} <= set(legs(one, layout="layer proj f1 f2 (side w)"))


def test_targets_of_other_sizes_or_widths_share_no_train() -> None:
    targets = {**GRID, "h.0.up": (12, 20), "h.1.up": (12, 20), "h.0.down": (20, 12)}
    groups = plan_groups(shared(rank_pattern={"h.0.q": 2}), targets)
    assert {name: group.map.sites for name, group in groups.items()} == {
        "12x12r2": 1,
        "12x12": 5,
        "12x20": 2,
        "20x12": 1,
    }
    assert {module for group in groups.values() for module in group.modules} == set(targets)
    assert groups["12x12r2"].map.width == 2


def test_a_described_group_must_have_the_targets_of_the_model() -> None:
    groups = plan_groups(shared(), GRID)
    config = shared(groups={name: group.to_json() for name, group in groups.items()})
    assert plan_groups(config, GRID) == groups
    renamed = {name.replace("h.0.q", "h.9.q"): sizes for name, sizes in GRID.items()}
    with pytest.raises(
        SpecError, match=r"6 targets, the model 6: \['h.0.q'\] are not .*\['h.9.q'\] have no place"
    ):
        plan_groups(config, renamed)
    with pytest.raises(ModeError, match=r"h.0.q has \(in, out\) = \(12, 8\), but its map \(12, 12\)"):
        plan_groups(config, {**GRID, "h.0.q": (12, 8)})


def test_a_described_site_must_be_of_the_target() -> None:
    site = plan_site(TensorGuideConfig(r=3, ranks=2), "a", (12, 8))
    config = TensorGuideConfig(r=3, ranks=2, sites={"a": site.to_json()})
    assert plan_site(config, "a", (12, 8)) == site
    with pytest.raises(
        SpecError, match=r"b is a target, but .* describes other ones: \['a'\].*set its sites to None"
    ):
        plan_site(config, "b", (12, 8))
    with pytest.raises(ModeError, match=r"a has \(in, out\) = \(12, 9\), but its map \(12, 8\)"):
        plan_site(config, "a", (12, 9))


def test_latents_of_two_targets_differ() -> None:
    config = TensorGuideConfig(r=4, ranks=3, latent="fixed")
    drawn = [plan_site(config, f"h.{i}.q", SQUARE).map.init()[1]["tt_latent"] for i in range(3)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    again = plan_site(config, "h.1.q", SQUARE).map.init()[1]["tt_latent"]
    assert torch.equal(again, drawn[1])


def test_patterns_choose_width_and_scale() -> None:
    config = TensorGuideConfig(r=4, alpha=8, rank_pattern={"q": 2}, alpha_pattern={"h.1.v": 2, "q": 6})
    found = {name: plan_site(config, name, SQUARE) for name in ("h.0.q", "h.0.v", "h.1.v")}
    assert {name: (site.map.width, site.scale) for name, site in found.items()} == {
        "h.0.q": (2, 3.0),
        "h.0.v": (4, 2.0),
        "h.1.v": (4, 0.5),
    }


def test_without_alpha_the_scale_is_one() -> None:
    config = TensorGuideConfig(r=4, rank_pattern={"q": 2})
    assert plan_site(config, "q", SQUARE).scale == plan_site(config, "v", SQUARE).scale == 1.0


@pytest.mark.parametrize("method", ["tensorguide", "tt_lora"])
@pytest.mark.parametrize("params", [0.9, 0.5, 0.35])
def test_the_largest_ranks_within_a_budget_are_taken(method: str, params: float) -> None:
    config = TensorGuideConfig(r=8, params=params, method=method)
    budget = params * 8 * (48 + 36)
    chosen = plan_site(config, "q", (48, 36)).map
    cap = max(chosen.ranks) if isinstance(chosen, TensorGuide) else max(chosen.down_train.ranks)
    larger = plan_site(TensorGuideConfig(r=8, ranks=cap + 1, method=method), "q", (48, 36)).map
    assert chosen.num_parameters <= budget
    assert larger.num_parameters > budget or larger.num_parameters == chosen.num_parameters


def test_a_shared_budget_counts_all_targets() -> None:
    config = shared(ranks=None, params=0.25)
    (group,) = plan_groups(config, GRID).values()
    assert group.map.num_parameters <= 0.25 * 6 * 4 * 24
    (larger,) = plan_groups(shared(ranks=max(group.map.ranks) + 1), GRID).values()
    assert larger.map.num_parameters > 0.25 * 6 * 4 * 24


def test_a_budget_below_rank_one_is_refused() -> None:
    with pytest.raises(SpecError, match=r"budget of 1 parameters for q is less than the \d+ of rank 1"):
        plan_site(TensorGuideConfig(r=4, params=0.02), "q", SQUARE)


def test_a_list_gives_every_inner_bond() -> None:
    assert plan_site(TensorGuideConfig(r=4, ranks=[2, 3]), "q", SQUARE).map.ranks == (1, 2, 3, 1)
    with pytest.raises(SpecError, match=r"a list of ranks is for one train, and method 'tt_lora' has"):
        plan_site(TensorGuideConfig(r=4, ranks=[2, 3], method="tt_lora"), "q", SQUARE)


@pytest.mark.parametrize(
    ("method", "kind"), [("tensorguide", TensorGuide), ("tt_lora", TTLoRA), ("lora", LoRA)]
)
def test_methods_are_maps(method: str, kind: type) -> None:
    site = plan_site(TensorGuideConfig(r=4, method=method, activation="relu"), "q", SQUARE)
    assert isinstance(site, Site)
    assert isinstance(site.map, kind)
    assert site.activation == "relu"
