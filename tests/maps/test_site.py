"""Site: one layer's map, scale and activation, and the configuration of many."""

import json
import math

import pytest
import torch

from tests.support.maps import MAPS, tensors_of
from tntune.errors import ModeError, SpecError
from tntune.maps import LoRA, Member, Site
from tntune.maps.site import GENERATOR_KEY, PEFT_TYPE, site_config, site_key, sites_from_config

LORA = LoRA(4, 3, 2)


@pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)
def test_json_round_trip(map: object) -> None:
    site = Site(map, scale=-0.1)
    again = Site.from_json(json.loads(json.dumps(site.to_json(), allow_nan=False)))
    assert again == site
    assert again.tensor_shapes() == map.tensor_shapes


def test_factors_take_params_and_fixed_in_one_dictionary() -> None:
    map = MAPS["concat fixed"]
    params, fixed = tensors_of(map)
    found = Site(map).factors({**params, **fixed})
    assert all(torch.equal(a, b) for a, b in zip(found, map.factors(params, fixed), strict=True))


def test_scale_is_a_float() -> None:
    assert isinstance(Site(LORA, scale=2).scale, float)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LORA, math.nan), "scale must be a finite number, not nan"),
        ((LORA, math.inf), "scale must be a finite number, not inf"),
        ((LORA, 10**400), "scale must be a finite number, not 1000"),
        ((LORA, True), "scale must be a finite number, not True"),
        ((LORA, "1"), "scale must be a finite number, not '1'"),
        ((LORA, 1.0, "swish"), "unknown activation 'swish'; known are identity, relu"),
        ((LORA, 1.0, ["relu"]), r"unknown activation \['relu'\]"),
        (("lora",), "a site needs a map, not 'lora'"),
        ((MAPS["concat mean"], 1.0, "relu"), "exact only for a linear activation, not 'relu'"),
    ],
)
def test_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Site(*arguments)


@pytest.mark.parametrize(
    "obj",
    [None, [], {}, {"map": {}}, {**Site(LORA).to_json(), "alpha": 1}],
    ids=["null", "list", "empty", "part", "more"],
)
def test_from_json_refuses_other_keys(obj: object) -> None:
    with pytest.raises(SpecError, match="a site has the keys map, scale, activation, not"):
        Site.from_json(obj)


def test_configuration_round_trip() -> None:
    sites = {"h.0.attn": Site(LORA, 0.5), "h.1.attn": Site(MAPS["joined mean"])}
    config = json.loads(json.dumps(site_config(sites)))
    assert sites_from_config(config) == sites
    assert list(sites_from_config(config)) == config["target_modules"] == list(sites)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type: must be 'TENSORGUIDE', not 'LORA'"),
        ({"format_version": 2}, "format_version: this tntune reads 1 to 1, not 2"),
        ({"format_version": True}, "format_version: this tntune reads 1 to 1, not True"),
        ({"format_version": None}, "format_version: this tntune reads 1 to 1, not None"),
        ({"sites": {}}, "sites: must be an object with at least one module"),
        ({"sites": ["h.0"]}, "sites: must be an object"),
        ({"sites": {"h.0": {}}}, "sites: h.0: a site has the keys"),
        ({"sites": {"h.0": {**Site(LORA).to_json(), "map": 3}}}, "sites: h.0: a map must have"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        sites_from_config({**site_config({"h.0": Site(LORA)}), **changes})


def test_keys() -> None:
    assert site_key("h.0.attn", "tt_core_1") == f"base_model.model.h.0.attn.{GENERATOR_KEY}.tt_core_1"
    assert PEFT_TYPE == "TENSORGUIDE"


def test_a_module_of_its_own_has_a_map_of_one_site() -> None:
    shared = next(map for map in MAPS.values() if map.sites == 2)
    config = site_config({"fc": Site(shared)})
    with pytest.raises(SpecError, match=r"sites: fc: .*2"):
        sites_from_config(config)


def test_members_are_the_sites_of_their_map() -> None:
    for shared in MAPS.values():
        sizes = [Member(shared, index).in_features for index in range(shared.sites)]
        assert len(sizes) == shared.sites
        for index in (-1, shared.sites):
            with pytest.raises(ModeError, match=f"site {index} is outside the {shared.sites} sites"):
                Member(shared, index)
