"""Law: y = m * (W0 + ΔW) / |W0 + ΔW| x + b, the norm a constant in backward; PEFT's DoRA on a LoRA."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.plugins.models import batch, tower
from tests.support.maps import MAPS
from tests.support.models import Conv1D, adapted
from tests.support.tolerance import close
from tntune.adapters import (
    AdapterSpec,
    adapt,
    adapted_layers,
    merge,
    save_adapters,
    set_enabled,
    unload,
    unmerge,
)
from tntune.errors import NumericalError, TargetError, UnsupportedError
from tntune.maps import LoRA, WeightMap
from tntune.plugins import MagnitudeLinear, Sine, decompose_weights, transform_deltas

PICKED = ("lora", "tt_lora fixed", "concat", "concat mean", "joined digits", "joined io")
EVERY = pytest.mark.parametrize("map", [MAPS[name] for name in PICKED], ids=PICKED)


def layer_of(map: WeightMap, **kwargs) -> MagnitudeLinear:
    torch.manual_seed(0)
    base = nn.Linear(map.in_features, map.out_features).double()
    return MagnitudeLinear(adapted(map, base=base, dtype=torch.float64, scale=0.7, **kwargs))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_zero_start_is_the_base_bit_for_bit(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8, bias=bias)).to(dtype)
    x = torch.randn(5, 12).to(dtype)
    before = model(x)
    after = decompose_weights(adapt(model, AdapterSpec(width=4)))(x)
    assert torch.equal(after, before)


@pytest.mark.parametrize("replaced", [decompose_weights, lambda model: transform_deltas(model, Sine())])
def test_a_pass_generates_for_the_layers_that_are_there(replaced: Callable) -> None:
    """Where they are merged or switched off, for none."""
    model = replaced(adapt(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), AdapterSpec(width=2)))
    begun = []
    for layer in (layer for _, layer in adapted_layers(model)):
        layer.generator.begin = partial(begun.append, layer)  # type: ignore[method-assign]
        layer.generator.end = lambda: None  # type: ignore[method-assign]
    model(torch.ones(2, 6))
    assert begun
    begun.clear()
    set_enabled(model, False)
    model(torch.ones(2, 6))
    assert begun == []


@EVERY
def test_forward_is_that_of_the_decomposed_weight(map: WeightMap) -> None:
    layer, x = layer_of(map), batch(map.in_features)
    plain = adapted(map, base=layer.base, dtype=torch.float64, scale=0.7)
    assert close(layer(x), plain(x))  # the magnitude starts at the norm
    with torch.no_grad():
        layer.magnitude.mul_(torch.linspace(0.5, 2, map.out_features, dtype=torch.float64))
    whole = layer.base.weight + plain.delta_weight()
    weight = layer.magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True)
    assert close(layer(x), nn.functional.linear(x, weight, layer.base.bias))
    assert close(layer.delta_weight(), weight - layer.base.weight)


def test_the_norm_keeps_its_precision_under_autocast() -> None:
    layer = layer_of(LoRA(64, 48, 4)).float()
    factors = layer.factors()
    exact = layer._norm(factors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer._norm(factors), exact)
    assert close(exact, layer.magnitude)


@EVERY
def test_merge_keeps_the_function_and_unmerge_restores_the_weight(map: WeightMap) -> None:
    layer, x = layer_of(map), batch(map.in_features)
    with torch.no_grad():
        layer.magnitude.mul_(1.5)
    weight, before, delta = layer.base.weight, layer(x), layer.delta_weight()
    layer.merge()
    assert close(layer.base(x), before)
    assert close(layer(x), before)
    assert close(layer.delta_weight(), delta)
    layer.unmerge()
    assert layer.base.weight is weight


def test_the_norm_is_a_constant_in_backward() -> None:
    layer, x = layer_of(LoRA(5, 3, 2)), batch(5)
    layer(x).square().sum().backward()
    down, up = (getattr(layer.generator, f"lora_{name}").detach().requires_grad_() for name in ("down", "up"))
    magnitude = layer.magnitude.detach().requires_grad_()
    whole = layer.base.weight + 0.7 * up @ down
    weight = magnitude[:, None] * whole / whole.detach().norm(dim=1, keepdim=True)
    nn.functional.linear(x, weight, layer.base.bias).square().sum().backward()
    for own, other in ((layer.generator.lora_down, down), (layer.generator.lora_up, up)):
        assert close(own.grad, other.grad)
    assert close(layer.magnitude.grad, magnitude.grad)


def test_a_transposed_base() -> None:
    torch.manual_seed(0)
    base = Conv1D(3, 5).double()
    layer = MagnitudeLinear(adapted(LoRA(5, 3, 2), base=base, dtype=torch.float64))
    with torch.no_grad():
        layer.magnitude.mul_(0.5)
    x = batch(5)
    before = layer(x)
    layer.merge()
    assert close(base(x), before)


@pytest.mark.peft
def test_it_is_pefts_dora() -> None:
    """Same tensors: outputs, merged weights, and gradients of factors and magnitude."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Linear(12, 8)
    config = peft.LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=["0"], init_lora_weights=False)
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(12, 8)), config)
    their_layer = theirs.base_model.model[0]
    their_layer.base_layer.load_state_dict(base.state_dict())
    layer = MagnitudeLinear(adapted(LoRA(12, 8, 3), base=base, scale=2.0))
    magnitude = 1 + torch.rand(8)
    with torch.no_grad():
        their_layer.lora_A["default"].weight.copy_(layer.generator.lora_down)
        their_layer.lora_B["default"].weight.copy_(layer.generator.lora_up)
        their_layer.lora_magnitude_vector["default"].weight.copy_(magnitude)
        layer.magnitude.copy_(magnitude)
    x = torch.randn(5, 12)
    for output in (layer(x), theirs(x)):
        output.square().sum().backward()
    assert close(layer(x), theirs(x), factor=0.1)
    pairs = (
        (layer.generator.lora_down, their_layer.lora_A["default"].weight),
        (layer.generator.lora_up, their_layer.lora_B["default"].weight),
        (layer.magnitude, their_layer.lora_magnitude_vector["default"].weight),
    )
    for own, other in pairs:
        assert close(own.grad, other.grad, factor=0.1)
    layer.merge()
    assert close(layer.base.weight, theirs.merge_and_unload()[0].weight, factor=0.1)


