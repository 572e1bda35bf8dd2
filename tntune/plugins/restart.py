"""Restart: merge the adapter into the base and begin anew, so that many small steps make one of high rank."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tntune.adapters.adapt import adapted_layers, merge
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import SpecError, UnsupportedError
from tntune.maps.base import positive
from tntune.plugins.magnitude import MagnitudeLinear
from tntune.plugins.prune_bonds import product_norm
from tntune.plugins.replacement import refuse_storage

__all__ = ["MergeAndRestart", "restart"]


@torch.no_grad()
def restart(
    model: nn.Module, *, generator: torch.Generator | None = None, optimizer: Optimizer | None = None
) -> None:
    """``W0 <- W0 + ΔW`` and fresh params with ΔW = 0: the function stays, to the rounding of the weights.

    Each base gets a new weight, so that a module with which it was tied keeps its own, and the model must be
    saved whole from then on (an adapter folder is refused). Params stay the objects that they are. The
    optimiser forgets what it knows of them, since it belongs to other coordinates; its learning rate and
    schedule are left alone. A magnitude becomes that of the new weight.

    Args:
        model: Adapted, not merged, with maps that start at zero.
        generator: Source of the fresh params, on the CPU; by default torch's own.
        optimizer: What trains them, if anything does.

    Raises:
        SpecError: Where fresh params of a map would not give ΔW = 0.
        UnsupportedError: Where σ is not linear, or a layer is merged or switched off; nothing is changed.
        NumericalError: Where a weight would not be finite; nothing is changed.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), {"0": Site(LoRA(4, 3, 2))})
        >>> _ = nn.init.ones_(model[0].generator.lora_up)
        >>> x = torch.ones(1, 4)
        >>> before = model(x)
        >>> restart(model)
        >>> torch.allclose(model(x), before), model[0].delta_weight().any().item()
        (True, False)

    Reference: Malinovsky et al. (RAC-LoRA, arXiv 2410.08305), the chain of adapters; with ``sampled`` factors
    (:class:`MergeAndRestart`) it is theirs.
    """
    layers = dict(adapted_layers(model))
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise UnsupportedError(f"adapters are merged into {merged}; unmerge the model first")
    generators = dict.fromkeys(layer.generator for layer in layers.values())
    fresh = {held: _fresh(held, generator) for held in generators}
    merge(model)
    for layer in layers.values():
        _keep_merged(layer)
    for held, tensors in fresh.items():
        for name, tensor in tensors.items():
            own: Tensor = getattr(held, name)
            own.copy_(tensor)
            own.grad = None
            if optimizer is not None:
                optimizer.state.pop(own, None)
    for layer in layers.values():
        if isinstance(layer, MagnitudeLinear):
            layer.reset_magnitude()


class MergeAndRestart:
    """:func:`restart` after every ``every`` steps: a chain of adapters, each trained from zero.

    Params named in ``sampled`` are drawn afresh at each restart and never trained: with ``("lora_down",)`` it
    is RAC-LoRA's chain, in which one factor is a random sketch and the other is fitted to it.

    Args:
        model: Adapted, with maps that start at zero.
        optimizer: What trains it.
        every: Steps of one link of the chain.
        sampled: Flat names of params that are not trained; all maps must have them.
        generator: Source of the fresh params, on the CPU; by default torch's own.

    Raises:
        SpecError: Where a map lacks a name of ``sampled``, or nothing else of it is left to train.
        TargetError: Where there are no adapted layers.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), {"0": Site(LoRA(4, 3, 2))})
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        >>> chain = MergeAndRestart(model, optimizer, every=2, sampled=("lora_down",))
        >>> [chain.step() for _ in range(4)]
        [False, True, False, True]
        >>> model[0].generator.lora_down.requires_grad
        False
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int,
        sampled: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        self._model, self._optimizer, self._generator = model, optimizer, generator
        self._every, self._steps = positive("every", every), 0
        layers = list(adapted_layers(model))
        for name, layer in layers:
            known = set(layer.generator.map.param_shapes)
            if not set(sampled) < known:
                raise SpecError(f"{name}: sampled={tuple(sampled)} must be some, not all, of {sorted(known)}")
        for _, layer in layers:
            for each in sampled:
                getattr(layer.generator, each).requires_grad_(False)

    def step(self) -> bool:
        """Count a step of the optimiser; whether the model was restarted after it."""
        self._steps += 1
        due = self._steps % self._every == 0
        if due:
            restart(self._model, generator=self._generator, optimizer=self._optimizer)
        return due


def _fresh(held: FactorGenerator, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Fresh tensors of a map, with ΔW = 0."""
    params, fixed = held.map.init(generator, dtype=held.weight.dtype)
    if product_norm(held.map.factors(params, fixed)) != 0:
        raise SpecError(
            f"a fresh map of kind {held.map.kind!r} is not zero and would change the function; choose its "
            'start "zero"'
        )
    return {**params, **fixed}


def _keep_merged(layer: AdaptedLinear) -> None:
    """Make the merged weight the base's own."""
    merged = layer.base.weight
    layer.unmerge()
    layer.base.weight = merged
    refuse_storage(layer)
