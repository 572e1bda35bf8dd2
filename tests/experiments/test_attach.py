"""attach: what trains is counted once, under the right part, and nothing else trains."""

import pytest
import torch
from torch import nn

from tests.experiments.sample import SIZED, method
from tntune.errors import SpecError, TargetError
from tntune.experiments.attach import attach, stored_bytes, target_sizes
from tntune.experiments.planes import Planes

HIDDEN, CLASSES = 16, 2
HEAD = HIDDEN * CLASSES + CLASSES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(model: nn.Module) -> dict[int, torch.Tensor]:
    """Every tensor that trains, once, found from its modules."""
    return {
        id(p): p
        for module in model.modules()
        for p in module._parameters.values()
        if p is not None and p.requires_grad
    }


@pytest.mark.parametrize("name", SIZED)
def test_parameters_are_those_that_train(name: str) -> None:
    task = Planes()
    model = task.model(0)
    attached = attach(task, model, method(name), budget=500, generator=generator())
    assert attached.total == sum(p.numel() for p in trained(model).values())
    assert attached.params["head"] == HEAD
    groups = method(name).groups({path: (HIDDEN, HIDDEN) for path in task.targets}, 500)
    assert attached.params["adapter"] == sum(group.map.num_parameters for group in groups)
    assert attached.params["adapter"] <= 500


@pytest.mark.parametrize("name", SIZED)
def test_the_function_is_unchanged_at_the_zero_start(name: str) -> None:
    task = Planes()
    x = task.data.test["x"]
    for activation in ("identity", "relu"):
        model = task.model(0).eval()
        before = model(x)
        attach(task, model, method(name, activation=activation), budget=500, generator=generator())
        assert torch.equal(model.eval()(x), before)


@pytest.mark.parametrize("name", SIZED)
def test_every_adapter_parameter_reaches_the_loss_after_a_step(name: str) -> None:
    task = Planes(dropout=0.0)
    model = task.model(0)
    attach(task, model, method(name), budget=500, generator=generator())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        task.loss(model, task.data.train).backward()
        optimizer.step()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and not bool(p.grad.any())]
    assert silent == []


def test_the_head_trains_the_targets_themselves() -> None:
    task = Planes()
    model = task.model(0)
    attached = attach(task, model, method("head"), budget=None, generator=generator())
    assert attached.params == {"adapter": 2 * (HIDDEN * HIDDEN + HIDDEN), "head": HEAD}
    assert attached.size is None


def test_a_spread_replaces_the_start() -> None:
    task = Planes()
    model = task.model(0)
    attach(task, model, method("lora", spread=0.5), budget=6400, generator=generator())
    entries = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "generator" in name])
    assert 0.45 < float(entries.std()) < 0.55


@pytest.mark.parametrize(
    ("name", "options", "budget", "message"),
    [
        ("lora", {}, None, "needs a budget"),
        ("lora", {"width": 2}, 100, "takes no budget"),
        ("head", {}, 100, "takes no budget"),
    ],
)
def test_a_budget_is_given_where_a_size_is_chosen(
    name: str, options: dict[str, int], budget: int | None, message: str
) -> None:
    task = Planes()
    with pytest.raises(SpecError, match=message):
        attach(task, task.model(0), method(name, **options), budget=budget, generator=generator())


def test_a_parameter_in_no_part_is_refused() -> None:
    task = Planes()
    model = task.model(0)
    model.first.requires_grad_(True)
    with pytest.raises(SpecError, match=r"first\.weight trains, but is in none of"):
        attach(task, model, method(), budget=500, generator=generator())


def test_a_missing_target_is_named() -> None:
    task = Planes()
    task.targets = ("blocks.7",)
    with pytest.raises(TargetError, match=r"no modules \['blocks\.7'\]"):
        attach(task, task.model(0), method(), budget=500, generator=generator())


def test_stored_bytes_are_what_trains_latents_and_buffers_that_moved() -> None:
    task = Planes()
    model = task.model(0)
    attached = attach(task, model, method("tensorguide", latent="fixed"), budget=500, generator=generator())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    latents = sum(b.nbytes for name, b in before.items() if name.endswith("latent"))
    assert latents > 0
    assert stored_bytes(model, before) == 4 * attached.total + latents
    model.train()(task.data.train["x"])  # moves mean, variance and count of the normalisation
    assert stored_bytes(model, before) == 4 * attached.total + latents + 2 * 4 * HIDDEN + 8


def test_sizes_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert target_sizes(model, ["0"]) == {"0": (4, 3)}
    with pytest.raises(TargetError, match=r"no modules \['5'\]"):
        target_sizes(model, ["0", "5"])
    with pytest.raises(TargetError, match="ReLU cannot be adapted"):
        target_sizes(model, ["1"])
