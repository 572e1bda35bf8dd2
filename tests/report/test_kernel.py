"""Laws: kernels are those of autodiff; T5 is that of dense G and J; every theorem holds where it is shown."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.report.sample import MAPS, layer_of
from tests.support.tolerance import close
from tntune.errors import CheckpointError, ModeError, SpecError
from tntune.maps import LoRA
from tntune.report import (
    AdaptedLayer,
    Probe,
    generalisation,
    kernel_bounds,
    layer_jacobian,
    layer_kernel,
    read_inputs,
)
from tntune.report.summary import NO_THEOREM
from tntune.theory import delta_jacobian, jacobian, kernel_interval

PROBE = Probe(samples=6, outputs=3)


def readout_gradients(layer: AdaptedLayer, probe: Probe) -> Tensor:
    """A by autodiff of the layer's own formula, params in the map's order."""
    x, h = probe.inputs_of(layer.name, layer.shape[1]), probe.readouts(layer.shape[0])

    def outputs(params: dict[str, Tensor]) -> Tensor:
        moved = AdaptedLayer(layer.name, layer.site, {**layer.tensors, **params})
        return (moved(x) @ h.mT).flatten()

    own = {name: layer.tensors[name] for name in layer.site.map.param_shapes}
    return torch.cat([part.flatten(1) for part in torch.func.jacrev(outputs)(own).values()], dim=1)


@pytest.mark.parametrize("activation", ["identity", "gelu"])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "mean"])
def test_kernel_is_that_of_autodiff(name: str, activation: str) -> None:
    layer = layer_of(MAPS[name], activation=activation)
    found = layer_kernel(layer, PROBE)
    dense = readout_gradients(layer, PROBE)
    assert close(found.factor @ found.factor.mT, dense @ dense.mT)
    values = torch.linalg.svdvals(dense).square()[: found.spectrum.rank]
    assert close(torch.tensor(found.spectrum.eigenvalues), values)
    assert close(torch.tensor(sum(found.shares.values())), torch.tensor(1.0))


@pytest.mark.parametrize("name", MAPS)
def test_interval_is_that_of_dense_matrices(name: str) -> None:
    """G from A by the pseudo-inverse of J gives the same ratios: both are G on ran J."""
    layer = layer_of(MAPS[name])
    map, tensors = layer.site.map, layer.tensors
    J = delta_jacobian(map, tensors, tensors) if isinstance(map, LoRA) else jacobian(map, tensors, tensors)
    G = readout_gradients(layer, PROBE) @ torch.linalg.pinv(J, rtol=1e-11)
    kernel, own = layer_kernel(layer, PROBE), layer_jacobian(layer)
    found = [bound for bound in kernel_bounds(layer, kernel, own) if bound.label == "T5"]
    for ours, theirs in zip(found, kernel_interval(G, J), strict=True):
        assert ours.statement == theirs.statement
        assert close(torch.tensor(ours.value), torch.tensor(theirs.value), factor=1e3)
        if name != "mean":  # its kernel is singular, and ratios of rounding are no law
            assert close(torch.tensor(ours.measured), torch.tensor(theirs.measured), factor=1e4)
        assert ours.holds


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "mean"])
def test_every_theorem_holds(name: str, activation: str) -> None:
    layer = layer_of(MAPS[name], activation=activation)
    kernel, own = layer_kernel(layer, PROBE), layer_jacobian(layer)
    bounds = (*own.bounds, *kernel_bounds(layer, kernel, own), *generalisation(kernel, PROBE))
    assert {"T3", "T5", "E26", "E26+", "T6", "N7", "E18", "E19"} <= {bound.label for bound in bounds}
    assert [bound.label for bound in bounds if not bound.holds and bound.label != NO_THEOREM] == []


def test_equation_26_read_with_plus_is_false() -> None:
    """On ΔW: G points along directions that no change of two factors makes."""
    layer = layer_of(LoRA(12, 20, 1, "random"))
    found = kernel_bounds(layer, layer_kernel(layer, PROBE), layer_jacobian(layer))
    printed, plus = (next(b for b in found if b.label == label) for label in ("E26", "E26+"))
    assert (printed.value, printed.holds, plus.holds) == (0.0, True, False)
    x = PROBE.inputs_of("h.0.fc", 12) * layer.site.scale
    least = layer_jacobian(layer).spectrum.values[-1]  # type: ignore[union-attr]
    assert close(torch.tensor(plus.value), torch.linalg.svdvals(x)[-1].square() * least)


@pytest.mark.parametrize("name", ["lora", "tt_lora", "io w"])
def test_a_zero_up_makes_the_kernel_singular_by_structure(name: str) -> None:
    layer = layer_of(MAPS[name])
    params, fixed = LoRA(12, 20, 3).init() if name == "lora" else MAPS[name].init()
    fresh = AdaptedLayer("h.0.fc", layer.site, {k: v.double() for k, v in {**params, **fixed}.items()})
    found = layer_kernel(fresh, Probe(samples=30, outputs=3))
    assert found.spectrum.lambda_min == 0.0
    assert found.spectrum.rank <= found.spectrum.rank_bound <= 3 * layer.site.map.width < 90
    assert not found.target.any()
    assert generalisation(found, PROBE) == ()


def test_target_and_radius_are_the_adapters_own() -> None:
    layer = layer_of(MAPS["io w"])
    found = layer_kernel(layer, PROBE)
    y = (layer(PROBE.inputs_of("h.0.fc", 12)) @ PROBE.readouts(20).mT).flatten()
    assert close(found.target, y / y.norm())
    T = found.factor @ found.factor.mT
    expected = found.target @ torch.linalg.pinv(T, rtol=1e-12, hermitian=True) @ found.target
    assert found.spectrum.norm_squared is not None
    assert close(torch.tensor(found.spectrum.norm_squared), expected, factor=1e3)


def test_given_inputs_are_used(tmp_path: Path) -> None:
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    torch.save({"h.0.fc": x}, tmp_path / "inputs.pt")
    probe = Probe(outputs=2, inputs=read_inputs(tmp_path / "inputs.pt"))
    assert close(probe.inputs_of("h.0.fc", 12), x.double())
    assert layer_kernel(layer_of(MAPS["io w"]), probe).spectrum.size == 8
    with pytest.raises(ModeError, match="none for h"):
        probe.inputs_of("h.1.fc", 12)
    with pytest.raises(ModeError, match=r"inputs have shape \(n, 13\), not \(4, 12\)"):
        probe.inputs_of("h.0.fc", 13)


def test_bad_inputs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "inputs.pt"
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_inputs(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        read_inputs(file)
    cases = (([1], "must hold inputs"), ({"a": torch.ones(2)}, "must be a float matrix"))
    for content, message in (*cases, ({"a": torch.full((2, 2), torch.nan)}, "NaN or infinite")):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message):
            read_inputs(file)
    with pytest.raises(SpecError, match="at least one sample"):
        Probe(samples=0)
