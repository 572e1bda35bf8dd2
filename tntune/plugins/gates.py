"""Gates in training: SoRA's proximal step, and taking out what it made zero."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tntune.adapters.adapt import adapted_layers
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.maps.base import finite
from tntune.maps.gated import GATE, Gated
from tntune.plugins.gated import narrowed

__all__ = [
    "count_zeros",
    "double_threshold",
    "gate_of",
    "gated_layers",
    "prune_gates",
    "shrink_gates",
    "soft_threshold",
    "unshared_layers",
]

_COMPAT = ("none", "sora")


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """``argmin_g (g - x)² / 2 + threshold * |g|``: entries move to zero by the threshold, and stop there.

    Example:
        >>> soft_threshold(torch.tensor([3.0, -0.5, 1.5]), 1.0).tolist()
        [2.0, 0.0, 0.5]
    """
    return x - x.clamp(-threshold, threshold)


def double_threshold(x: Tensor, threshold: float) -> Tensor:
    """What SoRA's released code does: the soft threshold, then zero for what is below it, so below twice it.

    No proximal operator: it jumps at ``2 * threshold``.

    Example:
        >>> double_threshold(torch.tensor([3.0, -0.5, 1.5]), 1.0).tolist()
        [2.0, 0.0, 0.0]
    """
    shifted = torch.where(x.abs() > threshold, x - threshold * x.sign(), x)
    return torch.where(shifted.abs() < threshold, torch.zeros_like(shifted), shifted)


def gated_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Every adapted layer by its path; all must have gates.

    Raises:
        TargetError: Where there are no adapted layers, or one has no gates.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec())
        >>> gated_layers(model)
        Traceback (most recent call last):
        tntune.errors.TargetError: no gates in ['0']; adapt the model with gated_sites(...)
    """
    layers = dict(adapted_layers(model))
    bare = [name for name, layer in layers.items() if not isinstance(layer.generator.map, Gated)]
    if bare:
        raise TargetError(f"no gates in {bare}; adapt the model with gated_sites(...)")
    return layers


def unshared_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """:func:`gated_layers` where each has gates of its own.

    Raises:
        TargetError: Where there are no adapted layers, or one has no gates.
        UnsupportedError: Where layers share a generator, and so their gates.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), {"0": Site(Gated(LoRA(4, 3, 2)))})
        >>> list(unshared_layers(model))
        ['0']
    """
    layers = gated_layers(model)
    if len({layer.generator for layer in layers.values()}) < len(layers):
        raise UnsupportedError("layers share their gates, and a direction is pruned in one layer alone")
    return layers


def gate_of(generator: FactorGenerator) -> Tensor:
    """The gates ``(sites, width)`` of a generator, detached, on the same storage.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> gate_of(FactorGenerator.fresh(Gated(LoRA(4, 3, 2)))).shape
        torch.Size([1, 2])
    """
    gate: Tensor = getattr(generator, GATE)
    return gate.detach()


def count_zeros(generators: Iterable[FactorGenerator]) -> int:
    """How many gates of all these are zero.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> count_zeros([FactorGenerator.fresh(Gated(LoRA(4, 3, 2, "random"), "zero"))])
        2
    """
    return sum(int((gate_of(generator) == 0).sum()) for generator in generators)


@torch.no_grad()
def shrink_gates(model: nn.Module, threshold: float, *, compat: str = "none") -> int:
    """After a step of the optimiser: every gate becomes ``soft_threshold(gate, threshold)``.

    With ``threshold = lr * penalty`` that is the proximal step of the penalty ``penalty * Σ |gate|`` for
    gradient descent, which SoRA's paper also takes after AdamW.

    Args:
        model: Adapted with :func:`tntune.plugins.gated_sites`.
        threshold: At least 0. A schedule of the penalty is the caller's.
        compat: ``"sora"``: the :func:`double_threshold` of the released code, which takes the penalty itself
            for the threshold, without the learning rate.

    Returns:
        How many gates are zero.

    Raises:
        TargetError: Where a layer has no gates.
        SpecError: For a threshold below 0, or another ``compat``.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> from tntune.plugins.gated import gated_sites
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), gated_sites({"0": Site(LoRA(4, 3, 2))}))
        >>> shrink_gates(model, 100.0)
        2

    Reference: Ding et al. (SoRA, EMNLP 2023), eq. 6 and their released code.
    """
    if finite("threshold", threshold) < 0 or compat not in _COMPAT:
        raise SpecError(f"threshold={threshold}, compat={compat!r}: at least 0, and one of {_COMPAT}")
    shrunk = double_threshold if compat == "sora" else soft_threshold
    generators = {layer.generator for layer in gated_layers(model).values()}
    for gate in map(gate_of, generators):
        gate.copy_(shrunk(gate, threshold))
    return count_zeros(generators)


@torch.no_grad()
def prune_gates(model: nn.Module) -> dict[str, int]:
    """Take the gates out: smaller maps without the directions that are zero, and the same function.

    To be called when training is over, or before a new optimiser is made: params are new ones. The result has
    plain maps, which are saved and converted as ever.

    Returns:
        The width that each layer has now, by path.

    Raises:
        TargetError: Where a layer has no gates.
        UnsupportedError: Where a map has no axis of the width alone (:func:`tntune.plugins.narrowed`), layers
            share a generator, or one is merged; nothing is changed.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> from tntune.plugins.gated import gated_sites
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), gated_sites({"0": Site(LoRA(4, 3, 2))}))
        >>> prune_gates(model)
        {'0': 2}
    """
    layers = unshared_layers(model)
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise UnsupportedError(f"gates of merged layers {merged} stay; unmerge the model first")
    made = {name: _plain_generator(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.generator = made[name]
        layer.spec = replace(layer.spec, map=made[name].map)
    return {name: generator.map.width for name, generator in made.items()}


def _plain_generator(layer: AdaptedLinear) -> FactorGenerator:
    """The generator of a layer without its gates."""
    map = layer.generator.map
    assert isinstance(map, Gated)  # gated_layers saw it
    smaller, tensors = narrowed(map, layer.generator.tensors())
    params = {name: tensors[name] for name in smaller.param_shapes}
    fixed = {name: tensors[name] for name in smaller.fixed_shapes}
    made = FactorGenerator(smaller, params, fixed).train(layer.generator.training)
    return made.requires_grad_(layer.generator.weight.requires_grad)
