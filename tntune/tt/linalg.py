"""QR and SVD as trains need them: accurate on long matrices in float32 too, and never silently wrong."""

import math

import scipy.linalg
import torch
from torch import Tensor

from tntune.errors import NumericalError

__all__ = ["r_factor", "safe_svd", "thin_qr"]

_QR_ROWS = 512  # rows of one small QR of a tree: 2^22 at once are wrong by a percent in float32
_DIRECT_ROWS = 4096  # up to here one QR is as accurate as a tree, and faster
_SVD_ROWS = 512  # rows of the longest matrix given to an SVD without a QR before it
_CHUNK = 2**18  # entries that a Gram matrix takes up at once
_SMALLEST = 1e-200  # squared norm below which squares underflow


def thin_qr(m: Tensor) -> tuple[Tensor, Tensor]:
    """QR factors with orthonormal columns: ``q @ r == m`` and ``q.mH @ q == 1``.

    Long matrices go through a tree of small QRs (TSQR), because one Householder sweep over 2^22 rows is wrong
    by a percent in float32. Differentiable where the columns are independent.

    Args:
        m: Matrix (rows, columns) in float32, float64, complex64 or complex128.

    Returns:
        q (rows, k) and r (k, columns), k the smaller of both sizes.

    Example:
        >>> m = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
        >>> q, r = thin_qr(m)
        >>> torch.allclose(q @ r, m)
        True

    Reference: Demmel, Grigori, Hoemmen, Langou (2012), Communication-optimal parallel and sequential QR.
    """
    rows, columns = m.shape
    block = _block(columns)
    if rows <= max(2 * block, _DIRECT_ROWS):
        q, r = torch.linalg.qr(m)
        return q, r
    count = rows // block
    q, r = torch.linalg.qr(m[: count * block].reshape(count, block, columns))
    top, r = thin_qr(torch.cat([r.reshape(-1, columns), m[count * block :]]))
    head, rest = top[: count * columns], top[count * columns :]
    return torch.cat([(q @ head.reshape(count, columns, columns)).reshape(-1, columns), rest]), r


def r_factor(m: Tensor) -> Tensor:
    """The triangular factor alone: ``r.mH @ r == m.mH @ m``, the singular values right to working precision.

    A long matrix is read in two rounds of matrix products, which lose no digits with the length as
    Householder sweeps do. The Gram matrix of the first round, whose small eigenvalues drown in the squaring,
    only serves to scale m to nearly orthonormal columns; the Gram matrix of those, in the second round, is
    well conditioned. In single precision one round in double precision is enough.

    Args:
        m: Matrix (rows, columns); a transposed view is fine, and no copy is made.

    Returns:
        r (k, columns), k the smaller of both sizes.

    Raises:
        NumericalError: Where m has an entry that is not finite.

    Example:
        >>> m = torch.ones(4, 2, dtype=torch.float64)
        >>> r = r_factor(m)
        >>> torch.allclose(r.T @ r, m.T @ m)
        True

    Reference: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya (2015), Roundoff error analysis of CholeskyQR2.
    """
    rows, columns = m.shape
    r: Tensor = torch.linalg.qr(_gram_root(m) if rows > 4 * columns else m, mode="r").R
    return r


def safe_svd(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD that is right or raises: ``u * s @ vh == m`` with orthonormal u and vh.

    Long or wide matrices are reduced by QR first. Where the fast driver does not converge, the slow and sure
    one (LAPACK gesvd, double precision, CPU) takes over. Not for differentiation: repeated singular values
    have none.

    Args:
        m: Matrix (rows, columns) in float32, float64, complex64 or complex128.

    Returns:
        u (rows, k), s (k,) real, descending, and vh (k, columns), k the smaller of both sizes.

    Raises:
        NumericalError: Where m has an entry that is not finite, or no driver converges.

    Example:
        >>> u, s, vh = safe_svd(torch.diag(torch.tensor([1.0, 3.0])))
        >>> s.tolist()
        [3.0, 1.0]
    """
    rows, columns = m.shape
    if rows < columns:
        v, s, uh = safe_svd(m.mH)
        return uh.mH, s, v.mH
    if rows > max(2 * columns, _SVD_ROWS):
        q, r = thin_qr(m)
        u, s, vh = safe_svd(r)
        return q @ u, s, vh
    try:
        u, s, vh = torch.linalg.svd(m, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return _sure_svd(m)
    return (u, s, vh) if math.isfinite(float(s.sum())) else _sure_svd(m)


def _block(columns: int) -> int:
    """Rows of the small QRs: enough that each shrinks its block by four."""
    return max(_QR_ROWS, 4 * columns)


def _sure_svd(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD by gesvd in double precision on the CPU, in the dtype and on the device of m."""
    if not bool(torch.isfinite(m).all()):
        raise NumericalError(
            f"a matrix of shape {tuple(m.shape)} has entries that are not finite; it has no SVD"
        )
    wide = m.to("cpu", torch.complex128 if m.is_complex() else torch.float64)
    try:
        u, s, vh = scipy.linalg.svd(wide.numpy(), full_matrices=False, lapack_driver="gesvd")
    except scipy.linalg.LinAlgError as error:
        raise NumericalError(f"no SVD of a matrix of shape {tuple(m.shape)} converged") from error
    real = m.real.dtype if m.is_complex() else m.dtype
    return torch.from_numpy(u).to(m), torch.from_numpy(s).to(m.device, real), torch.from_numpy(vh).to(m)


def _gram_root(m: Tensor) -> Tensor:
    """A square matrix with the Gram matrix of a long one."""
    gram = _gram(m)
    if not _SMALLEST < float(gram.diagonal().real.sum()) < 1 / _SMALLEST:
        largest = float(m.abs().max())
        if not math.isfinite(largest):
            raise NumericalError(f"a matrix of shape {tuple(m.shape)} has entries that are not finite")
        return _gram_root(m / largest) * largest if largest else m[: m.shape[1]]
    values, vectors = torch.linalg.eigh(gram)
    if m.dtype != gram.dtype:
        root: Tensor = (vectors * values.clamp(min=0).sqrt()).mH
        return root.to(m.dtype)
    scales = values.clamp(min=float(values[-1]) * torch.finfo(m.dtype).eps).sqrt()
    values, inner = torch.linalg.eigh(_gram(m, vectors / scales))
    root = (inner * values.clamp(min=0).sqrt()).mH @ (vectors * scales).mH
    return root


def _gram(m: Tensor, scaling: Tensor | None = None) -> Tensor:
    """Gram matrix of ``m @ scaling`` in double precision, a few rows at a time."""
    columns = m.shape[1]
    double = torch.complex128 if m.is_complex() else torch.float64
    gram = torch.zeros(columns, columns, dtype=double, device=m.device)
    step = max(columns, _CHUNK // columns)
    for start in range(0, len(m), step):
        wide = m[start : start + step].mH.to(double)
        wide = wide if scaling is None else scaling.mH @ wide
        gram.addmm_(wide, wide.mH)
    return gram
