"""DeltaTrain: the TT-LoRA of Anjum et al., ΔW of one layer as a single tensor train."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensorly.tt_tensor import TTTensor
from torch import Tensor

from tntune.errors import RankError
from tntune.maps.base import Shape, Tensors, positives
from tntune.maps.delta import DeltaMap
from tntune.maps.fit import padded
from tntune.maps.network import CUT, Fill, Network, Node, normal
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule
from tntune.tt.rounding import round_tt
from tntune.tt.train import tt_tensor

__all__ = ["DeltaTrain"]


@dataclass(frozen=True)
class DeltaTrain(DeltaMap):
    """``ΔW^T[i, o] = TT(G_1 .. G_K)`` over the digits of i, then those of o.

    The bond between input and output digits is the width: ΔW has at most that rank, and is applied as down
    and up, each the contraction of its own cores.

    Attributes:
        in_modes: Digits of the input feature, the least significant first, as the published code reads them.
        out_modes: Digits of the output feature, the most significant first.
        ranks: TT-ranks r_0 .. r_K, 1 at both ends.
        start: ``"zero"``: the last core is zero, entries of down have the variance 1 / (3 D) of a LoRA's.
            ``"random"``: entries of up have the variance 1 / (3 width). ``"published"``: uniform cores of
            norm 1, so that the norm of ΔW is at most 1, and not zero.

    Raises:
        RankError: Where the ranks are not K + 1, or not 1 at the ends.

    Example:
        >>> DeltaTrain((64, 4, 3), (3, 4, 64), (1, 5, 5, 5, 5, 5, 1)).num_parameters
        990

    Reference: Anjum et al. (arXiv 2408.01008).
    """

    kind: ClassVar[str] = "delta_train"
    starts: ClassVar[tuple[str, ...]] = ("zero", "random", "published")

    in_modes: Shape
    out_modes: Shape
    ranks: Shape

    def _network(self) -> Network:
        for name in ("in_modes", "out_modes", "ranks"):
            object.__setattr__(self, name, positives(name, getattr(self, name)))
        modes, ranks, cut = (*self.in_modes, *self.out_modes), self.ranks, len(self.in_modes)
        if len(ranks) != len(modes) + 1 or ranks[0] != 1 or ranks[-1] != 1:
            raise RankError(f"modes {modes} need {len(modes) + 1} ranks with 1 at both ends, not {ranks}")
        bonds = [CUT if k == cut else f"rank {k}" for k in range(len(ranks))]
        legs = [f"in {k}" if k < cut else f"out {k - cut}" for k in range(len(modes))]
        nodes = [
            (f"tt_core_{k}", Node((bonds[k], leg, bonds[k + 1]), self._fill(k))) for k, leg in enumerate(legs)
        ]
        return Network(
            dict(zip((*bonds, *legs), (*ranks, *modes), strict=True)),
            down=dict(nodes[:cut]),
            up=dict(nodes[cut:]),
            in_legs=tuple(legs[cut - 1 :: -1]),
            out_legs=tuple(legs[cut:]),
            silent=nodes[-1][0],
        )

    def _fill(self, k: int) -> Fill:
        """How core k starts."""
        if self.start == "published":
            return _unit
        cut = len(self.in_modes)
        below = k < cut
        paths = math.prod(self.ranks[1:cut] if below else self.ranks[cut + 1 : -1])
        entries = math.prod(self.in_modes) if below else self.ranks[cut]
        return normal((1 / (3 * entries * paths)) ** (0.5 / len(self.in_modes if below else self.out_modes)))

    def tensor_train(self, params: Tensors) -> TTTensor:
        """The train of ΔW^T as tensorly's type, its modes ``(*in_modes, *out_modes)``; nothing is copied."""
        return tt_tensor([params[name] for name in self.param_shapes])

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` by rounding the exact train of ``up @ down`` to our ranks.

        TT-SVDs of down and of up are joined at the width; ΔW is never formed. The error is at most the root
        of the number of bonds times the least possible, and zero where the ranks suffice.
        """
        self.check_factors(down, up)
        # digits of the input are the least significant first, and so the axes of the train
        rows = down[0].double().mT.reshape(*self.in_modes[::-1], -1)
        rows = rows.permute(*range(len(self.in_modes) - 1, -1, -1), -1)
        *left, last = tt_svd(rows).value.factors
        first, *right = tt_svd(up[0].double().mT.reshape(-1, *self.out_modes)).value.factors
        left[-1] = torch.tensordot(left[-1], last[..., 0] @ first[0], dims=1)
        train = round_tt(tt_tensor([*left, *right]), RankRule(ranks=self.ranks[1:-1])).value
        named = zip(self.param_shapes.items(), train.factors, strict=True)
        return {name: padded(core, shape).to(down.dtype) for (name, shape), core in named}, {}


def _unit(shape: Shape, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """Uniform entries around zero, scaled to norm 1."""
    drawn = torch.empty(shape, dtype=dtype, device="cpu").uniform_(-1, 1, generator=generator)
    return drawn.div_(drawn.norm())
