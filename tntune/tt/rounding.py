"""Rounding of trains at a measured error, and the singular values of their unfoldings that decide on it."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from tntune.errors import NumericalError
from tntune.tt.linalg import safe_svd
from tntune.tt.orthogonal import right_orthogonal
from tntune.tt.rank_rule import RankRule, allocate_ranks
from tntune.tt.train import Train, compute_dtype, cores, merged_modes, modes, restored, working_cores
from tntune.tt.truncation import Rounded, Sweep

__all__ = ["Rounding", "bond_spectra", "round_tt"]

_EXACT = RankRule()
_SVD: TypeAlias = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def round_tt(x: Train, rule: RankRule = _EXACT) -> Rounded:
    """Train of smaller ranks: ``norm(x - result.value) <= rule.tolerance * norm(x)``, and no rank rises.

    One sweep of QRs from the right, one of truncated SVDs from the left, in O(K n r^3). Redundant ranks
    vanish even under the default rule: rounding ``add(x, x)`` gives the ranks of x.

    Args:
        x: Train of any dtype; half precision is computed in float32 and returned in its own dtype.
        rule: Accuracy and limits; exact by default. Tolerances below the working precision of the dtype (32
            unit roundoffs per bond) give that precision. With ``max_params`` the exact spectra choose the
            ranks.

    Returns:
        The train, left-orthogonal but for its last core, and its relative error. A zero train gives ranks of
        one and error 0. All is ``no_grad``: the SVD of redundant ranks has no derivative.

    Raises:
        RankError: Where the rule cannot be met.
        NumericalError: Where a core has an entry that is not finite.

    Example:
        >>> from tntune.tt.train import tt_tensor
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> round_tt(x).ranks
        (1, 1, 1)

    Reference: Oseledets (2011), algorithm 2.
    """
    return Rounding(x)(rule)


def bond_spectra(x: Train) -> list[Tensor]:
    """Singular values of each unfolding: those of ``dense(x).reshape(n_1 ... n_k, -1)`` for bonds 1 to K - 1.

    One sweep of QRs from the right, one of SVDs from the left, in O(K n r^3); all is ``no_grad``.

    Returns:
        For each bond the r_k values in descending order, real, in the working dtype. Values that are zero in
        exact arithmetic come out at the level of rounding.

    Raises:
        NumericalError: Where a core has an entry that is not finite.

    Example:
        >>> from tntune.tt.train import tt_tensor
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> abs(bond_spectra(x)[0][0].item() ** 2 - 72.0) < 1e-3
        True
    """
    return Rounding(x).spectra()


class Rounding:
    """``Rounding(x)(rule)`` is ``round_tt(x, rule)``: one sweep from the right serves many roundings.

    A further rounding costs no QR, and no SVD of the first unfolding, which is a tall one where the first
    mode is large. Kept are the right-orthogonal cores, the first of them as its SVD.

    Args:
        x: As in :func:`round_tt`.

    Attributes:
        sizes: The modes of x, those of a matrix as products.

    Example:
        >>> from tntune.tt.train import tt_tensor
        >>> rounding = Rounding(tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)]))
        >>> rounding(RankRule(max_rank=2)).ranks, len(rounding.spectra())
        ((1, 1, 1), 1)
    """

    @torch.no_grad()
    def __init__(self, x: Train) -> None:
        self.sizes = merged_modes(x)
        self._modes, self._dtype = modes(x), cores(x)[0].dtype
        self._first, *self._others = right_orthogonal(working_cores(x))
        self._svd: _SVD | None = None
        if self._others:
            self._svd = safe_svd(self._first.flatten(0, 1))
            self._first = self._first.new_empty(0)  # the SVD stands for it

    @torch.no_grad()
    def __call__(self, rule: RankRule = _EXACT) -> Rounded:
        """As :func:`round_tt`."""
        done, error = self._by(rule)
        if rule.max_params is not None and sum(core.numel() for core in done) > rule.max_params:
            start = [core.shape[0] for core in done[1:]]
            ranks = allocate_ranks(self.spectra(), self.sizes, rule.max_params, start=start)
            done, error = self._by(RankRule(ranks=ranks))
        return Rounded(restored(done, self._modes, self._dtype), error)

    @torch.no_grad()
    def spectra(self) -> list[Tensor]:
        """As :func:`bond_spectra`."""
        found: list[Tensor] = []

        def whole(values: Tensor) -> int:
            found.append(values)
            return len(values)

        self._swept(whole)
        return found

    def _by(self, rule: RankRule) -> tuple[list[Tensor], float]:
        """The cores that a rule leaves, and their relative error."""
        sweep = Sweep(rule, self.sizes, compute_dtype(self._dtype))
        return self._swept(sweep.rank), sweep.error

    def _swept(self, choose: Callable[[Tensor], int]) -> list[Tensor]:
        """The cores with the rank at each bond that is chosen by its singular values."""
        done, rest, svd = [], self._first, self._svd
        for size, core in zip(self.sizes, self._others, strict=False):
            u, s, vh = svd or safe_svd(rest.flatten(0, 1))
            kept, svd = choose(s), None
            done.append(u[:, :kept].reshape(-1, size, kept))
            rest = ((s[:kept, None] * vh[:kept]) @ core.flatten(1)).reshape(kept, *core.shape[1:])
        if not bool(torch.isfinite(rest).all()):
            raise NumericalError("a core of the train has entries that are not finite")
        return [*done, rest]
