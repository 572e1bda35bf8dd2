"""Algebra on cores: each verb does to the trains what its dense namesake does to the tensors.

All of it is plain torch, so gradients flow through. Nothing is truncated: ranks add under sums and multiply
under products, until :func:`tntune.tt.rounding.round_tt` lowers them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tntune.errors import DtypeError, ModeError
from tntune.tt.linalg import thin_qr
from tntune.tt.train import (
    Train,
    compute_dtype,
    cores,
    flatten,
    modes,
    tt_matrix,
    tt_tensor,
    unflatten,
    working_cores,
)

__all__ = [
    "add",
    "hadamard",
    "inner",
    "matmul",
    "matvec",
    "norm",
    "relative_error",
    "scale",
    "subtract",
    "transpose",
]


def inner(x: Train, y: Train) -> Tensor:
    """Inner product, the first conjugated: ``inner(x, y) == (dense(x).conj() * dense(y)).sum()``.

    Args:
        x: Train of ranks r.
        y: Train of the same modes, dtype and device, of ranks s.

    Returns:
        A 0-dimensional tensor, in O(K n r s (r + s)).

    Raises:
        ModeError: Where the modes differ; names the first core that does.
        DtypeError: Where dtypes or devices differ.

    Example:
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> inner(x, x).item()
        72.0
    """
    _check(modes(x), modes(y), x, y)
    left, right = working_cores(x), working_cores(y)
    joint = left[0].new_ones(1, 1)  # (r, s)
    for a, b in zip(left, right, strict=True):
        carried = (joint @ b.flatten(1)).reshape(-1, b.shape[2])  # (r n, s')
        joint = a.flatten(0, 1).mH @ carried
    return joint.reshape(()).to(cores(x)[0].dtype)


def norm(x: Train) -> Tensor:
    """Frobenius norm: ``norm(x) == dense(x).norm()``, real, without squaring.

    One sweep of QRs, so that the norm of a small difference keeps its digits, which the root of
    ``inner(x, x)`` would lose. Differentiable where the cores have full rank; at redundant ranks (``add(x,
    x)``) use that root instead.

    Example:
        >>> round(norm(tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])).item(), 4)
        8.4853
    """
    rest, *others = working_cores(x)
    for core in others:
        _, r = thin_qr(rest.flatten(0, 1))
        rest = (r @ core.flatten(1)).reshape(-1, *core.shape[1:])
    value: Tensor = torch.linalg.vector_norm(rest)
    return value.to(cores(x)[0].real.dtype)


def relative_error(x: Train, reference: Train) -> Tensor:
    """Relative Frobenius distance: ``norm(dense(x) - dense(reference)) / norm(dense(reference))``.

    Accurate down to working precision. Against a zero reference it is 0 for a zero x, else infinite.

    Example:
        >>> x = tt_tensor([torch.ones(1, 2, 1), torch.ones(1, 4, 1)])
        >>> round(relative_error(scale(x, 1.5), x).item(), 4)
        0.5
    """
    distance, size = norm(subtract(x, reference)), norm(reference)
    return torch.where(distance == 0, distance, distance / size)


def add(x: Train, y: Train) -> Train:
    """Sum: ``dense(add(x, y)) == dense(x) + dense(y)``; interior ranks add.

    Args:
        x: Train of ranks r.
        y: Train of the same modes, dtype and device, of ranks s.

    Returns:
        Train of ranks (1, r_1 + s_1, ..., 1).

    Raises:
        ModeError: Where the modes differ; names the first core that does.
        DtypeError: Where dtypes or devices differ.

    Example:
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> add(x, x).rank
        (1, 6, 1)

    Reference: Oseledets (2011), section 4.1.
    """
    _check(modes(x), modes(y), x, y)
    pairs = list(zip(cores(x), cores(y), strict=True))
    if len(pairs) == 1:
        return _train([pairs[0][0] + pairs[0][1]])
    first, *middle, last = pairs
    blocks = [torch.cat([pad(a, (0, b.shape[-1])), pad(b, (a.shape[-1], 0))]) for a, b in middle]
    return _train([torch.cat(first, dim=-1), *blocks, torch.cat(last, dim=0)])


def subtract(x: Train, y: Train) -> Train:
    """Difference: ``dense(subtract(x, y)) == dense(x) - dense(y)``; interior ranks add.

    Raises:
        ModeError: Where the modes differ; names the first core that does.
        DtypeError: Where dtypes or devices differ.

    Example:
        >>> x = tt_tensor([torch.ones(1, 2, 1), torch.ones(1, 4, 1)])
        >>> norm(subtract(x, x)).item() < 1e-6
        True
    """
    return add(x, scale(y, -1))


def scale(x: Train, factor: complex | Tensor) -> Train:
    """Multiple: ``dense(scale(x, a)) == a * dense(x)``; the factor goes into the first core.

    Args:
        x: Train; a complex factor needs a complex one.
        factor: Number or 0-dimensional tensor.

    Raises:
        DtypeError: Where the factor is complex and x real.

    Example:
        >>> scale(tt_tensor([torch.ones(1, 2, 1)]), 3.0).factors[0].flatten().tolist()
        [3.0, 3.0]
    """
    first, *others = cores(x)
    scaled = first * factor
    if scaled.dtype != first.dtype:
        raise DtypeError(f"a factor of {factor} turns {first.dtype} into {scaled.dtype}; convert x with to()")
    return _train([scaled, *others])


def hadamard(x: Train, y: Train) -> Train:
    """Entrywise product: ``dense(hadamard(x, y)) == dense(x) * dense(y)``; ranks multiply.

    Raises:
        ModeError: Where the modes differ; names the first core that does.
        DtypeError: Where dtypes or devices differ.

    Example:
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> hadamard(x, x).rank
        (1, 9, 1)

    Reference: Oseledets (2011), section 4.2.
    """
    _check(modes(x), modes(y), x, y)
    return unflatten(tt_tensor(_joined("anb,cnd->acnbd", flatten(x), flatten(y))), modes(x))


def matvec(matrix: Train, x: Train) -> Train:
    """Matrix times vector: ``dense(matvec(A, x)).ravel() == dense(A) @ dense(x).ravel()``; ranks multiply.

    The second mode of each core of A meets the mode of x; the first one stays.

    Args:
        matrix: TT-matrix with cores (r, n_in, n_out, r').
        x: Train of modes n_out, of the same dtype and device.

    Returns:
        Train of modes n_in.

    Raises:
        ModeError: Where A is no TT-matrix, x no tensor, or modes differ; names the first core that does.
        DtypeError: Where dtypes or devices differ.

    Example:
        >>> from tntune.tt.train import dense
        >>> A = tt_matrix([torch.ones(1, 2, 5, 1)])
        >>> dense(matvec(A, tt_tensor([torch.ones(1, 5, 1)]))).tolist()
        [5.0, 5.0]
    """
    _check([mode[1] for mode in _pairs(matrix)], modes(x), matrix, x)
    return tt_tensor(_joined("aijb,cjd->acibd", matrix, x))


def matmul(left: Train, right: Train) -> Train:
    """Matrix product: ``dense(matmul(A, B)) == dense(A) @ dense(B)``; ranks multiply.

    Args:
        left: TT-matrix with cores (r, n, m, r').
        right: TT-matrix with cores (s, m, l, s'), of the same dtype and device.

    Returns:
        TT-matrix with cores (r s, n, l, r' s').

    Raises:
        ModeError: Where one is no TT-matrix, or the inner modes differ; names the first core that does.
        DtypeError: Where dtypes or devices differ.

    Example:
        >>> from tntune.tt.train import dense
        >>> A = tt_matrix([torch.ones(1, 2, 5, 1)])
        >>> dense(matmul(A, transpose(A))).tolist()
        [[5.0, 5.0], [5.0, 5.0]]
    """
    _check([mode[1] for mode in _pairs(left)], [mode[0] for mode in _pairs(right)], left, right)
    return tt_matrix(_joined("aijb,cjkd->acikbd", left, right))


def transpose(matrix: Train) -> Train:
    """Transposed matrix, not conjugated: ``dense(transpose(A)) == dense(A).T``.

    Raises:
        ModeError: Where A is no TT-matrix.

    Example:
        >>> transpose(tt_matrix([torch.ones(1, 2, 5, 1)])).shape
        (5, 2)
    """
    _pairs(matrix)
    return tt_matrix([core.transpose(1, 2) for core in cores(matrix)])


def _joined(equation: str, x: Train, y: Train) -> list[Tensor]:
    """Cores of both trains contracted one by one, with their rank legs (r, s, ..., r', s') merged."""
    dtype = cores(x)[0].dtype
    wide = compute_dtype(dtype)
    pairs = zip(cores(x), cores(y), strict=True)
    joint = [torch.einsum(equation, a.to(wide), b.to(wide)) for a, b in pairs]
    return [core.flatten(-2).flatten(0, 1).to(dtype) for core in joint]


def _train(cores: list[Tensor]) -> Train:
    """The tensor or the matrix of these cores."""
    return tt_tensor(cores) if cores[0].ndim == 3 else tt_matrix(cores)


def _pairs(matrix: Train) -> list[tuple[int, int]]:
    """The mode pairs of a TT-matrix; raises for a tensor."""
    own = cores(matrix)
    if own[0].ndim != 4:
        raise ModeError(
            f"a TT-matrix is needed, with cores (r, n_in, n_out, r'); core 0 is {tuple(own[0].shape)}"
        )
    return [(core.shape[1], core.shape[2]) for core in own]


def _check(left: Sequence[object], right: Sequence[object], x: Train, y: Train) -> None:
    """Raise where the modes that must meet, or the dtypes or devices of the trains, differ."""
    if len(left) != len(right):
        raise ModeError(f"the trains have {len(left)} and {len(right)} cores; they must have equally many")
    for k, (a, b) in enumerate(zip(left, right, strict=True)):
        if a != b:
            raise ModeError(f"the modes of core {k} are {a} and {b}; they must be equal")
    a, b = cores(x)[0], cores(y)[0]
    if (a.dtype, a.device) != (b.dtype, b.device):
        raise DtypeError(f"the trains are {a.dtype} on {a.device} and {b.dtype} on {b.device}; use to()")
