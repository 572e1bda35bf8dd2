"""Sweeps, distillation and tolerances by the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import tntune
from tests.convert.shared import Network, batches, shared_folder
from tntune.checkpoint import save_calibration
from tntune.convert import ConversionReport, ConversionSettings, Target, calibrate, sweep_lora
from tntune.convert.whole import write_best

MODULE = """
from tests.convert.shared import Network, batches

def training():
    return Network(), batches(seed=5)

def texts():
    return batches(seed=5)

def held_out():
    return Network(), batches(seed=7), lambda model: float(model(batches(seed=7)[0]).square().mean())

def no_score():
    return Network(), batches(seed=7), 0.5

def number():
    return 1
"""
CALIBRATION = ("--calibration", "c.safetensors")
MODEL = (*CALIBRATION, "--model", "sweeping_network:held_out")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: a LoRA, its calibration, and a module that makes its model."""
    source = shared_folder(tmp_path / "lora")
    save_calibration(tmp_path / "c.safetensors", calibrate(Network(), batches(), source))
    (tmp_path / "sweeping_network.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_prints_its_rows_and_draws_its_page(place: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--params", "0.5,0.2", *MODEL, "--html", "sweep.html")
    ran = tntune("sweep", "lora", "-o", "out", *options)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("lora -> out; task norm: task, damping 0.1")
    assert len(lines) == 2 + 1 + 2 * 5
    assert sum("weighted svd, even ranks" in line for line in lines) == 2
    assert "written: sweep.html" in ran.err
    text = (place / "sweep.html").read_text()
    assert text.count("<svg") == 2
    for word in ("divergence", "score", "error in the task norm", "weighted svd, even ranks"):
        assert word in text
    for share in ("0.5", "0.2"):
        assert tntune("verify", f"out/{share}", f"out/{share}", "--tolerance", 1e-9).code == 0


def test_a_sweep_as_json_is_the_file(place: Path) -> None:
    ran = tntune("sweep", "lora", "-o", "out", "--params", "0.5", "--json")
    assert ran.code == 0
    assert ran.json == json.loads((place / "out" / "sweep.json").read_text())
    assert ran.json["points"][0]["report"]["settings"]["target"] == {"params": 0.5}
    again = tntune("sweep", "lora", "-o", "out", "--params", "0.5")
    assert (again.code, again.out) == (2, "")
    assert "exists already" in again.err


def test_an_interrupted_sweep_says_what_it_has_and_may_be_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("sweep", "lora", "-o", "out", "--params", "0.5,0.2")
    with monkeypatch.context() as patch:
        patch.setattr("tntune.convert.sweep.write_best", _interrupted_after(1))
        with pytest.raises(KeyboardInterrupt):
            sweep_lora("lora", "out", [ConversionSettings(Target(params=p), "svd") for p in (0.5, 0.2)])
    found = json.loads((place / "out" / "sweep.json").read_text())
    assert ([point["share"] for point in found["points"]], found["unfinished"]) == ([0.5], [0.2])
    assert sorted(path.name for path in (place / "out").iterdir()) == ["0.5", "sweep.json"]
    assert "exists already" in tntune(*options).err
    ran = tntune(*options, "--overwrite", "--json")
    assert (ran.code, ran.json["unfinished"]) == (0, [])
    assert ran.json == json.loads((place / "out" / "sweep.json").read_text())


def _interrupted_after(count: int) -> Callable[..., ConversionReport]:
    """The writing of a budget, until it has been done that often."""
    done = []

    def writing(*arguments: Any, **options: Any) -> ConversionReport:
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(None)
        return write_best(*arguments, **options)

    return writing


def test_a_folder_with_something_else_is_no_sweep(place: Path) -> None:
    (place / "out").mkdir()
    assert tntune("sweep", "lora", "-o", "out", "--params", "0.5", "--overwrite", "--quiet").code == 0
    (place / "other").mkdir()
    (place / "other" / "thesis.tex").write_text("")
    ran = tntune("sweep", "lora", "-o", "other", "--params", "0.5", "--overwrite")
    assert ran.code == 2
    assert "holds no sweep.json, so it is no sweep and is not replaced" in ran.err


def test_a_distilled_conversion_says_so(place: Path) -> None:
    base = ("convert", "lora", "--params", 0.25, "--method", "svd", *MODEL)
    for name in ("training", "texts"):
        out = f"out-{name}"
        ran = tntune(*base, "-o", out, "--distill", 20, "--train", f"sweeping_network:{name}", "--json")
        assert ran.code == 0
        assert ran.json["chosen"].endswith(", distilled")
        own = ran.json["distillation"]
        assert own["after"] == ran.json["divergence"] < own["before"]
        assert ran.json["score_after"] != ran.json["score_before"]
    assert tntune("verify", "out-training", "out-texts", "--tolerance", 1e-9).code == 0
    ran = tntune(*base, "-o", "shown", "--distill", 20, "--train", "sweeping_network:texts")
    assert "divergence, 20 steps" in ran.out
    assert "score" in ran.out


def test_a_tolerance_of_joint_is_met_by_the_folder(place: Path) -> None:
    ran = tntune("convert", "lora", "-o", "out", "--method", "joint", "--tolerance", 0.2, *CALIBRATION)
    assert ran.code == 0
    ran = tntune("convert", "lora", "-o", "plain", "--method", "joint", "--tolerance", 0.2, "--json")
    assert ran.json["relative_error"] <= 0.2
    assert tntune("verify", "lora", "plain", "--tolerance", 0.2).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--distill", 5), "--distill STEPS trains on the batches of --train; give both"),
        (("--train", "sweeping_network:texts"), "give both"),
        (("--distill", 5, "--train", "sweeping_network:texts"), "judged on the held-out batches of --model"),
        ((*CALIBRATION, "--model", "sweeping_network:no_score"), "third part must be a function, not float"),
        ((*MODEL, "--distill", 5, "--train", "sweeping_network:number"), "must return batches, not int"),
        ((*MODEL, "--distill", 5, "--train", "sweeping_network:none"), "has no attribute 'none'"),
        ((*MODEL, "--distill", 0, "--train", "sweeping_network:texts"), "at least 1 step, not 0"),
    ],
)
def test_options_that_contradict_are_refused(place: Path, options: tuple[object, ...], message: str) -> None:
    ran = tntune("convert", "lora", "-o", "out", "--params", 0.3, "--method", "auto", *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not (place / "out").exists()


def test_shares_must_be_numbers(place: Path) -> None:
    ran = tntune("sweep", "lora", "-o", "out", "--params", "half")
    assert ran.code == 2
    assert "--params is a list of shares such as 0.5,0.25, not 'half'" in ran.err
