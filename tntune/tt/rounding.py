"""Rounding of trains: the smallest ranks that meet a rule, at a measured error."""

import torch
from torch import Tensor

from tntune.errors import NumericalError
from tntune.tt.linalg import safe_svd
from tntune.tt.orthogonal import bond_spectra, right_orthogonal
from tntune.tt.rank_rule import RankRule, allocate_ranks
from tntune.tt.train import Train, cores, merged_modes, modes, restored, working_cores
from tntune.tt.truncation import Rounded, Sweep

__all__ = ["round_tt"]

_EXACT = RankRule()


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
    done, error = _swept(x, rule)
    if rule.max_params is not None and sum(core.numel() for core in done) > rule.max_params:
        start = [core.shape[0] for core in done[1:]]
        ranks = allocate_ranks(bond_spectra(x), merged_modes(x), rule.max_params, start=start)
        done, error = _swept(x, RankRule(ranks=ranks))
    return Rounded(restored(done, modes(x), cores(x)[0].dtype), error)


def _swept(x: Train, rule: RankRule) -> tuple[list[Tensor], float]:
    """One rounding of the 3-way cores of x, and its relative error."""
    rest, *others = right_orthogonal(working_cores(x))
    sweep = Sweep(rule, merged_modes(x), rest.dtype)
    done = []
    for core in others:
        u, s, vh = safe_svd(rest.flatten(0, 1))
        kept = sweep.rank(s)
        done.append(u[:, :kept].reshape(*rest.shape[:2], kept))
        rest = ((s[:kept, None] * vh[:kept]) @ core.flatten(1)).reshape(kept, *core.shape[1:])
    if not bool(torch.isfinite(rest).all()):
        raise NumericalError("a core of the train has entries that are not finite")
    return [*done, rest], sweep.error
