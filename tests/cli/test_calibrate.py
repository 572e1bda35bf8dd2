"""Calibrate and convert by the command line: a model by name, a file, and candidates that it weighs."""

import sys
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

def one_batch():
    return Network(), batches()[0]

def number():
    return Network(), 1

def lazy():
    from beside_it import runs
    return Network(), runs
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


def test_what_the_function_imports_is_found_beside_it(place: Path) -> None:
    (place / "beside_it.py").write_text("import torch\nruns = [torch.ones(2, 14)]\n")
    before = list(sys.path)
    _, runs = load_model("calibrating_network:lazy")
    assert len(runs) == 1
    assert sys.path == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-rank", 2, "--calibration", "c.safetensors"), "not 'auto' for {'max_rank': 2}"),
        (("--params", 0.5, "--train", "m:t", "--distill", 3), "is judged on the held-out batches of --model"),
        (("--params", 0.5, "--model", "m:t"), "give both"),
    ],
)
def test_a_dry_run_refuses_what_a_conversion_does(
    place: Path, options: tuple[object, ...], message: str
) -> None:
    calibrated("lora", "--model", "calibrating_network:calibration", "-o", "c.safetensors")
    for more in ((), ("--dry-run",)):
        ran = tntune("convert", "lora", "-o", "out", *options, *more)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err


def test_a_parent_that_is_not_there_is_said_at_once(place: Path) -> None:
    with pytest.raises(OutputError, match="the parent folder missing does not exist"):
        calibrated("lora", "--model", "calibrating_network:no_such", "-o", "missing/c.safetensors")


def test_files_are_kept_and_models_must_be_models(place: Path) -> None:
    (place / "c.safetensors").write_text("mine")
    with pytest.raises(OutputError, match=r"c\.safetensors: exists already"):
        calibrated("lora", "--model", "calibrating_network:calibration", "-o", "c.safetensors")
    for name, message in {
        "calibrating_network": "is package.module:function, not 'calibrating_network'",
        "calibrating_network:missing": "has no attribute 'missing'",
        "no_such_module:f": "No module named 'no_such_module'",
        "calibrating_network:nothing": r"must return \(model, batches\), not int",
        "calibrating_network:one_batch": "the second part must be batches, .* not Tensor",
        "calibrating_network:number": "the second part must be batches, .* not int",
    }.items():
        with pytest.raises(SpecError, match=message):
            load_model(name)
