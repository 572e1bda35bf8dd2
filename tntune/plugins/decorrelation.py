"""Decorrelation: a penalty that keeps groups of an adapter's directions from telling the same thing."""

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters.adapt import adapted_layers
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import SpecError, UnsupportedError
from tntune.maps.base import positive

__all__ = ["ProjectedFeatures", "decorrelation"]


def decorrelation(features: Tensor, groups: int) -> Tensor:
    """Mean over pairs of groups of ``|HᵢᵀHⱼ|² / (|HᵢᵀHᵢ| |HⱼᵀHⱼ|)``, in [0, 1], for centred features H.

    Zero where no direction of one group correlates with any of another; one where each group is a rotation
    of the others. It is linear centred kernel alignment between groups, so rotations and scales within a
    group do not change it.

    Args:
        features: ``(n, width)``; groups are runs of neighbouring columns.
        groups: At least 2, a divisor of the width.

    Returns:
        A differentiable scalar, in O(n width²).

    Raises:
        SpecError: Where the groups do not divide the width, or there are fewer than 2 rows.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> decorrelation(x, 2).item(), round(decorrelation(x[:, :1].expand(4, 2), 2).item(), 6)
        (0.0, 1.0)

    Reference: Kornblith et al. (2019) for the measure. A penalty of the kind that ReSoRA's abstract speaks
    of; not a reproduction of it.
    """
    rows, width = features.shape
    if positive("groups", groups) < 2 or width % groups or rows < 2:
        raise SpecError(
            f"{groups} groups of features ({rows}, {width}): at least 2 that divide, of at least 2 rows"
        )
    centred = features - features.mean(0)
    gram = (centred.mT @ centred).reshape(groups, width // groups, groups, -1)
    shared = gram.square().sum((1, 3))  # (groups, groups)
    own = shared.diagonal().clamp(min=torch.finfo(shared.dtype).tiny).sqrt()
    aligned = shared / own[:, None] / own
    return (aligned.sum() - aligned.diagonal().sum()) / (groups * (groups - 1))


class ProjectedFeatures:
    """Within ``with ProjectedFeatures(model) as seen:`` what each adapter projects is kept, ``down x``.

    Add ``weight * seen.penalty(groups)`` to the loss. Inputs of the last call of each layer are held until
    the next one; they are held for backward anyway.

    Args:
        model: A torch model with adapted layers.

    Raises:
        TargetError: Where there are no adapted layers.
        UnsupportedError: Where a latent is drawn at every call, so that a projection cannot be had again.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(width=4))
        >>> with ProjectedFeatures(model) as seen:
        ...     _ = model(torch.eye(12))
        ...     penalty = seen.penalty(2)
        >>> bool(0 < penalty < 1), penalty.requires_grad
        (True, True)
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = dict(adapted_layers(model))
        drawn = [name for name, layer in self._layers.items() if layer.generator.map.resampled]
        if drawn:
            raise UnsupportedError(f"latents of {drawn} are drawn at every call; use a fixed one")
        self._inputs: dict[AdaptedLinear, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "ProjectedFeatures":
        self._handles = [layer.register_forward_pre_hook(self._keep) for layer in self._layers.values()]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()

    def penalty(self, groups: int) -> Tensor:
        """Mean of :func:`decorrelation` over the layers that were called.

        Raises:
            SpecError: Where none was called within the block, or the groups do not divide a width.
        """
        if not self._inputs:
            raise SpecError("no adapted layer was called in the block: there are no features to decorrelate")
        return torch.stack(
            [decorrelation(_projected(layer, x), groups) for layer, x in self._inputs.items()]
        ).mean()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, AdaptedLinear)  # only those are hooked
        self._inputs[module] = inputs[0]


def _projected(layer: AdaptedLinear, x: Tensor) -> Tensor:
    """``down x`` for every row of x, in the dtype of the cores."""
    down = layer.factors().down
    return functional.linear(x.flatten(0, -2).to(down.dtype), down)
