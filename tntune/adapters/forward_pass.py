"""ForwardPass: maps that serve many layers generate once for each call of the model."""

from collections.abc import Sequence

from torch import nn

from tntune.adapters.generator import FactorGenerator

__all__ = ["ForwardPass", "drop_passes"]


class ForwardPass:
    """Hooks of a model: before its forward each generator makes the factors of all its sites, in one go.

    The layers then read their slices, so that the number of contractions does not grow with the depth. A
    layer that is called without the model around it generates its own site, with the same result.

    Args:
        model: The module whose call is a pass.
        generators: Those of maps with several sites.

    Example:
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> generator, model = FactorGenerator.fresh(LoTR(Stack(5, 3, layers=4), 2)), nn.Sequential()
        >>> _ = ForwardPass(model, [generator])
        >>> model(1)
        1
    """

    def __init__(self, model: nn.Module, generators: Sequence[FactorGenerator]) -> None:
        self.generators = tuple(generators)
        self._handles = (
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, inputs: object) -> None:
        for generator in self.generators:
            generator.begin()

    def _end(self, model: nn.Module, inputs: object, output: object) -> None:
        for generator in self.generators:
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
