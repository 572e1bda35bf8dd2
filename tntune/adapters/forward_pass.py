"""ForwardPass: what can be generated together is generated once for each call of the model."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import nn

from tntune.adapters.batch import Batch, batches
from tntune.adapters.generator import FactorGenerator
from tntune.contract.cut import is_plain
from tntune.maps.base import WeightMap

__all__ = ["ForwardPass", "GeneratedLayer", "drop_passes"]


class GeneratedLayer(Protocol):
    """A layer whose factors come from generators."""

    def active_generators(self) -> Iterable[FactorGenerator]:
        """Those that a forward of the layer would call now."""
        ...

    @property
    def is_sharing(self) -> bool:
        """Whether one of its generators serves other layers as well."""
        ...


class ForwardPass:
    """Hooks of a model: before its forward the factors of many layers are made in one go.

    A map that serves several layers makes all its sites; layers that have equal maps of their own make theirs
    by one contraction (:class:`tntune.adapters.batch.Batch`). The layers then read their slices, so that the
    number of contractions does not grow with the depth. A layer that is called without the model around it
    generates alone, with the same result, and so do all under ``torch.func``, forward-mode differentiation
    and a ``torch.compile`` of the whole model. In a pass without gradient, layers that share nothing keep
    what they made, and nothing is done for them here.

    Args:
        model: The module whose call is a pass.
        layers: The layers in it.

    Example:
        >>> from tntune.adapters.linear import AdaptedLinear
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> layer = AdaptedLinear(nn.Linear(5, 3), FactorGenerator.fresh(LoTR(Stack(5, 3, layers=4), 2)))
        >>> model = nn.Sequential(layer)
        >>> _ = ForwardPass(model, [layer])
        >>> model(torch.ones(1, 5)).shape
        torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module, layers: Sequence[GeneratedLayer]) -> None:
        self.layers = tuple(layers)
        self._known: list[tuple[FactorGenerator, WeightMap]] = []
        self._batches: list[Batch] = []
        self._begun: list[FactorGenerator] = []
        self._handles = (
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, inputs: object) -> None:
        if torch.compiler.is_compiling() or not is_plain():
            return
        with_gradient = torch.is_grad_enabled()
        layers = [layer for layer in self.layers if with_gradient or layer.is_sharing]
        self._begun = list(dict.fromkeys(g for layer in layers for g in layer.active_generators()))
        for generator in self._begun:
            generator.begin()
        for batch in self._batched() if with_gradient else ():
            batch.begin()

    def _batched(self) -> list[Batch]:
        """The batches of the generators of this pass, which are sought where those are other ones."""
        known = [(generator, generator.map) for generator in self._begun]
        if known != self._known:
            self._known, self._batches = known, batches(self._begun)
        return self._batches

    def _end(self, model: nn.Module, inputs: object, output: object) -> None:
        if torch.compiler.is_compiling():
            return
        for generator in self._begun:
            generator.end()


def drop_passes(model: nn.Module) -> None:
    """Remove the hooks of every :class:`ForwardPass` in the model.

    Example:
        >>> drop_passes(nn.Linear(4, 3))
    """
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, ForwardPass):
                owner.remove()
