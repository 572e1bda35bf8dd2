"""What the training campaigns train: two adapted blocks by any method, alike in every process."""

from collections.abc import Sequence
from copy import deepcopy
from random import Random

import torch
from torch import Tensor, nn

from tests.adapters.test_training import SPECS
from tests.support.models import Block
from tntune.adapters import AdapterSpec, adapt, adapted_layers

__all__ = ["METHODS", "batch", "drawn_start", "identical", "loss_of", "tower", "trained"]

METHODS: dict[str, AdapterSpec] = SPECS
"""Specifications by name: every kind of map, latent and activation."""


def tower(
    method: str, *, dtype: torch.dtype = torch.float32, cores: torch.dtype = torch.float32
) -> nn.Module:
    """The same model at every call: a base of that dtype with cores of their own, off the zero start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(Block(6, 8), Block(6, 8)).to(dtype)
        adapt(model, METHODS[method], dtype=cores)
    return drawn_start(model)


def drawn_start(model: nn.Module) -> nn.Module:
    """The model with all that is trained moved off the zero start, where most gradients vanish."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_(0.2 * noise.to(parameter.dtype))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def batch(seed: int, rows: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs of that seed."""
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """What is made smaller."""
    loss: Tensor = (model(x).float() - 1).square().mean()
    return loss


def identical(model: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors of both, and what they compute in evaluation, are the same bits."""
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    same = all(name == known and torch.equal(a, b) for (name, a), (known, b) in pairs)
    first = next(model.parameters())
    x = batch(99, dtype=first.dtype)
    return same and torch.equal(evaluated(model, x), evaluated(other, x)) and _is_fresh(model, x)


def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs in evaluation; the mode is as before then."""
    mode = model.training
    with torch.no_grad():
        outputs: Tensor = model.eval()(x)
    model.train(mode)
    return outputs


def look(model: nn.Module, draw: Random) -> None:
    """Do one of the things that a loop does between two steps, each of which leaves the model as it is."""
    ways: Sequence[str] = ("nothing", "evaluate", "forward", "infer", "copy", "factors")
    way, x = draw.choice(ways), batch(draw.randrange(10**6), dtype=next(model.parameters()).dtype)
    if way == "evaluate":
        evaluated(model, x)
    elif way == "forward":
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(x)
    elif way == "infer":
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            model(x)
    elif way == "copy":
        evaluated(deepcopy(model), x)
    elif way == "factors":
        with torch.no_grad():
            for _, layer in adapted_layers(model):
                layer.generator.stored(layer.site)


def _is_fresh(model: nn.Module, x: Tensor) -> bool:
    """Whether a copy, which has no caches, computes the same."""
    return torch.equal(evaluated(deepcopy(model), x), evaluated(model, x))
