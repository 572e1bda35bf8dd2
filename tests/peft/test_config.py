"""Configurations: what is written is what is read, and what means nothing is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from peft import PeftConfig, get_peft_model

from tests.convert.sample import Model, lora_folder
from tests.peft.models import MARKS, VARIANTS, adapted, tower
from tntune.convert import ConversionSettings, Target, convert_lora
from tntune.errors import SpecError, UnknownFieldError
from tntune.maps import LoRA
from tntune.maps.site import Site
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig, TensorGuidePeftType

pytestmark = MARKS

FIELDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sizes": {"r": 4, "ranks": [2, 3], "alpha": 8, "dropout": 0.1, "seed": 3},
    "budget": {"r": 4, "params": 0.5, "latent": "fixed", "activation": "relu"},
    "targets": {"target_modules": ("b", "a"), "exclude_modules": ["c"], "layers_to_transform": [0]},
    "regular expression": {"target_modules": ".*fc", "exclude_modules": ".*head"},
    "patterns": {"rank_pattern": {"a": 2}, "alpha_pattern": {"a": 1.5}, "fan_in_fan_out": True},
    "starts": {"init_weights": "lora:somewhere", "modules_to_save": ["head"], "task_type": "CAUSAL_LM"},
}


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_saved_and_loaded_it_is_the_same(
    tmp_path: Path, cls: type[TensorGuideConfig], fields: dict[str, Any]
) -> None:
    config = cls(**fields)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is cls
    assert loaded.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == config.peft_type.value


def test_the_type_is_ours_whatever_is_given() -> None:
    assert TensorGuideConfig(peft_type="test").peft_type is TensorGuidePeftType.TENSORGUIDE
    assert SharedTensorGuideConfig(peft_type=None).peft_type is TensorGuidePeftType.TENSORGUIDE_SHARED


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "r": ({"r": 0}, r"r must be a positive integer, not 0"),
    "ranks": ({"ranks": 0}, r"ranks must be a positive integer, not 0"),
    "ranks list": ({"ranks": [2, -1]}, r"ranks\[1\] must be a positive integer, not -1"),
    "no ranks": ({"ranks": []}, r"ranks must be a non-empty list"),
    "two sizes": ({"ranks": 2, "params": 0.5}, r"ranks=2 and params=0.5 both set the size; give one"),
    "params": ({"params": 0.0}, r"params must be a positive share .* not 0.0"),
    "alpha": ({"alpha": 0}, r"alpha is 0, so that no adapter would do anything"),
    "alpha nan": ({"alpha": float("nan")}, r"alpha must be .*finite.*nan"),
    "alpha pattern": ({"alpha_pattern": {"a": 0}}, r"alpha is 0"),
    "rank pattern": ({"rank_pattern": {"a": 0}}, r"rank_pattern\['a'\] must be a positive integer"),
    "dropout": ({"dropout": 1.0}, r"dropout must be at least 0 and less than 1, not 1.0"),
    "method": ({"method": "lokr"}, r"method must be one of tensorguide, tt_lora, lora, .*not 'lokr'"),
    "lora ranks": ({"method": "lora", "ranks": 2}, r"method 'lora' has no TT-ranks, but ranks=2"),
    "start": ({"init_weights": "pissa"}, r"init_weights must be True, .* 'lora:<folder>', not 'pissa'"),
    "activation": ({"activation": "swoosh"}, r"swoosh"),
    "version": ({"format_version": 99}, r"format.*99"),
    "pattern alone": ({"layers_pattern": "h"}, r"layers_pattern is given without layers_to_transform"),
    "expression and layers": (
        {"target_modules": "a.*", "layers_to_transform": [0]},
        r"layers_to_transform cannot be used where target_modules is the expression 'a\.\*'",
    ),
    "embeddings": (
        {"embeddings": {"emb": 1.0}},
        r"tensors of the embeddings \['emb'\], which PEFT cannot apply .* tntune export",
    ),
    "sites": ({"sites": {"a": {"map": {}}}}, r"sites: a: "),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_what_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TensorGuideConfig(**fields)


SHARED_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "lora"}, r"method must be one of tensorguide, lotr, .*, not 'lora'"),
    "one rank": ({"method": "lotr", "ranks": 2}, r"method 'lotr' has one rank, and that is r: not ranks=2"),
    "stack layout": ({"method": "lotr", "layout": "io w"}, r"method 'lotr' has neither layout nor latent"),
    "stack heads": (
        {"method": "lotr", "head_dim": 4},
        r"method 'lotr' has no mode for heads, but head_dim=4",
    ),
    "layout": ({"layout": "concat"}, r"only a TensorGuide with named legs is shared"),
    "latent": ({"latent": "resample"}, r"'resample' draws z at every call, .* choose 'fixed' or 'mean'"),
    "sites": ({"sites": {"a": Site(LoRA(4, 3, 2)).to_json()}}, r"has groups, and no sites of its own"),
    "groups": ({"groups": {"a": {}}}, r"groups: a: "),
}


@pytest.mark.parametrize(("fields", "message"), SHARED_REFUSED.values(), ids=SHARED_REFUSED)
def test_what_cannot_be_shared_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SharedTensorGuideConfig(**fields)


FOREIGN = {
    "bias": "all",
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "rank": 4,
    "target_parameters": ["a.weight"],
    "use_dora": True,
    "use_rslora": True,
}


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("field", "value"), FOREIGN.items(), ids=FOREIGN)
def test_a_field_of_another_method_is_refused(
    cls: type[TensorGuideConfig], field: str, value: object
) -> None:
    with pytest.raises(UnknownFieldError, match=rf"{field}=.* is no field of {cls.__name__}; "):
        cls(**{field: value})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'rnak'"):
        TensorGuideConfig(rnak=4)


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
def test_a_used_config_fits_another_model(cls: type[TensorGuideConfig]) -> None:
    """What it came to on one model does not bind it on the next."""
    used, fresh = (cls(r=3, ranks=2, target_modules=["fc"]) for _ in range(2))
    adapted(tower(), used)
    adapted(Model(), used)
    adapted(Model(), fresh)
    assert used.to_dict() == fresh.to_dict()


def test_a_changed_field_makes_given_sites_void() -> None:
    config = TensorGuideConfig(r=3, ranks=2, target_modules=["fc"])
    get_peft_model(tower(), config)
    kept = TensorGuideConfig(**config.to_dict())
    assert kept.described() == config.sites
    kept.r = 2
    assert kept.described() == {}
    assert get_peft_model(tower(), kept).base_model.model.fc.r == {"default": 2}


def test_a_converted_folder_is_a_configuration(tmp_path: Path) -> None:
    lora_folder(tmp_path / "lora")
    convert_lora(tmp_path / "lora", tmp_path / "guide", ConversionSettings(Target(params=0.8)))
    config = PeftConfig.from_pretrained(tmp_path / "guide")
    assert isinstance(config, TensorGuideConfig)
    assert set(config.sites) == {"h.0.fc", "h.0.proj", "h.1.fc", "head"}
    model = get_peft_model(Model(), config)
    head = Site.from_json(config.sites["head"])
    assert model.base_model.model.head.generator("default").map == head.map
    assert model.base_model.model.head.scaling == {"default": head.scale}
