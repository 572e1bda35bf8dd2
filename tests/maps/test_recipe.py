"""Recipes: every method by name, grids of layers, budgets, and what is refused."""

import pytest

from tntune.errors import ModeError, SpecError
from tntune.maps import (
    JOINT_METHODS,
    LAYER_METHODS,
    METHODS,
    Geometry,
    Grid,
    LoRTA,
    MetaTT,
    Recipe,
    Stack,
    TensLoRA,
    TensorGuide,
    build_joint,
    build_map,
    grids,
)
from tntune.maps.build_joint import HEAD_METHODS, TENSLORA, TUCKER_METHODS
from tntune.maps.grid import place

QV = {f"h.{i}.{role}": (768, 768) for i in range(12) for role in ("q", "v")}
QKV = {f"h.{i}.{role}": (768, 768) for i in range(12) for role in "qkv"}
SMALL = {f"h.{i}.{role}": (12, 12) for i in range(3) for role in ("q", "o")}


def counts(recipe: Recipe, layers: dict[str, tuple[int, int]]) -> int:
    if recipe.is_joint:
        return sum(map.num_parameters for _, map in recipe.joint_maps(layers).values())
    return sum(map.num_parameters for map in recipe.layer_maps(layers).values())


# By name.


def test_names_are_of_one_kind() -> None:
    assert METHODS == LAYER_METHODS + JOINT_METHODS
    assert len(set(METHODS)) == len(METHODS) == 26
    assert len(TENSLORA) == 14
    assert len(TUCKER_METHODS) == 7


@pytest.mark.parametrize(
    ("method", "rank", "layers", "count"),
    [
        ("lotr", 8, QV, 13_824),
        ("lotr", 32, QV, 73_728),
        ("metatt_4d", 8, QV, 13_184),
        ("metatt_5d", 16, QV, 19_968),
        ("tenslora_qkv_depth", 4, QKV, 6_393),
        ("tenslora_att_qkv_depth", 4, QKV, 4_201),
        ("tenslora_att", 8, QKV, 261_504),
        ("tenslora_depth", 4, QKV, 18_768),
    ],
)
def test_published_counts(method: str, rank: int, layers: dict[str, tuple[int, int]], count: int) -> None:
    """With ranks lowered to the modes, where TensLoRA's own program leaves them above."""
    heads = {"head_dim": 64} if method in HEAD_METHODS else {}
    assert counts(Recipe(method=method, rank=rank, **heads), layers) == count


def test_isoparameter_ranks_are_published_ones_within_a_budget() -> None:
    """The nearest to LoRA's 221,184 is above it for most; at most so many is a rank or so less."""
    (_, map), *_ = Recipe(method="tenslora_qkv_depth", params=221_184).joint_maps(QKV).values()
    assert map.ranks == (59, 59, 3, 12)
    (_, map), *_ = Recipe(method="tenslora_depth", params=221_184).joint_maps(QKV).values()
    assert (map.ranks, map.num_parameters) == ((37, 37, 12), 220_212)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "lora"])
def test_ranks_are_bounds(method: str) -> None:
    heads = {"head_dim": 4} if method in HEAD_METHODS else {}
    small, large = (counts(Recipe(method=method, rank=rank, **heads), SMALL) for rank in (1, 3))
    assert small < large


def test_a_width_is_the_rank_where_there_is_one() -> None:
    assert counts(Recipe(method="lotr", width=3), SMALL) == counts(Recipe(method="lotr", rank=3), SMALL)
    assert counts(Recipe(method="lotr", rank=3, width=3), SMALL) == counts(
        Recipe(method="lotr", rank=3), SMALL
    )
    train = Recipe(method="delta_train", rank=3, width=5).layer_map((12, 12))
    assert (train.width, max(train.ranks), sorted(train.ranks)[-2]) == (5, 5, 3)
    assert Recipe(method="delta_train", rank=3).layer_map((12, 12)).width == 3


def test_layer_maps_are_those_of_build_map() -> None:
    for method in ("tensorguide", "tt_lora", "loretta"):
        made = Recipe(method=method, width=4, rank=3).layer_map((12, 8))
        assert made == build_map(method, Geometry(12, 8, 4), rank=3)


def test_a_budget_is_no_size_of_one_layer() -> None:
    recipe = Recipe(params=600)
    with pytest.raises(SpecError, match="params=600 is a budget of all layers together"):
        recipe.layer_map((12, 8))
    assert recipe.layer_map((12, 8), rank=2).num_parameters < 600


def test_the_joint_tensorguide_has_legs_for_layer_and_projection() -> None:
    (grid, map), *_ = (
        Recipe(method="joint", width=4, rank=3, latent="fixed", seed=5).joint_maps(SMALL).values()
    )
    assert isinstance(map, TensorGuide)
    assert (map.layout.legs["layer"], map.layout.legs["proj"], map.latent.seed) == (3, 2, 5)
    assert grid.modules == tuple(SMALL)


def test_input_heads_are_named_by_role() -> None:
    (_, map), *_ = Recipe(method="lorta", rank=2, head_dim=4, input_heads=("o",)).joint_maps(SMALL).values()
    assert map == LoRTA(Stack(12, 12, layers=3, projections=2), 2, 3, (1,))


