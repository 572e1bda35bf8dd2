"""LoTR: all sites share two factors, each has a small core of its own."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tntune.maps.base import positive
from tntune.maps.fit import tucker2
from tntune.maps.joint import JointMap
from tntune.maps.network import Network, Node, normal
from tntune.maps.stack import Stack, check_stack

__all__ = ["LoTR"]


@dataclass(frozen=True)
class LoTR(JointMap):
    """``ΔW[s] = V core[s]^T U^T``: the Tucker-2 of the stacked matrices.

    Attributes:
        stack: The layers.
        rank: r of both factors and of the cores.
        start: ``"zero"``: standard normal factors and zero cores. ``"random"``: standard normal cores too.

    Example:
        >>> LoTR(Stack(768, 768, layers=12, projections=2), 8).num_parameters
        13824

    Reference: Bershatsky et al. (arXiv 2402.01376); their scale is ``scale / rank``, a matter of the site.
    """

    kind: ClassVar[str] = "lotr"

    stack: Stack
    rank: int

    def _network(self) -> Network:
        r = positive("rank", self.rank)
        stack = check_stack(self.stack)
        own, unit = {"in": stack.in_features, "out": stack.out_features}, normal(1.0)
        return Network(
            {**stack.index, **own, "width": r, "rank out": r},
            down={"tn_in": Node(("in", "width"), unit)},
            up={
                "tn_core": Node(("layer", "proj", "width", "rank out"), unit),
                "tn_out": Node(("out", "rank out"), unit),
            },
            in_legs=("in",),
            out_legs=("out",),
            silent="tn_core",
        )

    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        """Leading singular vectors on both sides: within a root of 2 of the best, exact at full rank."""
        core, u, v = tucker2(target, self.rank)
        return {"tn_in": u, "tn_core": core, "tn_out": v}
