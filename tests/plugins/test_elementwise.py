"""Law: y = base(x) + f(ΔW) x, entry by entry after the product; merging is exact."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.plugins.models import batch, tower
from tests.support.maps import MAPS
from tests.support.models import adapted
from tests.support.tolerance import close
from tntune.adapters import AdapterSpec, adapt, merge, save_adapters
from tntune.errors import SpecError, UnsupportedError
from tntune.maps import LoRA
from tntune.plugins import ElementwiseLinear, ResidualSine, Sine, transform_deltas

FUNCTIONS = {"sine": Sine(3.0), "residual sine": ResidualSine(0.5, 2.0), "tanh": torch.tanh}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("name", ["lora", "tt_lora fixed", "concat mean", "joined digits"])
def test_forward_gradients_and_merge_are_those_of_the_dense_weight(name: str, function) -> None:
    plain = tower(MAPS[name])
    delta, base = plain[0].delta_weight(), plain[0].base
    model, x = transform_deltas(tower(MAPS[name]), function), batch(MAPS[name].in_features)
    wanted = nn.functional.linear(x, base.weight + function(delta), base.bias).tanh()
    assert close(model(x), wanted)
    model(x).sum().backward()
    wanted.sum().backward()
    for own, other in zip(model[0].generator.parameters(), plain[0].generator.parameters(), strict=True):
        assert close(own.grad, other.grad)
    merge(model)
    assert close(model(x), wanted)


def test_the_rank_exceeds_that_of_the_map() -> None:
    plain, model = tower(LoRA(6, 6, 1)), transform_deltas(tower(LoRA(6, 6, 1)), Sine(2.0))
    assert torch.linalg.matrix_rank(plain[0].delta_weight()) == 1
    assert torch.linalg.matrix_rank(model[0].delta_weight()) > 3


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_zero_start_keeps_the_function_and_trains(function) -> None:
    model, x = nn.Sequential(nn.Linear(12, 8)), torch.randn(3, 12)
    before = model(x)
    transform_deltas(adapt(model, AdapterSpec(width=4)), function)
    assert torch.equal(model(x), before)
    model(x).sum().backward()
    assert any(bool(p.grad.any()) for p in model[0].generator.parameters())


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"f\(0\) = 0"):
        transform_deltas(tower(LoRA(5, 4, 2)), torch.cos)
    with pytest.raises(SpecError, match="act on every entry alone"):
        transform_deltas(tower(LoRA(5, 4, 2)), torch.sum)
    with pytest.raises(SpecError, match="frequency must be a finite number"):
        Sine(float("inf"))
    with pytest.raises(UnsupportedError, match="activation 'gelu'"):
        transform_deltas(tower(LoRA(5, 4, 2), activation="gelu"), Sine())
    with pytest.raises(UnsupportedError, match="more than its first base and a map"):
        save_adapters(transform_deltas(tower(LoRA(5, 4, 2)), Sine()), tmp_path / "adapter")


def test_what_f_sees_keeps_its_precision_under_autocast() -> None:
    """A steep f would tell its rounding: the layer and its merged weight are one function there too."""
    torch.manual_seed(0)
    layer = ElementwiseLinear(adapted(LoRA(64, 48, 4, "random"), base=nn.Linear(64, 48)), Sine(500.0))
    x = torch.randn(5, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        merged = layer.base(x) + nn.functional.linear(x, layer.delta_weight())
        assert torch.equal(layer(x), merged)
