"""Laws: numbers are those of theory called directly; gauge-fixed ones do not depend on the gauge."""

from dataclasses import replace

import pytest
import torch

from tests.report.sample import MAPS, expanded, layer_of
from tests.support.tolerance import close
from tntune.maps import LoRA, build_map
from tntune.report import AdaptedLayer, layer_jacobian
from tntune.theory import gauge_fixed_spectrum, map_jacobian, nullity
from tntune.theory.gauge import map_trains
from tntune.tt.train import tt_tensor


@pytest.mark.parametrize("name", [name for name in MAPS if name != "lora"])
def test_numbers_are_those_of_theory(name: str) -> None:
    layer = layer_of(MAPS[name])
    found, direct = layer_jacobian(layer), map_jacobian(layer.site.map, layer.tensors, layer.tensors)
    assert found.spectrum is not None
    assert found.spectrum.nullity == direct.nullity
    assert close(torch.tensor(found.spectrum.lambda_max), direct.singular_values()[0].square())
    trains = map_trains(layer.site.map)
    totals = [nullity(train, layer.tensors.get(f"{prefix}latent")).total for train, prefix in trains]
    assert found.nullity_formula == sum(totals)
    assert found.of == "w"
    assert all(bound.holds for bound in found.bounds)


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("padded",)])
def test_the_formula_counts_what_is_there(name: str) -> None:
    found = layer_jacobian(layer_of(MAPS[name]))
    assert found.spectrum is not None
    assert found.spectrum.nullity == found.nullity_formula


def regauged(layer: AdaptedLayer) -> AdaptedLayer:
    """The same function from other cores: a fixed matrix and its inverse on the first bond."""
    names = list(layer.site.map.param_shapes)[:2]
    first, second = (layer.tensors[name] for name in names)
    rank = first.shape[-1]
    draw = torch.Generator().manual_seed(3)
    turn = torch.eye(rank, dtype=torch.float64) + 0.5 * torch.randn(
        rank, rank, dtype=torch.float64, generator=draw
    )
    moved = torch.linalg.solve(turn, second.flatten(1)).reshape(second.shape)
    return replace(layer, tensors={**layer.tensors, names[0]: first @ turn, names[1]: moved})


@pytest.mark.parametrize("name", ["io w", "padded", "side w f1 f2", "latent", "tt_lora"])
def test_gauge_fixed_numbers_do_not_depend_on_the_gauge(name: str) -> None:
    one, other = layer_of(MAPS[name]), regauged(layer_of(MAPS[name]))
    for a, b in zip(one.factors, other.factors, strict=True):
        assert close(a, b)
    left, right = layer_jacobian(one), layer_jacobian(other)
    assert left.gauge_fixed is not None
    assert right.gauge_fixed is not None
    assert close(
        expanded(left.gauge_fixed.values, left.gauge_fixed.counts),
        expanded(right.gauge_fixed.values, right.gauge_fixed.counts),
    )
    assert left.spectrum is not None
    assert right.spectrum is not None
    assert abs(left.spectrum.lambda_max / right.spectrum.lambda_max - 1) > 1e-3


def test_gauge_fixed_numbers_are_the_closed_form() -> None:
    layer = layer_of(MAPS["side w f1 f2"])
    found = layer_jacobian(layer)
    own = [layer.tensors[name] for name in layer.site.map.param_shapes]
    assert found.gauge_fixed is not None
    assert close(
        expanded(found.gauge_fixed.values, found.gauge_fixed.counts),
        gauge_fixed_spectrum(tt_tensor(own)).expanded().square(),
    )
    assert found.gauge_fixed_by == "T2"
    assert layer_jacobian(layer_of(MAPS["latent"])).gauge_fixed_by == "numerical"


def test_relative_changes_of_a_lora_have_two_eigenvalues() -> None:
    layer = layer_of(LoRA(12, 20, 3, "random"))
    found = layer_jacobian(layer).relative
    assert found is not None
    norms = torch.stack([factor.norm() ** -2 for factor in layer.factors]).sort(descending=True).values
    assert close(torch.tensor(found.values), norms)
    assert sorted(found.counts) == [36, 60]


def test_an_untrained_layer_says_so() -> None:
    """up = 0: no relative change, no gauge-fixed spectrum, and more zero directions than the formula says."""
    layer = layer_of(LoRA(12, 20, 3))
    layer.tensors["lora_up"].zero_()
    found = layer_jacobian(layer)
    assert (found.relative, found.gauge_fixed) == (None, None)
    assert found.spectrum is not None
    assert found.spectrum.nullity == 3 * 12 > (found.nullity_formula or 0)


def test_a_large_train_has_no_numerical_spectrum() -> None:
    map = build_map(
        "tensorguide", MAPS["io w"].geometry._replace(in_features=600, out_features=600, width=16), rank=24
    )  # type: ignore[attr-defined]
    found = layer_jacobian(layer_of(map))
    assert (found.spectrum, found.relative, found.bounds) == (None, None, ())
    assert found.gauge_fixed is not None
    assert found.rank_bound == found.params - (found.nullity_formula or 0)
