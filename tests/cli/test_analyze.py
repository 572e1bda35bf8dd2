"""Law: `analyze` and `ntk` print theory's numbers, keys stable, twice the same; refusals are one line."""

import re
import sys
from pathlib import Path

import pytest

from tests.cli.command import tntune
from tests.convert.sample import listing, lora_folder, same
from tntune.report import Probe, analyze_adapter

SMALL = ("--samples", 5, "--readouts", 3)
LAYER = {
    "name",
    "kind",
    "shape",
    "layout",
    "modes",
    "ranks",
    "width",
    "scale",
    "activation",
    "params",
    "norm",
}
LAYER |= {"jacobian", "kernel", "bounds"}
JACOBIAN = {
    "of",
    "params",
    "nullity_formula",
    "rank_bound",
    "spectrum",
    "relative",
    "gauge_fixed",
    "gauge_fixed_by",
}
KERNEL = {"route", "samples", "outputs", "size", "rank_bound", "rank", "lambda_max", "lambda_min"}
KERNEL |= {"lambda_min_upper", "lambda_min_plus", "condition", "lambda_min_plus_over_mean", "trace"}
KERNEL |= {"effective_ranks", "residual_fraction", "norm_squared", "zero_threshold", "method", "eigenvalues"}
KERNEL |= {"shares"}
BOUND = {"label", "statement", "value", "measured", "assumptions", "sense", "rounding", "holds", "slack"}

FACTORY = """
import torch
from tests.convert.sample import Model, inputs

def made():
    return Model(), {"x": inputs(), "labels": torch.arange(5)}

def wrong():
    return Model()
"""


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return lora_folder(tmp_path / "lora")


def half(lora: Path) -> Path:
    """The folder at half its parameters."""
    assert tntune("convert", lora, "-o", lora.parent / "half", "--params", 0.5).code == 0
    return lora.parent / "half"


def test_analyze_json(lora: Path) -> None:
    command = ("analyze", lora, "--compare", half(lora), *SMALL, "--json")
    ran = tntune(*command)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() == {"command", "versions", "probe", "adapters", "methods"}
    assert ran.json["probe"] == {"inputs": "standard normal", "samples": 5, "outputs": 3, "seed": 0}
    for adapter in ran.json["adapters"]:
        assert adapter.keys() == {"path", "peft_type", "base_model", "params", "bytes", "layers"}
        for layer in adapter["layers"]:
            assert (layer.keys(), layer["jacobian"].keys(), layer["kernel"].keys()) == (
                LAYER,
                JACOBIAN,
                KERNEL,
            )
            assert all(bound.keys() == BOUND for bound in layer["bounds"])
            assert all(bound["holds"] for bound in layer["bounds"] if bound["label"] != "E26+")
    first, second = ran.json["methods"]["contenders"][:2]
    assert (first["label"], second["label"], first["trained"]) == ("lora", "half", True)
    assert ran.json["methods"]["layer"] == "h.0.fc"
    assert tntune(*command).out == ran.out


def test_analyze_is_theory_called_directly(lora: Path) -> None:
    ran = tntune("analyze", lora, *SMALL, "--seed", 3, "--json")
    direct = analyze_adapter(lora, Probe(samples=5, outputs=3, seed=3))
    for found, layer in zip(ran.json["adapters"][0]["layers"], direct.layers, strict=True):
        assert found["name"] == layer.layer.name
        assert same(found["kernel"]["lambda_max"], layer.kernel.spectrum.lambda_max)
        assert layer.jacobian.spectrum is not None
        assert found["jacobian"]["spectrum"]["nullity"] == layer.jacobian.spectrum.nullity
    other = tntune("analyze", lora, *SMALL, "--json").json["adapters"][0]["layers"][0]
    assert other["kernel"]["lambda_max"] != ran.json["adapters"][0]["layers"][0]["kernel"]["lambda_max"]


def test_analyze_for_people(lora: Path) -> None:
    ran = tntune("analyze", lora, *SMALL, "--layer", "head")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^h\.0\.fc +lora +4 +128 +16 ", ran.out, re.MULTILINE)
    assert "head: kernels and descent to what the first adapter does" in ran.out
    assert re.search(r"^T5 .* 4 of 4 ", ran.out, re.MULTILINE)


