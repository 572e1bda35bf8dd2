"""Tensor trains on tensorly's own types: decomposition, canonical forms, rounding and algebra."""

from tntune.tt.algebra import (
    add,
    hadamard,
    inner,
    matmul,
    matvec,
    norm,
    relative_error,
    scale,
    subtract,
    transpose,
)
from tntune.tt.decompose import tt_matrix_svd, tt_svd
from tntune.tt.gaussian import gaussian
from tntune.tt.linalg import r_factor, safe_svd, thin_qr
from tntune.tt.modes import Modes, auto_modes
from tntune.tt.orthogonal import orthogonalize
from tntune.tt.rank_rule import RankRule, ShrinkStep, allocate_ranks, shrink_path
from tntune.tt.rounding import Rounding, bond_spectra, round_tt
from tntune.tt.train import (
    Train,
    cores,
    dense,
    flatten,
    modes,
    num_parameters,
    ranks,
    to,
    tt_matrix,
    tt_tensor,
    unflatten,
)
from tntune.tt.truncation import Rounded

__all__ = [
    "Modes",
    "RankRule",
    "Rounded",
    "Rounding",
    "ShrinkStep",
    "Train",
    "add",
    "allocate_ranks",
    "auto_modes",
    "bond_spectra",
    "cores",
    "dense",
    "flatten",
    "gaussian",
    "hadamard",
    "inner",
    "matmul",
    "matvec",
    "modes",
    "norm",
    "num_parameters",
    "orthogonalize",
    "r_factor",
    "ranks",
    "relative_error",
    "round_tt",
    "safe_svd",
    "scale",
    "shrink_path",
    "subtract",
    "thin_qr",
    "to",
    "transpose",
    "tt_matrix",
    "tt_matrix_svd",
    "tt_svd",
    "tt_tensor",
    "unflatten",
]
