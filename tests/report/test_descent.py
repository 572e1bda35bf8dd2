"""Laws: the run is the closed form of theory, below its bound at every step; references fit their budget."""

import pytest
import torch

from tests.report.sample import MAPS, guide_folder, layer_of
from tests.support.tolerance import close
from tntune.errors import ModeError, NumericalError, TargetError
from tntune.maps import Geometry, LoRA, Site, build_map
from tntune.report import AdaptedLayer, Probe, compare_methods, descend, layer_kernel, reference_layers
from tntune.report.descent import STEPS
from tntune.theory import descent_bound, linear_descent

PROBE = Probe(samples=6, outputs=3)


def problem(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A factor of that rank with 8 rows, and a residual of norm 1."""
    draw = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(8, rank, dtype=torch.float64, generator=draw) for _ in range(2))
    r = torch.randn(8, dtype=torch.float64, generator=draw)
    return left @ right.mT, r / r.norm()


@pytest.mark.parametrize("rank", [3, 8])
def test_run_is_the_closed_form_and_keeps_its_bound(rank: int) -> None:
    factor, residual = problem(rank)
    run = descend(factor, residual)
    closed = linear_descent(factor, residual, STEPS, rate=run.rate)
    assert close(torch.tensor(run.measured), closed)
    assert all(m <= b * (1 + 1e-9) + 1e-12 for m, b in zip(run.measured, run.bound, strict=True))
    assert [bound.label for bound in run.bounds] == ["N5", "E10"]
    assert all(bound.holds for bound in run.bounds)
    value = descent_bound(factor, residual, STEPS[4], rate=run.rate, measured=run.measured[4]).value
    assert close(torch.tensor(run.bound[4]), torch.tensor(value))


def test_a_singular_kernel_leaves_a_floor_and_no_exponential() -> None:
    run = descend(*problem(3))
    assert run.floor > 0.1
    assert close(torch.tensor(run.measured[-1]), torch.tensor(run.floor), factor=1e4)
    assert close(torch.tensor(run.paper), torch.ones(len(STEPS)))


def test_nothing_that_moves_has_no_descent() -> None:
    with pytest.raises(NumericalError, match="the kernel is zero"):
        descend(torch.zeros(3, 2), torch.ones(3))


@pytest.mark.parametrize("name", ["lora", "io w", "latent"])
def test_references_have_at_most_the_layers_parameters(name: str) -> None:
    layer = layer_of(MAPS[name])
    budget = layer.site.map.num_parameters
    found = reference_layers(layer, seed=0)
    sizes = {label: each.site.map.num_parameters for label, each in found.items()}
    assert all(size <= budget or "r<=1," in label or "r=1," in label for label, size in sizes.items())
    assert all(each.shape == layer.shape for each in found.values())
    assert ("this map, its own start" in found) == (name != "lora")
    for label, each in found.items():
        assert (not each(torch.ones(1, 12)).any()) == ("zero" in label or "own start" in label)


def test_methods_share_inputs_and_target(tmp_path) -> None:
    one = layer_of(MAPS["io w"])
    small = AdaptedLayer("h.1.fc", Site(LoRA(12, 20, 1, "random")), layer_of(LoRA(12, 20, 1)).tensors)
    first = guide_folder(tmp_path / "first", {"h.0.fc": one, "h.1.fc": small})
    second = guide_folder(tmp_path / "second", {"h.0.fc": layer_of(MAPS["side w f1 f2"])})
    found = compare_methods([first, second], PROBE)
    labels = [each.label for each in found.contenders]
    assert (found.layer, labels[:2], found.samples) == ("h.0.fc", ["first", "second"], 6)
    assert len([each for each in found.contenders if not each.trained]) == 7
    own, other = found.contenders[0], found.contenders[1]
    kernel = layer_kernel(one, PROBE)
    assert close(torch.tensor(own.kernel.eigenvalues), torch.tensor(kernel.spectrum.eigenvalues))
    run = descend(layer_kernel(layer_of(MAPS["side w f1 f2"]), PROBE).factor, kernel.target)
    assert other.descent is not None
    assert close(torch.tensor(other.descent.measured), torch.tensor(run.measured))
    assert compare_methods([first, second], PROBE, layer="h.1.fc").contenders[0].params == 32


def test_layers_that_do_not_fit_are_refused(tmp_path) -> None:
    first = guide_folder(tmp_path / "first", {"h.0.fc": layer_of(MAPS["io w"])})
    other = layer_of(build_map("tensorguide", Geometry(8, 20, 4), rank=2))
    second = guide_folder(tmp_path / "second", {"h.0.fc": other})
    with pytest.raises(TargetError, match=r"has no adapted layer 'h\.7'"):
        compare_methods([first], PROBE, layer="h.7")
    with pytest.raises(ModeError, match=r"is \(20, 8\) in .*second, but \(20, 12\) in .*first"):
        compare_methods([first, second], PROBE)
