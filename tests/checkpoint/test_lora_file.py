"""Law: whatever a LoRA file calls its tensors, each module's ΔW is alpha / r times up times down."""

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoint.lora_files import ALPHAS, PLACES, SHAPES, deltas, lora_file, tensors
from tests.support.tolerance import close
from tntune.checkpoint.lora_file import LoraFile, open_lora_file


def found(lora: LoraFile) -> dict[str, torch.Tensor]:
    """ΔW of each site as the reader gives it."""
    parts = {site.name: lora.load(site) for site in lora.sites}
    return {name: scale * up.double() @ down.double() for name, (down, up, scale) in parts.items()}


@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("style", PLACES)
def test_updates_are_those_of_the_raw_tensors(tmp_path: Path, style: str, alphas: dict[str, float]) -> None:
    path = lora_file(tmp_path / "a.safetensors", tensors(style, alphas))
    lora, expected = open_lora_file(path), deltas(path)
    assert lora.style == style.split()[0] if "kohya" in style else lora.style == "diffusers"
    assert found(lora).keys() == expected.keys()
    assert len(expected) == len(SHAPES)
    assert all(close(delta, expected[name].flatten(1)) for name, delta in found(lora).items())
    assert lora.passthrough == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_read_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    path = lora_file(tmp_path / "a.safetensors", tensors("kohya unet", ALPHAS["one alpha"], dtype=dtype))
    lora, expected = open_lora_file(path), deltas(path)
    assert lora.dtypes == (dtype,)
    assert lora.load(lora.sites[0])[0].dtype == dtype
    assert all(close(delta, expected[name].flatten(1)) for name, delta in found(lora).items())


def test_a_convolution_is_a_matrix_over_patches(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors", tensors("kohya unet", {"conv": 2.0}))
    lora = open_lora_file(path)
    site = next(site for site in lora.sites if site.name.endswith("conv"))
    assert (site.in_features, site.out_features, site.width, site.scale) == (45, 8, 4, 0.5)
    down, up, scale = lora.load(site)
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(1))
    patches = torch.nn.functional.unfold(x, 3)  # (2, 45, 16)
    raw = tensors("kohya unet", {})
    key = "lora_unet_mid_block_0_conv.lora_{}.weight"
    inner = torch.nn.functional.conv2d(x, raw[key.format("down")])
    outer = torch.nn.functional.conv2d(inner, raw[key.format("up")])
    assert close(scale * up @ down @ patches, 0.5 * outer.flatten(2))


def test_several_components_and_styles_of_diffusers_in_one_file(tmp_path: Path) -> None:
    made = tensors("unet", {}) | tensors("text", {}) | tensors("peft transformer", {"ff": 6.0})
    path = lora_file(tmp_path / "a.safetensors", made)
    lora, expected = open_lora_file(path), deltas(path)
    assert len(lora.sites) == 9
    assert all(close(delta, expected[name].flatten(1)) for name, delta in found(lora).items())


def metadata(**changes: object) -> str:
    plain = {"r": 4, "lora_alpha": 8, "rank_pattern": {"^mid_block\\.0\\.ff": 3}, "target_modules": ["attn"]}
    options = {**plain, "peft_type": "LORA", **changes}
    return json.dumps({f"unet.{key}": value for key, value in options.items()})


def test_the_metadata_of_diffusers_states_the_scale(tmp_path: Path) -> None:
    made = tensors("peft unet", {})
    path = lora_file(tmp_path / "a.safetensors", made, lora_adapter_metadata=metadata())
    scales = {site.name: site.scale for site in open_lora_file(path).sites}
    assert scales == {
        "unet.mid_block.0.attn": 2.0,
        "unet.mid_block.0.conv": 2.0,
        "unet.mid_block.0.ff": 8 / 3,
    }
    rooted = lora_file(tmp_path / "b.safetensors", made, lora_adapter_metadata=metadata(use_rslora=True))
    assert {site.scale for site in open_lora_file(rooted).sites} == {4.0, 8 / 3**0.5}


def test_unknown_tensors_are_carried_where_asked(tmp_path: Path) -> None:
    made = tensors("kohya unet", {}) | {"bundle_emb.cat.string_to_param": torch.ones(2, 3)}
    lora = open_lora_file(lora_file(tmp_path / "a.safetensors", made), carry=True)
    assert lora.passthrough == ("bundle_emb.cat.string_to_param",)
    assert torch.equal(lora.tensor(lora.passthrough[0]), torch.ones(2, 3))


def test_integer_alphas_are_numbers_too(tmp_path: Path) -> None:
    made = tensors("kohya unet", {}) | {"lora_unet_mid_block_0_ff.alpha": torch.tensor([6])}
    lora = open_lora_file(lora_file(tmp_path / "a.safetensors", made))
    assert [site.scale for site in lora.sites if site.name.endswith("ff")] == [2.0]
