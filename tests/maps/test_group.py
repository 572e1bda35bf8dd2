"""Group: one map for several modules, and the configuration of many groups."""

import json
import math

import pytest

from tests.support.maps import MAPS
from tntune.errors import SpecError
from tntune.maps import Group, LoRA
from tntune.maps.group import SHARED_PEFT_TYPE, group_config, group_key, groups_from_config

LORA = LoRA(4, 3, 2)
LAYERS = MAPS["joined layers"]  # 3 layers of 2 projections
SIX = tuple(f"h.{i}.{name}" for i in range(3) for name in "qv")


def group(**changes: object) -> Group:
    return Group(**{"map": LAYERS, "modules": SIX, "scales": (1.0,) * 6, **changes})


@pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)
def test_json_round_trip(map: object) -> None:
    own = Group(map, tuple(f"m{i}" for i in range(map.sites)), tuple(range(1, map.sites + 1)))
    again = Group.from_json(json.loads(json.dumps(own.to_json(), allow_nan=False)))
    assert again == own
    assert again.tensor_shapes() == map.tensor_shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": SIX[:5]}, "a map of 6 sites needs as many modules, each once, .* not 5 and 6"),
        ({"modules": (*SIX[:5], SIX[0])}, "not 5 and 6"),
        ({"scales": (1.0,) * 5}, "not 6 and 5"),
        ({"scales": (1.0,) * 5 + (math.nan,)}, "scale must be a finite number, not nan"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"map": "lora"}, "a site needs a map, not 'lora'"),
    ],
)
def test_refuses(changes: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        group(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": "h.0"}, "modules must be a list of paths, not 'h.0'"),
        ({"modules": [1] * 6}, "modules must be a list of paths"),
        ({"scales": 1.0}, "scales must be a list of numbers, not 1.0"),
        ({"activation": None}, "unknown activation None"),
        ({"map": {"kind": "cp"}}, "unknown kind 'cp'"),
        ({"extra": 1}, "a group has the keys activation, map, modules, scales"),
    ],
)
def test_refuses_json(changes: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Group.from_json({**group().to_json(), **changes})


def test_configuration_round_trip() -> None:
    groups = {"4x4": group(), "4x3": Group(LORA, ("head",), (0.5,), "relu")}
    config = json.loads(json.dumps(group_config(groups)))
    assert groups_from_config(config) == groups
    assert config["target_modules"] == [*SIX, "head"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "TENSORGUIDE"}, f"peft_type: must be '{SHARED_PEFT_TYPE}', not 'TENSORGUIDE'"),
        ({"format_version": 99}, "format_version: this tntune reads 1 to 1, not 99"),
        ({"groups": {}}, "groups: must be an object with at least one group"),
        ({"groups": []}, "groups: must be an object"),
        ({"groups": {"a": {}}}, "groups: a: a group has the keys"),
    ],
)
def test_configuration_is_checked(changes: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        groups_from_config({**group_config({"4x4": group()}), **changes})


def test_a_module_is_in_one_group_only() -> None:
    twice = {"a": Group(LORA, ("head",), (1.0,)), "b": Group(LORA, ("head",), (1.0,))}
    with pytest.raises(SpecError, match=r"the modules \['head'\] are in two groups"):
        groups_from_config(group_config(twice))


def test_key_names_the_group() -> None:
    assert group_key("4x4", "tt_core_0").split(".")[-2:] == ["4x4", "tt_core_0"]


def test_a_map_of_more_sites_than_modules_is_refused_before_it_is_made() -> None:
    """Planning a site takes a millisecond, so 2³¹ of them a month."""
    obj = json.loads(json.dumps(group().to_json()))
    layer = obj["map"]["layout"]["pattern"].replace("(", " ").replace(")", " ").split().index("layer")
    obj["map"]["layout"]["sizes"][layer] = 2**31
    with pytest.raises(SpecError, match=f"serves {2 * 2**31} modules, where 6 are named"):
        Group.from_json(obj)
