"""JointMap: ΔW of a whole stack as one tensor, with one factor for the input features."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.maps.delta import DeltaMap

__all__ = ["JointMap"]


@dataclass(frozen=True)
class JointMap(DeltaMap):
    """A :class:`DeltaMap` over a stack, whose node ``tn_in`` ``(.., in, width)`` makes down by itself.

    A final is its fields, its network and its fit; whatever else a map must do is here and in DeltaMap.

    Example:
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> issubclass(LoTR, JointMap), LoTR(Stack(5, 3), 2).param_shapes["tn_in"]
        (True, (5, 2))
    """

    @abstractmethod
    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        """Nodes for ``target`` (layer, proj, in, out), a ΔW^T whose in leg may be shorter than D."""

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` whose ΔW is the best that this map finds for ``up @ down``.

        Computed in float64. The in leg is first turned to a basis of the rows of down, so ΔW of adapters of
        small rank is never formed at its full size.
        """
        self.check_factors(down, up)
        shape = self.network.stack_shape
        wide = (part.detach().double() for part in (down, up))
        rows, columns = self.turn(*(part.reshape(*shape, *part.shape[1:]) for part in wide))
        basis, _ = torch.linalg.qr(rows.flatten(0, 2).mT)  # (D, k)
        nodes = self._fit((columns @ (rows @ basis)).mT)
        nodes["tn_in"] = basis @ nodes["tn_in"]
        return {name: nodes[name].to(down.dtype) for name in self.param_shapes}, {}
