"""Law: tntune resize prints what was written, refuses by name, and its exit code tells how it went."""

import re
from pathlib import Path

import pytest
import torch

from tests.checkpoint.lora_files import ALPHAS, lora_file, tensors
from tests.cli.command import tntune
from tests.convert.sample import SHAPES, listing, lora_folder, same
from tntune.checkpoint.calibration import Calibration, save_calibration

KEYS = {
    "source",
    "output",
    "format",
    "settings",
    "norm",
    "params_before",
    "params_after",
    "bytes_before",
    "bytes_after",
    "dtypes",
    "relative_error",
    "energy",
    "task_error",
    "target_met",
    "passthrough",
    "layers",
}
LAYER_KEYS = {
    "name",
    "shape",
    "rank_before",
    "rank_after",
    "params_before",
    "params_after",
    "norm",
    "relative_error",
    "energy",
    "task_error",
}


def test_a_folder(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora", saved=True)
    ran = tntune("resize", lora, "-o", tmp_path / "out", "--params", 0.5, "--json")
    assert (ran.code, ran.json.keys()) == (0, KEYS)
    assert ran.err == "1 of 4 layers are dropped: other layers need their ranks more\n"
    assert all(layer.keys() == LAYER_KEYS for layer in ran.json["layers"])
    assert ran.json["params_after"] <= ran.json["params_before"] // 2
    assert ran.json["settings"] == {"params": 0.5, "uniform": False, "dtype": None}
    verified = tntune("verify", lora, tmp_path / "out", "--json")
    assert same(1 + verified.json["relative_error"], 1 + ran.json["relative_error"])
    assert tntune("inspect", tmp_path / "out", "--json").json["params"] == ran.json["params_after"]


def test_a_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lora_file(one, tensors("kohya unet", ALPHAS["one alpha"]))
    ran = tntune("resize", one, "-o", two, "--rank", 2, "--uniform", "--dtype", "bfloat16")
    assert (ran.code, ran.err) == (0, "")
    assert "two.safetensors (kohya)" in ran.out
    assert re.search(r"lora_unet_mid_block_0_conv +8x45 +4 +2 +212 +106 +0\.\d+", ran.out)
    assert re.search(rf"bytes +{one.stat().st_size:,} +{two.stat().st_size:,}", ran.out)
    assert tntune("resize", one, "-o", two, "--rank", 1).code == 2
    assert tntune("resize", one, "-o", two, "--rank", 1, "--overwrite").code == 0


def test_dropped_layers_are_said(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    ran = tntune("resize", lora, "-o", tmp_path / "out", "--max-params", 40)
    assert ran.code == 0
    assert "3 of 4 layers are dropped" in ran.err


def test_a_missed_tolerance_exits_1_with_its_report(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    options = ("--energy", 0.9999999, "--dtype", "bfloat16", "--json")
    ran = tntune("resize", lora, "-o", tmp_path / "out", *options)
    assert (ran.code, ran.json["target_met"], ran.json["dtypes"]) == (1, False, ["torch.bfloat16"])
    assert "the target was missed" in ran.err


def test_a_calibration_weighs_the_errors(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    moments = [
        {name: torch.diag(torch.linspace(0.1, 5, shape[side])) for name, shape in SHAPES.items()}
        for side in (0, 1)
    ]
    made = Calibration(*moments, {name: name for name in SHAPES}, {})
    save_calibration(tmp_path / "c.safetensors", made)
    options = ("--params", 0.5, "--calibration", tmp_path / "c.safetensors")
    ran = tntune("resize", lora, "-o", tmp_path / "out", *options, "--json")
    plain = tntune("resize", lora, "-o", tmp_path / "plain", "--params", 0.5, "--json")
    assert (ran.code, ran.json["norm"], plain.json["norm"]) == (0, "task, damping 0.1", "frobenius")
    assert 0 < ran.json["task_error"] < 1
    assert ran.json["relative_error"] > plain.json["relative_error"]
    ran = tntune("resize", lora, "-o", tmp_path / "out", *options, "--overwrite")
    assert "error, task, damping 0.1" in ran.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give exactly one of --rank, --params, --max-params, --tolerance, --energy; given: none"),
        (("--rank", 2, "--energy", 0.5), "given: --rank, --energy"),
        (("--energy", 2), r"energy is the share to keep, in (0, 1], not 2"),
        (("--max-params", 1), "a budget of 1 of 390 parameters is too small"),
        (("--rank", 2, "--dtype", "int4"), "dtype must be one of"),
        (("--rank", 2, "--calibration", "nowhere"), "nowhere: cannot be read"),
    ],
)
def test_a_bad_option(tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    lora = lora_folder(tmp_path / "lora")
    before = listing(tmp_path)
    ran = tntune("resize", lora, "-o", tmp_path / "out", *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert listing(tmp_path) == before


def test_other_methods_are_refused_by_name(tmp_path: Path) -> None:
    made = tensors("kohya unet", {}) | {"lora_unet_mid_block_0_ff.dora_scale": torch.ones(12, 1)}
    path = lora_file(tmp_path / "one.safetensors", made)
    ran = tntune("resize", path, "-o", tmp_path / "two.safetensors", "--rank", 1, "--carry")
    assert (ran.code, ran.out) == (2, "")
    assert "lora_unet_mid_block_0_ff.dora_scale: a DoRA magnitude rescales the updated weight" in ran.err
