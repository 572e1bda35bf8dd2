"""Law: for every folder that PEFT saves, ``scale * up @ down`` is PEFT's own weight update."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tolerance import close
from tntune.checkpoint import open_lora

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model

from tests.checkpoint.models import deltas, stir, tower

pytestmark = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
    pytest.mark.filterwarnings("ignore:Could not identify embedding"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["fc"]},
    "transposed": {"target_modules": ["proj"], "fan_in_fan_out": True},
    "mixed": {"target_modules": ["fc", "proj"]},
    "regular expression": {"target_modules": r"deep\..*fc"},
    "rslora": {"target_modules": ["fc"], "use_rslora": True},
    "ranks": {"target_modules": ["fc", "proj"], "rank_pattern": {"deep.h.0.fc": 3, "h.0.fc": 2}},
    "anchored ranks": {"target_modules": ["fc", "proj"], "rank_pattern": {"^h.0.fc": 2, "deep.*": 5}},
    "alphas": {"target_modules": ["fc", "proj"], "alpha_pattern": {r"h\.[01]\.proj": 7, "^fc": 1}},
    "ranks, alphas, rslora": {
        "target_modules": ["fc"],
        "use_rslora": True,
        "rank_pattern": {"h.1.fc": 6},
        "alpha_pattern": {"deep.h.0.fc": 3, "h.0.fc": 9},
    },
    "some layers": {"target_modules": ["fc"], "layers_to_transform": [1], "layers_pattern": "h"},
}


def compare(folder: Path, model: Any) -> None:
    lora, found = open_lora(folder), dict(deltas(model))
    assert {site.name for site in lora.sites} == set(found)
    for site in lora.sites:
        down, up, scale = lora.load(site)
        assert (site.out_features, site.in_features) == tuple(found[site.name].shape)
        assert close(scale * up.double() @ down.double(), found[site.name])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_update_is_that_of_peft(tmp_path: Path, setting: dict[str, Any]) -> None:
    model = get_peft_model(tower(), LoraConfig(r=4, lora_alpha=10, **setting))
    stir(model)
    model.save_pretrained(tmp_path / "lora")
    compare(tmp_path / "lora", model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype, safe: bool) -> None:
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["fc", "proj"])
    model = get_peft_model(tower(dtype=dtype), config, autocast_adapter_dtype=False)
    stir(model)
    model.save_pretrained(tmp_path / "lora", safe_serialization=safe)
    assert open_lora(tmp_path / "lora").dtypes == (dtype,)
    compare(tmp_path / "lora", model)


def test_embeddings_and_heads_pass_through(tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["fc", "emb"], modules_to_save=["score"])
    model = get_peft_model(tower(), config)
    stir(model)
    model.save_pretrained(tmp_path / "lora")
    lora = open_lora(tmp_path / "lora")
    assert {key.removeprefix("base_model.model.") for key in lora.passthrough} == {
        "emb.lora_embedding_A",
        "emb.lora_embedding_B",
        "score.weight",
        "score.bias",
    }
    assert "emb" not in {site.name for site in lora.sites}


def test_overlapping_patterns_mean_what_peft_loads(tmp_path: Path) -> None:
    """PEFT sorts the keys when it saves, so the model it loads may not be the one it saved."""
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["fc"], alpha_pattern={"h.0.fc": 9, "fc": 3})
    model = get_peft_model(tower(), config)
    stir(model)
    model.save_pretrained(tmp_path / "lora")
    compare(tmp_path / "lora", PeftModel.from_pretrained(tower(), tmp_path / "lora"))
