"""JointTrain: a basis of the inputs, one of the outputs, and the coefficients of every layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from tntune.maps.base import Factors

__all__ = ["JOINT_LAYOUT", "JointTrain"]

JOINT_LAYOUT = "io (layer side w)"
"""A basis of the inputs and one of the outputs for all layers, and coefficients of each layer and side."""


class JointTrain(NamedTuple):
    """``ΔW_l ≈ outputs up_l down_lᵀ inputsᵀ`` for every layer l.

    Attributes:
        inputs: ``(in, r)``.
        outputs: ``(out, r)``.
        down: ``(layers, r, w)``.
        up: ``(layers, r, w)``.

    Example:
        >>> train = JointTrain(torch.ones(5, 2), torch.ones(3, 2), torch.ones(4, 2, 1), torch.ones(4, 2, 1))
        >>> [tuple(core.shape) for core in train.cores()], tuple(train.factors(0).up.shape)
        ([(1, 8, 2), (2, 8, 1)], (3, 1))
    """

    inputs: Tensor
    outputs: Tensor
    down: Tensor
    up: Tensor

    def factors(self, layer: int) -> Factors:
        """Down ``(w, in)`` and up ``(out, w)`` of one layer."""
        return Factors((self.inputs @ self.down[layer]).mT, self.outputs @ self.up[layer])

    @classmethod
    def of_cores(cls, first: Tensor, second: Tensor, *, inside: int, layers: int) -> "JointTrain":
        """``JointTrain.of_cores(*train.cores(), ...)`` is the train again."""
        rank = first.shape[-1]
        sides = second.reshape(rank, layers, 2, -1).movedim(1, 0)  # (layers, r, side, w)
        return cls(first[0, :inside], first[0, inside:], sides[:, :, 0], sides[:, :, 1])

    def cores(self) -> tuple[Tensor, Tensor]:
        """The two cores in the layout ``"io (layer side w)"``."""
        sides = torch.stack([self.down, self.up], dim=2)  # (layers, r, side, w)
        layers = sides.movedim(1, 0)  # (r, layers, side, w)
        return torch.cat([self.inputs, self.outputs])[None], layers.reshape(layers.shape[0], -1, 1)
