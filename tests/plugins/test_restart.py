"""Law: at a restart the function stays, the adapter is zero again, and a chain's rank may exceed its own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.plugins.models import batch, tower, trained
from tests.support.maps import MAPS
from tests.support.tolerance import close
from tntune.adapters import AdapterSpec, adapt, adapted_layers, merge, save_adapters
from tntune.errors import SpecError, UnsupportedError
from tntune.maps import LoRA
from tntune.plugins import MergeAndRestart, NormBounded, decompose_weights, gated_sites, restart

PICKED = {
    **{
        name: MAPS[name] for name in ("lora", "tt_lora fixed", "concat fixed", "concat mean", "joined digits")
    },
    "norm bounded": NormBounded(5, 3, 2),
}


@pytest.mark.parametrize("map", PICKED.values(), ids=PICKED)
def test_the_function_stays_and_the_adapter_is_zero(map) -> None:
    model, x = tower(map), batch(map.in_features)
    before, weight = model(x), model[0].base.weight
    params = trained(model)
    restart(model, generator=torch.Generator().manual_seed(0))
    assert close(model(x), before)
    assert not model[0].delta_weight().any()
    assert all(one is other for one, other in zip(trained(model), params, strict=True))
    assert model[0].base.weight is not weight
    assert not model[0].base.weight.requires_grad
    model(x).sum().backward()
    assert any(bool(p.grad.any()) for p in trained(model))


def test_magnitudes_and_gates_restart_too() -> None:
    model, x = decompose_weights(tower(LoRA(5, 4, 2), LoRA(4, 3, 2))), batch(5)
    with torch.no_grad():
        model[0].magnitude.mul_(-1.5)
    before = model(x)
    restart(model)
    assert close(model(x), before)
    assert close(model[0].magnitude, model[0].base.weight.norm(dim=1))
    gated = nn.Sequential(nn.Linear(5, 4)).double()
    adapt(gated, gated_sites(AdapterSpec(width=2).sites_for(gated)), dtype=torch.float64)
    with torch.no_grad():
        for parameter in trained(gated):
            parameter.add_(0.3)
    before = gated(x)
    restart(gated)
    assert close(gated(x), before)


def test_a_chain_of_rank_one_reaches_a_matrix_of_rank_three() -> None:
    """RAC-LoRA's chain: one factor is drawn, the other trained; a single link stays at rank 1."""
    torch.manual_seed(0)
    target = torch.randn(6, 3) @ torch.randn(3, 6)
    errors = {}
    for every in (30, 3000):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 6, bias=False))
        nn.init.zeros_(model[0].weight)
        adapt(model, AdapterSpec(method="lora", width=1))
        optimizer = torch.optim.Adam(trained(model), lr=0.1)
        chain = MergeAndRestart(model, optimizer, every=every, sampled=("lora_down",))
        for _ in range(1500):
            optimizer.zero_grad()
            (model(torch.eye(6)).T - target).square().sum().backward()
            optimizer.step()
            chain.step()
        with torch.no_grad():
            errors[every] = float((model(torch.eye(6)).T - target).norm() / target.norm())
    assert errors[30] < 0.1
    assert errors[3000] > 0.5


def test_the_optimiser_forgets_and_sampled_params_are_new() -> None:
    model = tower(LoRA(5, 4, 2))
    other = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([*trained(model), other], lr=0.1)
    chain = MergeAndRestart(model, optimizer, every=2, sampled=("lora_down",))
    for _ in range(2):
        optimizer.zero_grad()
        (other * model(batch(5)).sum()).backward()
        optimizer.step()
        down = model[0].generator.lora_down.clone()
        done = chain.step()
    assert done
    assert set(optimizer.state) == {other}
    assert not torch.equal(model[0].generator.lora_down, down)
    assert not model[0].generator.lora_down.requires_grad
    assert {p.grad for p in model[0].generator.parameters()} == {None}


def test_a_tied_weight_stays_as_it_is() -> None:
    model = tower(LoRA(4, 4, 2))
    tied = nn.Linear(4, 4)
    tied.weight = model[0].base.weight
    before = tied.weight.clone()
    restart(model)
    assert torch.equal(tied.weight, before)


def test_what_it_refuses(tmp_path: Path) -> None:
    model = tower(LoRA(5, 4, 2), LoRA(4, 3, 2, "random"))
    weights = [layer.base.weight for _, layer in adapted_layers(model)]
    with pytest.raises(SpecError, match="is not zero"):
        restart(model)
    assert all(layer.base.weight is w for (_, layer), w in zip(adapted_layers(model), weights, strict=True))
    with pytest.raises(UnsupportedError, match="activation 'relu'"):
        restart(tower(LoRA(5, 4, 2), activation="relu"))
    merged = tower(LoRA(5, 4, 2))
    merge(merged)
    with pytest.raises(UnsupportedError, match=r"merged into \['0'\]"):
        restart(merged)
    for sampled in (("lora_down", "lora_up"), ("tt_core_0",)):
        with pytest.raises(SpecError, match="must be some, not all"):
            MergeAndRestart(model, torch.optim.SGD(trained(model)), every=2, sampled=sampled)
    restarted = tower(LoRA(5, 4, 2))
    restart(restarted)
    with pytest.raises(UnsupportedError, match="more than its first base and a map"):
        save_adapters(restarted, tmp_path / "adapter")
