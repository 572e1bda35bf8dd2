"""Calibrate and convert by the command line: a model by name, a file, and candidates that it weighs."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.cli.command import tntune
from tests.convert.shared import shared_folder
from tntune.checkpoint import open_calibration
from tntune.cli.calibrate import calibrate, load_model
from tntune.errors import OutputError, SpecError

MODULE = """
from tests.convert.shared import Network, batches

def calibration():
    return Network(), batches()

def held_out():
    return Network(), batches(seed=7)

def nothing():
    return 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a LoRA and a module that makes its model."""
    shared_folder(tmp_path / "lora")
    (tmp_path / "calibrating_network.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calibrated(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(calibrate)
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


def test_a_calibration_is_made_and_weighs_the_candidates(place: Path) -> None:
    printed = calibrated("lora", "--model", "calibrating_network:calibration", "-o", "c.safetensors")
    assert printed.startswith("c.safetensors: 11 layers, 128 predictions, 128 tokens")
    assert len(open_calibration("c.safetensors").names) == 11
    options = ("--params", 0.35, "--calibration", "c.safetensors")  # auto is the default then
    ran = tntune("convert", "lora", "-o", "one", *options, "--json")
    assert ran.code == 0
    assert ran.json["chosen"] == "joint by size, task, damping 0.1"
    assert [each["divergence"] for each in ran.json["candidates"]] == [None] * 5
    ran = tntune("convert", "lora", "-o", "two", *options, "--model", "calibrating_network:held_out")
    assert ran.code == 0
    assert "weighted svd, even ranks" in ran.out
    assert "joint, task, damping 0.03" in ran.out
    ran = tntune("inspect", "one")
    assert "maps serve 11 layers" in ran.err
    assert tntune("export", "one", "-o", "exported").code == 0
    assert tntune("verify", "one", "exported", "--tolerance", 1e-6).code == 0


def test_a_model_judges_only_with_a_calibration(place: Path) -> None:
    options = ("--params", 0.35, "--model", "calibrating_network:held_out")
    ran = tntune("convert", "lora", "-o", "out", *options)
    assert (ran.code, ran.out) == (2, "")
    assert "--model judges candidates that --calibration makes; give both" in ran.err


def test_files_are_kept_and_models_must_be_models(place: Path) -> None:
    (place / "c.safetensors").write_text("mine")
    with pytest.raises(OutputError, match=r"c\.safetensors: exists already"):
        calibrated("lora", "--model", "calibrating_network:calibration", "-o", "c.safetensors")
    for name, message in {
        "calibrating_network": "is package.module:function, not 'calibrating_network'",
        "calibrating_network:missing": "has no attribute 'missing'",
        "no_such_module:f": "No module named 'no_such_module'",
        "calibrating_network:nothing": r"must return \(model, batches\), not int",
    }.items():
        with pytest.raises(SpecError, match=message):
            load_model(name)
