"""Dense tensors and matrices to trains, to a stated error: TT-SVD that never factors a long matrix."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from tntune.errors import ModeError, NumericalError
from tntune.tt.linalg import r_factor, safe_svd
from tntune.tt.rank_rule import RankRule, allocate_ranks
from tntune.tt.rounding import bond_spectra
from tntune.tt.train import compute_dtype, restored, tt_tensor, unflatten
from tntune.tt.truncation import Rounded, Sweep

__all__ = ["tt_matrix_svd", "tt_svd"]

_GROUP_ROWS = 64  # leading modes are merged up to that many rows before the long side is read
_EXACT = RankRule()


@torch.no_grad()
def tt_svd(tensor: Tensor, rule: RankRule = _EXACT) -> Rounded:
    """Train of a dense tensor: ``norm(tensor - dense(result.value)) <= rule.tolerance * norm(tensor)``.

    Leading modes are merged to a wide matrix of about 64 rows. Its triangular factor has the same left
    singular vectors and values; the single modes are split off that small factor, and one product carries the
    rest on. The long side only meets matrix products, which are fast and lose no digits, in float32 neither.

    The error holds for limits as well: it is measured, not bounded. Tolerances below the working precision of
    the dtype (32 unit roundoffs per bond) give that precision. A zero tensor gives ranks of one and error 0.

    Args:
        tensor: Tensor (n_1, ..., n_K), K >= 1, float16 to complex128. Half precision is computed in float32.
        rule: Accuracy and limits; exact by default. With ``max_params`` the spectra of a first pass choose
            the ranks.

    Returns:
        The train, in the dtype of the tensor and left-orthogonal but for its last core, and its relative
        error. All is ``no_grad``.

    Raises:
        ModeError: Where the tensor has no mode, or one of size zero.
        RankError: Where the rule cannot be met.
        NumericalError: Where an entry is not finite.

    Example:
        >>> i = torch.arange(64, dtype=torch.float64)
        >>> tt_svd(torch.sin(i).reshape(4, 4, 4)).ranks
        (1, 2, 2, 1)

    Reference: Oseledets (2011), algorithm 1; :func:`tntune.tt.linalg.r_factor` for the triangular factor.
    """
    if not tensor.ndim or not tensor.numel():
        raise ModeError(
            f"a tensor of shape {tuple(tensor.shape)} has no train; every mode must be at least 1"
        )
    wide = tensor.to(compute_dtype(tensor.dtype))
    if not (bool(torch.isfinite(wide.sum())) or bool(torch.isfinite(wide).all())):  # the sum alone is cheap
        raise NumericalError(f"the tensor of shape {tuple(tensor.shape)} has entries that are not finite")
    cores, error = _swept(wide, rule)
    if rule.max_params is not None and sum(core.numel() for core in cores) > rule.max_params:
        ranks = allocate_ranks(bond_spectra(tt_tensor(cores)), tensor.shape, rule.max_params)
        cores, error = _swept(wide, RankRule(ranks=ranks))
    return Rounded(restored(cores, tuple(tensor.shape), tensor.dtype), error)


def tt_matrix_svd(
    matrix: Tensor, in_modes: Sequence[int], out_modes: Sequence[int], rule: RankRule = _EXACT
) -> Rounded:
    """Train of a matrix: ``norm(matrix - dense(result.value)) <= rule.tolerance * norm(matrix)``.

    Core k carries row mode ``in_modes[k]`` and column mode ``out_modes[k]``.

    Args:
        matrix: Matrix (prod(in_modes), prod(out_modes)).
        in_modes: Sizes of the row modes.
        out_modes: Sizes of the column modes, as many.
        rule: Accuracy and limits, as in :func:`tt_svd`.

    Raises:
        ModeError: Where the modes are not equally many, or their products are not the shape of the matrix.
        RankError: Where the rule cannot be met.
        NumericalError: Where an entry is not finite.

    Example:
        >>> tt_matrix_svd(torch.eye(6), (2, 3), (2, 3)).ranks
        (1, 1, 1)
    """
    if len(in_modes) != len(out_modes) or tuple(matrix.shape) != (prod(in_modes), prod(out_modes)):
        raise ModeError(
            f"a {tuple(matrix.shape)} matrix does not split into {tuple(in_modes)} x {tuple(out_modes)}"
        )
    pairs = tuple(zip(in_modes, out_modes, strict=True))
    order = [leg for k in range(len(pairs)) for leg in (k, k + len(pairs))]
    tensor = matrix.reshape(*in_modes, *out_modes).permute(order)  # (n_in, n_out, n_in', n_out', ...)
    rounded = tt_svd(tensor.reshape([rows * columns for rows, columns in pairs]), rule)
    return replace(rounded, value=unflatten(rounded.value, pairs))


def _swept(tensor: Tensor, rule: RankRule) -> tuple[list[Tensor], float]:
    """One TT-SVD from left to right, group of modes by group of modes, and its relative error."""
    modes = tuple(tensor.shape)
    sweep = Sweep(rule, modes, tensor.dtype)
    cores: list[Tensor] = []
    rest = tensor.reshape(1, -1)  # (rank, modes still to come)
    while len(cores) < len(modes) - 1:
        group = _group(rest.shape[0], modes[len(cores) :])
        rest = rest.reshape(rest.shape[0] * prod(group), -1)
        wide = rest.shape[1] > rest.shape[0]
        split, basis = _split(r_factor(rest.mH).mH if wide else rest, group, sweep)
        cores, rest = cores + split, basis.mH @ rest
    return [*cores, rest.unsqueeze(-1)], sweep.error


def _group(rank: int, modes: Sequence[int]) -> tuple[int, ...]:
    """The leading modes to split off at once: as many as the rows of a group hold, but one at least."""
    size = 1
    while size < len(modes) - 1 and rank * prod(modes[: size + 1]) <= _GROUP_ROWS:
        size += 1
    return tuple(modes[:size])


def _split(factor: Tensor, group: Sequence[int], sweep: Sweep) -> tuple[list[Tensor], Tensor]:
    """Left-orthogonal cores of the modes of a group, and their product (rows, rank), from the left factor."""
    rank, cores = factor.shape[0] // prod(group), []
    for mode in group:
        u, s, vh = safe_svd(factor.reshape(rank * mode, -1))
        kept = sweep.rank(s)
        cores.append(u[:, :kept].reshape(rank, mode, kept))
        rank, factor = kept, s[:kept, None] * vh[:kept]
    basis = cores[0].flatten(0, 1)
    for core in cores[1:]:
        basis = (basis @ core.flatten(1)).reshape(-1, core.shape[2])
    return cores, basis
