"""One sweep from left to right that makes JᵀJ, or a factor C with JᵀJ = CᵀC, block row by block row.

The state holds, for every parameter p of the cores passed, the overlap of a fixed train on top with the
derivative of w by p below: ``state[p] = T_{<k}ᵀ (∂w / ∂p)_{<k}``, a matrix (u, s). Each core is passed once,
with all parameters before it as one batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tntune.theory.environment import left_overlaps, right_overlaps

__all__ = ["factor", "gram"]


def gram(cores: Sequence[Tensor], weights: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """``JᵀJ`` by contraction of environments, in O(P² r) and P² entries, whatever the number of entries of w.

    Args:
        cores: Trained cores (r, n, m, r').
        weights: Their weights (q, n, m, q').
        own: The merged cores (r q, m, r' q').

    Returns:
        Symmetric (P, P), parameters in the order of the cores, row-major in each.

    Example:
        >>> core = torch.ones(1, 1, 2, 1)
        >>> gram([core], [core], [core[:, 0]]).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Statement: T0 in theory/jacobian.md.
    """
    sizes = [core.numel() for core in cores]
    result = own[0].new_zeros(sum(sizes), sum(sizes))
    lefts, rights = left_overlaps(own, own), right_overlaps(own, own)
    state = own[0].new_zeros(0, *lefts[0].shape)
    for k, weight in enumerate(weights):
        start, stop = sum(sizes[:k]), sum(sizes[: k + 1])
        result[start:stop, start:stop] = _diagonal(lefts[k], weight, rights[k + 1])
        across = _across(state, own[k], weight, rights[k + 1])
        result[:start, start:stop] = across
        result[start:stop, :start] = across.mT
        state = _advanced(state, own[k], own[k], _entered(own[k], lefts[k], cores[k], weight))
    return result


def factor(
    cores: Sequence[Tensor],
    weights: Sequence[Tensor],
    own: Sequence[Tensor],
    bases: Sequence[Sequence[Tensor]],
) -> Tensor:
    """``C = Qᵀ J`` with an orthonormal basis Q of the tangent space: the singular values of J, not squared.

    Q is never formed. Its columns are ``U_{<k} ⊗ N_k ⊗ V_{>k}`` with left-orthogonal cores U,
    right-orthogonal V, and N_k the complement of the columns of U_k (all columns for the last core). A block
    of C vanishes where its parameter lies behind k, because ``N_kᵀ U_k = 0``.

    Args:
        cores: Trained cores (r, n, m, r').
        weights: Their weights (q, n, m, q').
        own: The merged cores (r q, m, r' q').
        bases: The cores U and the cores V of the train of ``own``.

    Returns:
        (D, P), in O(D P r).

    Example:
        >>> core = torch.ones(1, 1, 2, 1)
        >>> factor([core], [core], [core[:, 0]], ([core[:, 0]], [core[:, 0]])).shape
        torch.Size([2, 2])

    Statement: T0 in theory/jacobian.md.
    """
    left, right = bases
    lefts, rights = left_overlaps(left, own), right_overlaps(right, own)
    state = own[0].new_zeros(0, *lefts[0].shape)
    rows, total = [], sum(core.numel() for core in cores)
    for k, weight in enumerate(weights):
        normal = _complement(left[k]) if k < len(cores) - 1 else None
        before = torch.einsum("pus,smt,vt->pumv", state, own[k], rights[k + 1])
        here = _own_columns(lefts[k], cores[k], weight, rights[k + 1])
        block = torch.cat([before, here]).flatten(1, 2)  # (P up to k, u m, v)
        block = block if normal is None else torch.einsum("pgv,gh->phv", block, normal)
        row = own[0].new_zeros(block[0].numel(), total)
        row[:, : len(block)] = block.flatten(1).mT
        rows.append(row)
        state = _advanced(state, left[k], own[k], _entered(left[k], lefts[k], cores[k], weight))
    return torch.cat(rows)


def _diagonal(left: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """The block of JᵀJ of one core with itself: ``Γ_L ⊗ 1 ⊗ Γ_R`` between the weights."""
    x, n, m, y = weight.shape
    pairs = torch.einsum("axcz,xnmy->aczmny", _split(left, x), weight)
    pairs = torch.einsum("aczmny,zpmw->acmnpyw", pairs, weight)
    pairs = torch.einsum("acmnpyw,byew->anbcpem", pairs, _split(right, y))
    a, b = len(left) // x, len(right) // y
    block = left.new_zeros(a, n, m, b, a, n, m, b)
    block.diagonal(dim1=2, dim2=6).copy_(pairs)
    return block.reshape(a * n * m * b, -1)


def _across(state: Tensor, core: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """The block of JᵀJ of all parameters before with those of this core, from the state."""
    x, y = weight.shape[0], weight.shape[-1]
    half = torch.einsum("smt,tby->smby", core, right.reshape(len(right), -1, y))
    kernel = torch.einsum("smby,xnmy->xsnmb", half, weight)
    split = state.reshape(len(state), state.shape[1] // x, x, state.shape[2])  # (p, a, x, s)
    block: Tensor = torch.tensordot(split, kernel, dims=2)
    return block.flatten(1)


def _entered(top: Tensor, left: Tensor, core: Tensor, weight: Tensor) -> Tensor:
    """The state of this core's own parameters behind it: (P_k, u', s')."""
    (a, n, m, b), (x, _, _, y) = core.shape, weight.shape
    half = torch.einsum("umt,uax->mtax", top, left.reshape(-1, a, x))
    half = torch.einsum("mtax,xnmy->anmty", half, weight)
    state = left.new_zeros(a, n, m, b, half.shape[3], b, y)
    state.diagonal(dim1=3, dim2=5).copy_(half[..., None])
    return state.reshape(a * n * m * b, half.shape[3], b * y)


def _advanced(state: Tensor, top: Tensor, bottom: Tensor, entered: Tensor) -> Tensor:
    """The state behind a core, of the parameters before it and of its own."""
    half = torch.tensordot(state, bottom, dims=1)  # (p, u, m, s')
    passed = torch.matmul(top.flatten(0, 1).mT, half.flatten(1, 2))  # (p, u', s')
    return torch.cat([passed, entered])


def _own_columns(left: Tensor, core: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """``(U_{<k} ⊗ 1 ⊗ V_{>k})ᵀ ∂w / ∂G_k``: (P_k, u, m, v)."""
    (a, n, m, b), (x, _, _, y) = core.shape, weight.shape
    half = torch.einsum("uax,xnmy->uanmy", left.reshape(-1, a, x), weight)
    full = torch.einsum("uanmy,vby->anbuvm", half, right.reshape(-1, b, y))
    columns = left.new_zeros(a, n, m, b, len(left), m, len(right))
    columns.diagonal(dim1=2, dim2=5).copy_(full)
    return columns.reshape(a * n * m * b, len(left), m, len(right))


def _complement(core: Tensor) -> Tensor:
    """Orthonormal columns (u m, h) that complete those of a left-orthogonal core."""
    q = torch.linalg.qr(core.flatten(0, 1), mode="complete").Q
    rest: Tensor = q[:, core.shape[2] :]
    return rest


def _split(gram: Tensor, size: int) -> Tensor:
    """A Gram of merged bonds with both bonds split: (a, x, c, z)."""
    return gram.reshape(len(gram) // size, size, -1, size)
