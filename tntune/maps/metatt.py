"""MetaTT: one train over input, layer, projection, and output or head and feature of the head."""

import math
from dataclasses import dataclass
from typing import ClassVar

from tensorly.tt_tensor import TTTensor
from torch import Tensor

from tntune.errors import SpecError
from tntune.maps.base import Shape, Tensors, positive
from tntune.maps.fit import padded
from tntune.maps.joint import JointMap
from tntune.maps.network import Network, Node, identity, normal
from tntune.maps.stack import Stack, check_heads, check_stack, split_heads
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule
from tntune.tt.train import tt_tensor

__all__ = ["MetaTT"]


@dataclass(frozen=True)
class MetaTT(JointMap):
    """``ΔW[l, p]^T = G_in G_layer[l] G_proj[p] G_out``, or ``.. G_head[h] G_dh`` with heads.

    Attributes:
        stack: The layers.
        rank: r of every bond.
        heads: 1: the train of four modes. More: the train of five, heads splitting the output.
        input_heads: Projections whose heads split the input instead; there ΔW is the transpose, and starts at
            0 by down.
        start: ``"zero"``: the last core is zero, inner cores are identities, entries of down have the
            variance 1 / (3 D) of a LoRA's. ``"random"``: the last core has the variance 1 / (3 r). Both are
            ours.

    Raises:
        ModeError: Where heads do not divide the output, or sites with input heads are not square.

    Example:
        >>> qv = Stack(768, 768, layers=12, projections=2)
        >>> MetaTT(qv, 8).num_parameters, MetaTT(qv, 16, heads=12).num_parameters
        (13184, 19968)

    Reference: Lopez-Piqueres et al. (arXiv 2506.09105).
    """

    kind: ClassVar[str] = "metatt"

    stack: Stack
    rank: int
    heads: int = 1
    input_heads: Shape = ()

    @property
    def modes(self) -> dict[str, int]:
        """Sizes of the modes by name, in the order of the train."""
        dh = split_heads(self.stack.out_features, self.heads)
        out = {"out": self.stack.out_features} if self.heads == 1 else {"head": self.heads, "dh": dh}
        return {"in": self.stack.in_features, **self.stack.index, **out}

    def tensor_train(self, params: Tensors) -> TTTensor:
        """The train over :attr:`modes` as tensorly's type; nothing is copied."""
        first, *inner, last = (params[f"tn_{name}"] for name in self.modes)
        return tt_tensor([first[None], *inner, last[..., None]])

    def _network(self) -> Network:
        stack, r = check_stack(self.stack), positive("rank", self.rank)
        object.__setattr__(self, "input_heads", check_heads(stack, self.input_heads))
        if self.input_heads and self.heads == 1:
            raise SpecError(f"input_heads={self.input_heads} was given, but there is no head mode: heads=1")
        first, *inner, last = modes = self.modes
        bonds = ["width", *(f"rank {name}" for name in inner)]
        cores = {
            f"tn_{name}": Node((left, name, right), identity)
            for left, name, right in zip(bonds[:-1], inner, bonds[1:], strict=True)
        }
        end = Node((bonds[-1], last), normal(1 / math.sqrt(3 * r)))
        return Network(
            {**modes, **dict.fromkeys(bonds, r)},
            down={"tn_in": Node((first, "width"), normal(1 / math.sqrt(3 * stack.in_features)))},
            up={**cores, f"tn_{last}": end},
            in_legs=("in",),
            out_legs=tuple(leg for leg in modes if leg in ("out", "head", "dh")),
            silent=f"tn_{last}",
            turned=self.input_heads,
        )

    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        """TT-SVD: within the root of the number of bonds of the best, exact at full rank."""
        tensor = target.permute(2, 0, 1, 3)  # (in, layer, proj, out)
        if self.heads > 1:
            tensor = tensor.reshape(*tensor.shape[:-1], self.heads, -1)
        first, *inner, last = tt_svd(tensor, RankRule(max_rank=self.rank)).value.factors
        r = self.rank
        fitted = [
            padded(first[0], (first.shape[1], r)),
            *(padded(core, (r, core.shape[1], r)) for core in inner),
            padded(last[..., 0], (r, last.shape[1])),
        ]
        return {f"tn_{name}": node for name, node in zip(self.modes, fitted, strict=True)}
