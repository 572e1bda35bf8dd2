"""Law: without its zero gates a map is smaller, the function the same; gates shrink by a proximal step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.plugins.models import batch, fill, tower
from tests.support.maps import MAPS, joined, tensors_of
from tests.support.tolerance import close
from tntune.adapters import AdapterSpec, adapt, load_adapters, save_adapters
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.maps import Gated, Geometry, Group, LoRA, LoTR, Site, Stack, WeightMap, build_map
from tntune.plugins import (
    GatePruner,
    double_threshold,
    gated_sites,
    narrowed,
    prune_gates,
    shrink_gates,
    soft_threshold,
)

SLIM = {
    "lora": LoRA(5, 3, 4),
    "tt_lora": build_map("tt_lora", Geometry(6, 4, 3), rank=2),
    "tt_lora fixed": build_map("tt_lora", Geometry(6, 4, 4), rank=2, latent="fixed"),
    "side and width": joined("f (side w)", (5, 3, 4)),
    "width and side": joined("f1 (w side) f2", (6, 4, 4), start="random"),
    "width, feature and side": joined("f1 (w f2 side)", (6, 4, 4), latent="fixed"),
}


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("map", SLIM.values(), ids=SLIM)
def test_pruning_zero_gates_is_exact(map: WeightMap, activation: str, tmp_path: Path) -> None:
    """Forward before and after, and a folder of the plain map."""
    model, x = tower(Gated(map), activation=activation), batch(map.in_features)
    gate = model[0].generator.gate
    with torch.no_grad():
        gate[0, ::2] = 0
    before, kept = model(x), int(gate.count_nonzero())
    assert prune_gates(model) == {"0": kept}
    assert close(model(x), before)
    assert model[0].generator.map.num_parameters < map.num_parameters
    assert {p.requires_grad for p in model[0].generator.parameters()} == {True}
    save_adapters(model, tmp_path / "adapter")
    other = nn.Sequential(model[0].base, nn.Tanh())
    assert torch.equal(load_adapters(other, tmp_path / "adapter")(x), model(x))


@pytest.mark.parametrize("map", SLIM.values(), ids=SLIM)
def test_with_all_gates_zero_one_direction_stays(map: WeightMap) -> None:
    gated = Gated(map)
    params, fixed = tensors_of(gated)
    smaller, tensors = narrowed(gated, {**params, **fixed, "gate": torch.zeros_like(params["gate"])})
    assert smaller.width == 1
    assert not smaller.delta(tensors, tensors).any()


def test_what_it_refuses() -> None:
    for name in ("tt_lora", "joined digits", "concat"):
        with pytest.raises(UnsupportedError, match="cannot be taken out"):
            prune_gates(tower(Gated(MAPS[name])))
    with pytest.raises(TargetError, match=r"no gates in \['0'\]"):
        shrink_gates(tower(LoRA(5, 3, 2)), 0.1)
    with pytest.raises(SpecError, match="threshold=-1"):
        shrink_gates(tower(Gated(LoRA(5, 3, 2))), -1.0)
    with pytest.raises(SpecError, match="compat='peft'"):
        shrink_gates(tower(Gated(LoRA(5, 3, 2))), 1.0, compat="peft")
    merged = tower(Gated(LoRA(5, 3, 2)))
    merged[0].merge()
    with pytest.raises(UnsupportedError, match=r"merged layers \['0'\]"):
        prune_gates(merged)
    shared = tied()
    for refused in (prune_gates, lambda model: GatePruner(model, steps=10)):
        with pytest.raises(UnsupportedError, match="layers share their gates"):
            refused(shared)
    assert shrink_gates(shared, 1e3) == 2 * 2  # each gate once


def tied() -> nn.Sequential:
    """Two layers of one map with gates."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    map = Gated(LoTR(Stack(5, 5, layers=2), 2))
    return adapt(model, {"both": Group(map, ("0", "1"), (1.0, 1.0))})


# The steps.

NUMBERS = st.floats(-10, 10, allow_nan=False)


@given(NUMBERS, st.floats(0.01, 5))
def test_the_soft_threshold_is_the_proximal_point(x: float, threshold: float) -> None:
    """Zero is in the subdifferential of (g - x)² / 2 + threshold |g| at g."""
    g = float(soft_threshold(torch.tensor(x, dtype=torch.float64), threshold))
    if g:
        assert close(
            torch.tensor(g - x + threshold * (1 if g > 0 else -1)).double(), torch.tensor(0.0).double()
        )
    else:
        assert abs(x) <= threshold


@given(NUMBERS, st.floats(0.01, 5))
def test_the_released_threshold_is_twice_as_high(x: float, threshold: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    assume(abs(x) != threshold)
    soft, released = soft_threshold(value, threshold), double_threshold(value, threshold)
    assert float(released) == (float(soft) if abs(float(soft)) >= threshold else 0)


def test_a_step_shrinks_every_gate_once() -> None:
    model = tower(Gated(LoRA(5, 4, 3)), Gated(LoRA(4, 3, 3)))
    gates = [model[k].generator.gate for k in (0, 2)]
    before = [gate.detach().clone() for gate in gates]
    zeros = shrink_gates(model, 0.3)
    for gate, old in zip(gates, before, strict=True):
        assert torch.equal(gate, soft_threshold(old, 0.3))
    assert zeros == sum(int((gate == 0).sum()) for gate in gates)
    with torch.no_grad():
        for gate, old in zip(gates, before, strict=True):
            gate.copy_(old)
    shrink_gates(model, 0.3, compat="sora")
    assert all(torch.equal(gate, double_threshold(old, 0.3)) for gate, old in zip(gates, before, strict=True))


def test_training_with_the_proximal_step_finds_the_width() -> None:
    """A LoRA of width 6 fits a matrix of rank 2; with the penalty most gates die and the fit stays."""
    torch.manual_seed(0)
    target = torch.randn(8, 2) @ torch.randn(2, 8) / 4
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    nn.init.zeros_(model[0].weight)
    adapt(model, gated_sites(AdapterSpec(method="lora", width=6).sites_for(model)))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        (model[0].delta_weight() - target).square().sum().backward()
        optimizer.step()
        zeros = shrink_gates(model, 0.02 * 0.5)
    assert 1 <= 6 - zeros <= 3
    before = model[0].delta_weight()
    prune_gates(model)
    assert close(model[0].delta_weight(), before)
    assert (before - target).norm() < 0.2 * target.norm()


def test_gates_of_the_fixed_tensors_stay_in_the_checkpoint_of_torch() -> None:
    model, other = tower(Gated(MAPS["tt_lora fixed"])), tower(Gated(MAPS["tt_lora fixed"]))
    fill(other[0], seed=9)
    other.load_state_dict(model.state_dict())
    x: Tensor = batch(6)
    assert torch.equal(other(x), model(x))


def test_scale_and_activation_of_sites_stay() -> None:
    site = Site(LoRA(5, 3, 2), 0.5, "relu")
    assert gated_sites({"a": site})["a"] == replace(site, map=Gated(site.map))