def test_pages(lora: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for command in ("analyze", "ntk"):
        page = tmp_path / f"{command}.html"
        ran = tntune(command, lora, *SMALL, "--html", page, "--json")
        assert (ran.code, ran.err) == (0, f"written: {page}\n")
        assert page.read_text().startswith("<!doctype html>")
        again = tntune(command, lora, *SMALL, "--html", page)
        assert (again.code, again.out) == (2, "")
        assert "exists already" in again.err
        assert tntune(command, lora, *SMALL, "--html", page, "--overwrite", "--quiet").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analyze.html", "lora", "ntk.html"]


def test_a_page_needs_matplotlib_and_the_rest_does_not(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ran = tntune("analyze", lora, *SMALL, "--html", tmp_path / "page.html")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'tntune[plots]'" in ran.err
    assert not (tmp_path / "page.html").exists()
    assert tntune("analyze", lora, *SMALL, "--json").code == 0


def test_ntk_json_of_layers(lora: Path) -> None:
    command = ("ntk", lora, "--compare", half(lora), *SMALL, "--json")
    ran = tntune(*command)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() == {"command", "versions", "probe", "adapters", "networks"}
    assert ran.json["networks"] == []
    for adapter in ran.json["adapters"]:
        assert all(layer.keys() == KERNEL | {"name", "params"} for layer in adapter["layers"])
    analysed = tntune("analyze", lora, *SMALL, "--json").json["adapters"][0]["layers"]
    for one, other in zip(ran.json["adapters"][0]["layers"], analysed, strict=True):
        assert one["eigenvalues"] == other["kernel"]["eigenvalues"]
    assert tntune(*command).out == ran.out


@pytest.mark.parametrize(
    ("output", "kind"), [("logits", "full"), ("margin", "full"), ("loss", "trace"), ("logits", "per_class")]
)
def test_ntk_of_a_model(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, kind: str
) -> None:
    (tmp_path / "my_task.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = tntune("ntk", lora, "--model", "my_task:made", "--output", output, "--kind", kind, "--json")
    assert ran.code == 0
    assert re.fullmatch(r".*lora: 5 samples, \d outputs, 390 parameters: kernel .*\n", ran.err)
    (network,) = ran.json["networks"]
    assert (network["output"], network["kind"], len(network["layers"])) == (output, kind, 4)
    assert same(sum(layer["share"] for layer in network["layers"]), 1.0)
    assert "head" in tntune("ntk", lora, "--model", "my_task:made").out


def test_refusals(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_task.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("No such file", ("analyze", tmp_path / "nowhere")),
        ("No such file", ("analyze", lora, "--compare", tmp_path / "nowhere")),
        ("No such file", ("ntk", tmp_path / "nowhere")),
        ("has no adapted layer 'h.9'", ("analyze", lora, *SMALL, "--layer", "h.9")),
        ("at least one sample", ("analyze", lora, "--samples", 0)),
        ("a seed of at least 0", ("ntk", lora, "--seed", -1)),
        ("cannot be read: No such file", ("analyze", lora, "--inputs", tmp_path / "x.pt")),
        (
            "parent folder .*missing does not exist",
            ("analyze", lora, "--html", tmp_path / "missing" / "a.html"),
        ),
        ("is a folder", ("analyze", lora, "--html", tmp_path, "--overwrite")),
        ("give --model too", ("ntk", lora, "--output", "margin")),
        ("--model has its own batch", ("ntk", lora, "--model", "my_task:made", "--seed", 1)),
        ("--model is package.module:function", ("ntk", lora, "--model", "my_task")),
        ("No module named 'my_tusk'", ("ntk", lora, "--model", "my_tusk:made")),
        ("has no attribute 'maid'", ("ntk", lora, "--model", "my_task:maid")),
        (r"must return \(model, batch\), not Model", ("ntk", lora, "--model", "my_task:wrong")),
        ("output must be one of", ("ntk", lora, "--model", "my_task:made", "--output", "colour")),
        ("kind must be one of", ("ntk", lora, "--model", "my_task:made", "--kind", "half")),
        ("dtype must be one of", ("ntk", lora, "--model", "my_task:made", "--dtype", "int8")),
    ]
    for message, command in cases:
        before = listing(tmp_path)
        ran = tntune(*command)
        assert (ran.code, ran.out) == (2, ""), command
        assert re.search(message, ran.err), ran.err
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1
        assert listing(tmp_path).keys() - before.keys() <= {
            k for k in listing(tmp_path) if "__pycache__" in k
        }
