"""LoRTA: one CP over input, head, feature of the head, projection and layer."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tntune.maps.base import Shape, positive
from tntune.maps.fit import cp_als
from tntune.maps.joint import JointMap
from tntune.maps.network import Network, Node, uniform
from tntune.maps.stack import Stack, check_heads, check_stack, split_heads

__all__ = ["LoRTA"]


@dataclass(frozen=True)
class LoRTA(JointMap):
    """``ΔW[l, p]^T[:, head h] = A diag(C_head[h] * C_proj[p] * C_layer[l]) B``: a CP of five modes.

    Attributes:
        stack: The layers; projections are Q, K, V and O in the paper.
        rank: r, the number of terms.
        heads: Attention heads; they split the output.
        input_heads: Projections whose heads split the input instead, as O's do: there ΔW is the transpose,
            and starts at 0 by down. The paper's two programs split the input of all, and the output of all.
        start: ``"zero"``: B = 0; A is uniform in ±1 / sqrt(r), the others in ±sqrt(6 / r). ``"random"``: B is
            drawn like A.

    Raises:
        ModeError: Where heads do not divide the output, or sites with input heads are not square.

    Example:
        >>> LoRTA(Stack(768, 768, layers=12, projections=4), 4, heads=12, input_heads=(3,)).num_parameters
        3440

    Reference: Hounie et al. (arXiv 2410.04060).
    """

    kind: ClassVar[str] = "lorta"

    stack: Stack
    rank: int
    heads: int
    input_heads: Shape = ()

    def _network(self) -> Network:
        stack, r = check_stack(self.stack), positive("rank", self.rank)
        object.__setattr__(self, "input_heads", check_heads(stack, self.input_heads))
        matrix, index = uniform(1 / math.sqrt(r)), uniform(math.sqrt(6 / r))
        out = {"head": self.heads, "dh": split_heads(stack.out_features, self.heads)}
        fills = {"dh": matrix, "head": index, "proj": index, "layer": index}
        return Network(
            {**stack.index, "in": stack.in_features, **out, "width": r},
            down={"tn_in": Node(("in", "width"), matrix)},
            up={f"tn_{leg}": Node((leg, "width"), fill) for leg, fill in fills.items()},
            in_legs=("in",),
            out_legs=("head", "dh"),
            silent="tn_dh",
            turned=self.input_heads,
        )

    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        """Alternating least squares from a start of its own seed: a stationary point, not the best one."""
        split = target.reshape(*target.shape[:-1], self.heads, -1)
        names = ("tn_layer", "tn_proj", "tn_in", "tn_head", "tn_dh")
        return dict(zip(names, cp_als(split, self.rank), strict=True))
