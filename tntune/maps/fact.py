"""FacT: all matrices of a model as slices of one tensor, in TT or Tucker form."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tntune.errors import SpecError
from tntune.maps.base import positive
from tntune.maps.fit import hosvd, tucker2
from tntune.maps.joint import JointMap
from tntune.maps.network import CUT, Network, Node, uniform
from tntune.maps.stack import Stack, check_stack

__all__ = ["FacT"]

_FORMS = ("tt", "tucker")


@dataclass(frozen=True)
class FacT(JointMap):
    """``ΔW[s]^T = U S[s] V`` with ``S[s]`` a core of its own (TT), or ``Σ_c P[s, c] C[c]`` (Tucker).

    Attributes:
        stack: The layers. The paper cuts the matrices of a ViT's MLP into squares of the size of attention's,
            4 + 4 + 4 slices of each block; here a site is one slice, and a layer reads one site.
        rank: r of every bond.
        form: ``"tt"`` or ``"tucker"``.
        start: ``"zero"``: V = 0, and all else uniform in ±1 / sqrt(fan-in). ``"random"``: V too.

    Example:
        >>> vit = Stack(768, 768, layers=12, projections=12)
        >>> FacT(vit, 16).num_parameters, FacT(vit, 32, form="tucker").num_parameters
        (61440, 86528)

    Reference: Jie and Deng, Factor-tuning, AAAI 2023 (arXiv 2212.03145).
    """

    kind: ClassVar[str] = "fact"

    stack: Stack
    rank: int
    form: str = "tt"

    def _network(self) -> Network:
        if self.form not in _FORMS:
            raise SpecError(f"form must be one of {', '.join(_FORMS)}, not {self.form!r:.80}")
        stack, r = check_stack(self.stack), positive("rank", self.rank)
        small = uniform(1 / math.sqrt(r))
        sites = {"tn_core": Node(("layer", "proj", CUT, "rank out"), small)}
        if self.form == "tucker":
            sites = {
                "tn_core": Node((CUT, "rank out", "rank site"), small),
                "tn_site": Node(("layer", "proj", "rank site"), small),
            }
        own = {"in": stack.in_features, "out": stack.out_features}
        return Network(
            {**stack.index, **own, CUT: r, "rank out": r, "rank site": r},
            down={"tn_in": Node(("in", CUT), uniform(1 / math.sqrt(stack.in_features)))},
            up={**sites, "tn_out": Node(("out", "rank out"), small)},
            in_legs=("in",),
            out_legs=("out",),
            silent="tn_out",
        )

    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        """HOSVD: within a root of 2 (TT) or 3 (Tucker) of the best, exact at full rank."""
        if self.form == "tt":
            core, u, v = tucker2(target, self.rank)
            return {"tn_in": u, "tn_core": core, "tn_out": v}
        core, (site, u, v) = hosvd(target.flatten(0, 1), (self.rank,) * 3)
        shape = (*target.shape[:2], self.rank)
        return {"tn_in": u, "tn_core": core.movedim(0, -1), "tn_site": site.reshape(shape), "tn_out": v}