def test_a_model_merges_unloads_and_switches_off() -> None:
    model = decompose_weights(tower(LoRA(5, 4, 2), LoRA(4, 3, 2)))
    with torch.no_grad():
        model[0].magnitude.mul_(1.3)
    x = batch(5)
    before = model(x)
    set_enabled(model, False)
    assert not torch.equal(model(x), before)
    set_enabled(model, True)
    merge(model)
    assert close(model(x), before)
    unmerge(model)
    assert torch.equal(model(x), before)
    merge(model)
    assert close(unload(model)(x), before)
    assert isinstance(model[0], nn.Linear)


def test_a_state_dict_restores_it() -> None:
    model, other = (decompose_weights(tower(LoRA(5, 4, 2))) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch(5)), model(batch(5)))


def test_a_module_held_twice_is_replaced_twice() -> None:
    model = tower(LoRA(4, 4, 2))
    twice = nn.Sequential(model[0], nn.Tanh(), model[0])
    decompose_weights(twice)
    assert isinstance(twice[0], MagnitudeLinear)
    assert twice[0] is twice[2]


def test_what_it_refuses(tmp_path: Path) -> None:
    model = decompose_weights(tower(LoRA(5, 4, 2)))
    with pytest.raises(UnsupportedError, match="more than its first base and a map"):
        save_adapters(model, tmp_path / "adapter")
    with pytest.raises(UnsupportedError, match="is a MagnitudeLinear already"):
        transform_deltas(model, Sine())
    with pytest.raises(UnsupportedError, match="activation 'relu'"):
        decompose_weights(tower(LoRA(5, 4, 2), activation="relu"))
    merged = tower(LoRA(5, 4, 2))
    merge(merged)
    with pytest.raises(UnsupportedError, match="0: is merged"):
        decompose_weights(merged)
    with pytest.raises(TargetError, match="put it into a container"):
        decompose_weights(adapted(LoRA(4, 3, 2)))
    flat = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(flat[0].weight[1])
    with pytest.raises(NumericalError, match="1 of the 3 rows"):
        decompose_weights(adapt(flat, AdapterSpec(width=2)))


def test_layers_of_a_shared_map() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    x = torch.randn(3, 6)
    before = model(x)
    decompose_weights(adapt(model, AdapterSpec(method="lotr", rank=2)))
    assert torch.equal(model(x), before)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 2 * 6 * 2 + 2 * 4 + 12  # factors and cores once, a magnitude for each layer
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    changed = model(x)
    assert not torch.equal(changed, before)
    merge(model)
    assert close(model(x), changed)
