"""Folders of the tensor family through other doors: export to LoRA, comparison, the checkpoint's writer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.test_family import EVERY, decoder, randomised, spec
from tests.support.tolerance import TOLERANCE, close
from tntune.adapters import adapt, adapted_layers, save_adapters
from tntune.checkpoint import open_tensorguide, write_groups
from tntune.convert import compare_adapters, export_lora
from tntune.errors import UnsupportedError
from tntune.maps import JOINT_METHODS


@EVERY
def test_export_is_exact(method: str, tmp_path: Path) -> None:
    model = randomised(adapt(decoder(), spec(method, alpha=3.0)))
    save_adapters(model, tmp_path / "family")
    report = export_lora(tmp_path / "family", tmp_path / "lora")
    assert report.params_before == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.relative_error < TOLERANCE[torch.float32]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    layers = dict(adapted_layers(model))
    assert report.layers == len(layers)
    for name, layer in layers.items():
        down, up = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        assert close(up @ down, layer.delta_weight())  # alpha = r in what is written
    compared = compare_adapters(tmp_path / "family", tmp_path / "lora")
    assert compared.relative_error < TOLERANCE[torch.float32]
    assert {layer.name for layer in compared.layers} == set(layers)


@pytest.mark.parametrize("method", ["lotr", "metatt_5d", "tenslora_qkv_depth_cp"])
def test_a_nonlinear_member_is_no_lora(method: str, tmp_path: Path) -> None:
    save_adapters(randomised(adapt(decoder(), spec(method, activation="relu"))), tmp_path / "family")
    with pytest.raises(UnsupportedError, match="has the activation 'relu', so no LoRA computes its function"):
        export_lora(tmp_path / "family", tmp_path / "lora")


@pytest.mark.parametrize("method", JOINT_METHODS)
def test_what_is_written_by_groups_is_the_same_folder(method: str, tmp_path: Path) -> None:
    """The checkpoint's own writer, and adapters', of one model: equal for every reader."""
    model = randomised(adapt(decoder(), spec(method)))
    save_adapters(model, tmp_path / "saved")
    folder = open_tensorguide(tmp_path / "saved")
    named = {name: (group, folder.load(group.modules[0])) for name, group in folder.groups.items()}
    write_groups(tmp_path / "written", named, config={})
    first, second = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("saved", "written")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert open_tensorguide(tmp_path / "written").groups == folder.groups
    assert folder.params == sum(p.numel() for p in model.parameters() if p.requires_grad)
