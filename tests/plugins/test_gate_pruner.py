"""Law: importance is a running share of ΔW; the lowest gates of all layers die on a cubic schedule."""

import pytest
import torch

from tests.plugins.models import tower
from tests.support.maps import MAPS
from tests.support.tolerance import close
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.maps import LoRA
from tntune.plugins import Gated, GatePruner, direction_variance


def model_of(*widths: int) -> torch.nn.Sequential:
    return tower(*(Gated(LoRA(6, 6, width, "random"), "zero") for width in widths))


def test_scores_are_running_shares_of_delta() -> None:
    model = model_of(3, 4)
    pruner = GatePruner(model, steps=1000)
    wanted = [torch.zeros(1, 3).double(), torch.zeros(1, 4).double()]
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        pruner.step()
        for k, layer in enumerate((model[0], model[2])):
            down, up, gate = (getattr(layer.generator, n).detach() for n in ("lora_down", "lora_up", "gate"))
            parts = [gate[0, i] * torch.outer(up[:, i], down[i]) for i in range(gate.shape[1])]
            shares = torch.stack([part.norm() / sum(parts).norm() for part in parts])
            wanted[k] = 0.9 * wanted[k] + 0.1 * shares
    for score, share in zip(pruner.scores, wanted, strict=True):
        assert close(score, share, factor=1e3)  # the published 1e-8 in the denominator


def test_the_schedule_is_cubic_between_15_and_50_percent() -> None:
    """With standard normal gates that nothing trains, the number of zeros is the schedule's."""
    model = model_of(6, 6)
    pruner = GatePruner(model, steps=100, keep=0.5, every=5)
    for step in range(1, 101):
        found = pruner.step()
        done = min(max((step - step % 5 - 15) / 35, 0), 1)
        assert found == round(0.5 * done**3 * 12)


def test_the_lowest_of_all_layers_go_first() -> None:
    model = model_of(4, 4)
    with torch.no_grad():
        model[0].generator.gate.mul_(1e-3)  # alone in its layer, so its shares stay as they are
        model[2].generator.gate[0, :3] = torch.tensor([1e-6, 2e-6, 3e-6])
    pruner = GatePruner(model, steps=20, keep=5 / 8, every=1)
    for _ in range(20):
        zeros = pruner.step()
    assert zeros == 3
    assert (model[2].generator.gate[0] == 0).tolist() == [True, True, True, False]


def test_gates_may_grow_again_until_the_window_closes() -> None:
    model = model_of(4)
    gate = model[0].generator.gate
    pruner = GatePruner(model, steps=100, keep=0.5, every=10)
    for _ in range(45):
        pruner.step()
    dead = int((gate == 0).sum())
    assert dead > 0
    with torch.no_grad():
        gate.add_(1.0)
    assert pruner.step() < dead  # step 46: regrown
    for _ in range(4):
        assert pruner.step() >= 0
    last = gate == 0
    assert int(last.sum()) == 2
    with torch.no_grad():
        gate.add_(1.0)
    pruner.step()
    assert torch.equal(gate == 0, last)


def test_the_variance_of_directions() -> None:
    model = model_of(3)
    down, up = model[0].generator.lora_down, model[0].generator.lora_up
    wanted = torch.stack([down[i].var() + up[:, i].var() for i in range(3)]).mean()
    found = direction_variance(model)
    assert close(found, wanted)
    found.backward()
    assert down.grad.any()


def test_what_it_refuses() -> None:
    with pytest.raises(TargetError, match="no gates"):
        GatePruner(tower(LoRA(5, 4, 2)), steps=10)
    with pytest.raises(SpecError, match="keep must be in"):
        GatePruner(model_of(2), steps=10, keep=0.0)
    with pytest.raises(SpecError, match="no window"):
        GatePruner(model_of(2), steps=1)
    with pytest.raises(UnsupportedError, match="factors that stay"):
        GatePruner(tower(Gated(MAPS["tt_lora resample"])), steps=10)
