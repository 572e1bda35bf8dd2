"""Laws: rounding meets its target, never raises a rank or a size, and never touches what it reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.convert.models import toy
from tests.convert.sample import (
    Model,
    errors,
    guided_deltas,
    inputs,
    listing,
    lora_folder,
    same,
)
from tests.support.tolerance import close
from tntune.adapters import load_adapters, save_adapters
from tntune.checkpoint import open_tensorguide
from tntune.convert import (
    ConversionReport,
    ConversionSettings,
    Target,
    compare_adapters,
    convert_lora,
    round_adapter,
)
from tntune.errors import CheckpointError, RankError, UnsupportedError

TARGETS = (Target(params=0.5), Target(max_params=400), Target(tolerance=0.3), Target(max_rank=2))
LAYOUTS = ("side f1 f2 w", "(f1 w1) (f2 w2) side", "io w", "concat")
LATENTS = ("none", "fixed", "resample")


def trained(path: Path, **options: Any) -> Path:
    save_adapters(toy(0, **options), path)
    return path


def rounded(source: Path, target: Target) -> ConversionReport:
    return round_adapter(source, source.with_name("rounded"), target, overwrite=True)


def outputs(folder: str | Path) -> Tensor:
    with torch.no_grad():
        return load_adapters(Model(), folder).eval()(inputs())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.to_json()))
@pytest.mark.parametrize("method", ["tensorguide", "auto"])
def test_rounding_a_conversion(tmp_path: Path, target: Target, method: str) -> None:
    source = lora_folder(tmp_path / "lora")
    made = convert_lora(source, tmp_path / "guide", ConversionSettings(Target(tolerance=0.01), method))
    report = rounded(tmp_path / "guide", target)
    assert report.target_met
    assert report.params_before == made.params_after
    before, after = (open_tensorguide(f).sites for f in (tmp_path / "guide", report.output))
    assert report.params_after == sum(site.map.num_parameters for site in after.values())
    for name, site in after.items():
        old, new = (getattr(s.map, "ranks", (s.map.width,)) for s in (before[name], site))
        assert all(r <= s for r, s in zip(new, old, strict=True))
    exact, found = guided_deltas(tmp_path / "guide"), guided_deltas(Path(report.output))
    gap = sum(np.linalg.norm(found[name] - delta) ** 2 for name, delta in exact.items())
    whole = sum(np.linalg.norm(delta) ** 2 for delta in exact.values())
    assert same(1 + report.relative_error, 1 + (gap / whole) ** 0.5)
    for layer in report.layers:
        assert same(layer.norm, np.linalg.norm(exact[layer.name]))
        if target.tolerance is not None:
            assert layer.relative_error <= target.tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("latent", LATENTS)
def test_trained_adapters_round_to_their_tolerance(tmp_path: Path, layout: str, latent: str) -> None:
    source = trained(tmp_path / "trained", layout=layout, latent=latent, alpha=2.0)
    before = listing(source)
    report = rounded(source, Target(tolerance=0.3))
    assert report.target_met
    assert listing(source) == before
    assert report.params_after <= report.params_before
    found = compare_adapters(source, report.output)
    assert same(1 + found.relative_error, 1 + report.relative_error)
    assert all(layer.relative_error <= 0.3 for layer in found.layers)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("latent", LATENTS)
def test_nothing_to_round_changes_nothing(tmp_path: Path, layout: str, latent: str) -> None:
    source = trained(tmp_path / "trained", layout=layout, latent=latent)
    report = rounded(source, Target(tolerance=1e-6))
    assert report.params_after <= report.params_before
    assert report.relative_error <= 1e-6
    assert close(outputs(report.output), outputs(source))


def test_what_fits_is_kept_bit_for_bit(tmp_path: Path) -> None:
    source = trained(tmp_path / "trained", latent="fixed")
    report = rounded(source, Target(params=1.0))
    assert {layer.method for layer in report.layers} == {"kept"}
    assert report.relative_error == 0
    assert torch.equal(outputs(report.output), outputs(source))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("latent", LATENTS)
def test_nonlinear_adapters_round_by_their_outputs(tmp_path: Path, activation: str, latent: str) -> None:
    source = trained(tmp_path / "trained", activation=activation, latent=latent)
    report = rounded(source, Target(tolerance=0.2))
    assert report.target_met
    assert report.measure == "probe"
    comparison = compare_adapters(source, report.output)
    assert all(layer.relative_error <= 0.2 for layer in comparison.layers)
    assert abs(comparison.relative_error - report.relative_error) < 1e-9
    assert all(site.activation == activation for site in open_tensorguide(report.output).sites.values())


def test_layers_weigh_by_their_scales(tmp_path: Path) -> None:
    """Norms in the report are those of ΔW, scale included, so that a budget goes where it matters."""
    source = trained(tmp_path / "trained", alpha=40.0)
    report = rounded(source, Target(params=0.6))
    model = load_adapters(Model(), source)
    for layer in report.layers:
        norm = model.get_submodule(layer.name).delta_weight().norm().reshape(1)
        assert close(torch.tensor([layer.norm]), norm)


def test_rounding_twice_is_further_from_the_source(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", dtype=torch.bfloat16)
    convert_lora(source, tmp_path / "guide", ConversionSettings(Target(params=0.9)))
    report = rounded(tmp_path / "guide", Target(params=0.5))
    assert report.dtypes == ("torch.bfloat16",)
    assert errors(source, Path(report.output))[0] > errors(source, tmp_path / "guide")[0]


def test_a_budget_below_ranks_of_one_is_refused(tmp_path: Path) -> None:
    source = trained(tmp_path / "trained")
    with pytest.raises(RankError, match="a budget of 5 parameters is too small; the least possible is"):
        rounded(source, Target(max_params=5))
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": "mean"}, r"h\.0\.fc: a mean over a latent is no single train"),
        ({"method": "tt_lora"}, r"h\.0\.fc: a map of kind 'tt_lora' has no train of its own"),
    ],
)
def test_maps_without_a_train_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    source = trained(tmp_path / "trained", **options)
    with pytest.raises(UnsupportedError, match=message):
        rounded(source, Target(params=0.5))


def test_a_lora_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="peft_type: must be 'TENSORGUIDE', not 'LORA'"):
        rounded(lora_folder(tmp_path / "lora"), Target(params=0.5))