# Grids.


def test_a_block_is_the_first_number_of_a_path() -> None:
    assert place("encoder.block.3.layer.0.q") == ("3", "encoder.block.*.layer.0.q")
    assert place("layer1.0.fc2") == ("0", "layer1.*.fc2")
    assert place("7") == ("7", "*")
    assert place("h2o.pooler") == ("", "h2o.pooler")


def test_grids_are_full_and_hold_every_module_once() -> None:
    ragged = ["a", *(f"h.{i}.q" for i in range(3)), "h.1.v", "h.2.v", "h.0.x", "b", "h.1.w", "h.2.w"]
    found = grids(ragged)
    assert [(grid.blocks, grid.roles) for grid in found] == [
        (("",), ("a", "b")),
        (("0", "1", "2"), ("h.*.q",)),
        (("1", "2"), ("h.*.v", "h.*.w")),
        (("0",), ("h.*.x",)),
    ]
    assert sorted(module for grid in found for module in grid.modules) == sorted(ragged)
    assert found[2].modules == ("h.1.v", "h.1.w", "h.2.v", "h.2.w")
    with pytest.raises(SpecError, match="3 modules do not fill a grid of 2 blocks and 2 roles"):
        Grid(("a", "b", "c"), ("0", "1"), ("x", "y"))


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "vera"}, "method must be one of tensorguide, .*, not 'vera'"),
        ({"rank": 2, "params": 100}, "rank=2 and params=100 both set the size"),
        ({"method": "lora", "width": 2, "params": 100}, "width=2 and params=100 both set the size"),
        ({"method": "lotr", "width": 2, "params": 100}, "width=2 and params=100 both set the size"),
        ({"method": "lotr", "width": 2, "rank": 3}, "has one rank for all bonds, and no width of its own"),
        ({"method": "lotr", "head_dim": 4}, "method 'lotr' has no mode for heads, but head_dim=4"),
        ({"method": "tensorguide", "input_heads": ["o"]}, r"no mode for heads, .*input_heads=\('o',\)"),
        ({"method": "lorta", "input_heads": "o"}, "input_heads is a list of names, not one string 'o'"),
        ({"method": "lorta", "layout": "io w"}, "method 'lorta' has neither layout nor latent"),
        ({"method": "fact_tt", "latent": "fixed"}, "method 'fact_tt' has neither layout nor latent"),
        ({"method": "joint", "layout": "concat"}, "not layout='concat', latent='none'"),
        ({"method": "joint", "latent": "resample"}, "not layout=None, latent='resample'"),
        ({"params": 0}, "params must be a positive integer, not 0"),
        ({"params": 0.5}, "params must be a positive integer, not 0.5"),
    ],
)
def test_recipes_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"method": "lorta"},
            SpecError,
            r"h\.\*\.q, h\.\*\.o: method 'lorta' has a mode for attention heads",
        ),
        ({"method": "lorta", "head_dim": 5}, ModeError, "heads of 5 do not divide 12 features"),
        (
            {"method": "lotr", "params": 5},
            SpecError,
            "5 parameters for 6 layers is less than the 30 of rank 1",
        ),
        ({"method": "lotr", "start": "paper"}, SpecError, "start must be one of zero, random, not 'paper'"),
        ({"method": "loretta"}, SpecError, "a map of method 'loretta' serves one layer; layer_maps makes it"),
    ],
)
def test_layers_that_are_refused(options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe(**options).joint_maps(SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lotr"}, "a map of method 'lotr' serves many layers; joint_maps makes it"),
        ({"method": "loretta", "latent": "fixed"}, "method 'loretta' has no latent, but 'fixed' was given"),
        ({"method": "delta_train", "layout": "io w"}, "method 'delta_train' has no layout, but 'io w'"),
    ],
)
def test_maps_of_layers_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe(**options).layer_maps(SMALL)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tt_lora", {}, "method must be one of lotr, .*, not 'tt_lora'"),
        ("lotr", {"heads": 2}, "method 'lotr' has no heads, but heads=2"),
        ("lotr", {"index_rank": 2}, "method 'lotr' has no ranks of index modes, but index_rank=2"),
        ("tenslora_qkv_cp", {"index_rank": 2}, "method 'tenslora_qkv_cp' has no ranks of index modes"),
    ],
)
def test_joint_maps_that_are_refused(method: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build_joint(method, Stack(8, 8), **options)


def test_joint_maps_by_name() -> None:
    stack = Stack(8, 8, layers=3, projections=2)
    assert build_joint("metatt_5d", stack, rank=2, heads=4) == MetaTT(stack, 2, 4)
    assert build_joint("tenslora_att_depth", stack, rank=4, index_rank=2, heads=4) == TensLoRA(
        stack, "Att_Depth", (4, 2, 2, 2), 4
    )
    assert build_joint("tenslora_att_depth", stack, rank=4, heads=4).ranks == (4, 2, 4, 3)
    assert build_joint("tenslora_qkv_cp", stack, rank=9) == TensLoRA(stack, "QKV", (9,), form="cp")
