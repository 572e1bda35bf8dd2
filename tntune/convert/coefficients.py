"""Coefficients: the best matrices between two bases that are given."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tntune.convert.joint_side import cholesky

__all__ = ["Coefficients", "Seen", "best_coefficients", "whitened"]

Seen: TypeAlias = tuple[Tensor, Tensor]
"""Of each layer its form on a basis, and its rows' products with that basis in the form."""


class Coefficients(NamedTuple):
    """``A_l = up_l down_lᵀ`` between two bases.

    Attributes:
        down: ``(layers, r, w)`` for r inputs.
        up: ``(layers, r', w)`` for r' outputs.
        values: ``(layers, w)``: the norm of each column's part of the layer, falling.

    Example:
        >>> Coefficients._fields
        ('down', 'up', 'values')
    """

    down: Tensor
    up: Tensor
    values: Tensor


def best_coefficients(inputs: Seen, outputs: Seen, width: int) -> Coefficients:
    """The coefficients of least ``‖G^½ (ΔW − outputs A inputsᵀ) C^½‖`` of a width, for each layer by one SVD.

    With ``I`` and ``O`` the bases, ``L Lᵀ = Iᵀ C I`` and ``M Mᵀ = Oᵀ G O``, the error is that of truncating
    ``M⁻¹ Oᵀ G ΔW C I L⁻ᵀ`` (:func:`whitened`), whose rank is ΔW's: two thin QRs and one small SVD.

    Args:
        inputs: ``Iᵀ C I``, ``(layers, r, r)``, and ``down C I``, ``(layers, k, r)``.
        outputs: ``Oᵀ G O``, ``(layers, r', r')``, and ``upᵀ G O``; of rows that only one side has, padded,
            nothing is made.
        width: w; they are no wider than the smallest of k, r and r'.

    Example:
        >>> grams, rows = torch.eye(3).double()[None], torch.eye(2, 3).double()[None]
        >>> best_coefficients((grams, rows), (grams, 2 * rows), 2).values.round(decimals=9).tolist()
        [[2.0, 2.0]]

    Reference: Eckart and Young (1936), in the coordinates of the norm.
    """
    (root_in, inside), (root_out, outside) = _whitened(inputs, outputs)
    (q_in, r_in), (q_out, r_out) = torch.linalg.qr(inside), torch.linalg.qr(outside)
    left, values, right = torch.linalg.svd(r_out @ r_in.mT, full_matrices=False)
    values = values[:, :width]
    root = values[:, None].sqrt()
    down = torch.linalg.solve_triangular(root_in.mT, q_in @ right[:, :width].mT * root, upper=True)
    up = torch.linalg.solve_triangular(root_out.mT, q_out @ left[..., :width] * root, upper=True)
    return Coefficients(down, up, values)


def whitened(inputs: Seen, outputs: Seen) -> tuple[Tensor, Tensor]:
    """``(inside, outside)`` with ``outside insideᵀ = M⁻¹ Oᵀ G ΔW C I L⁻ᵀ`` of each layer.

    Leading rows are those of leading columns of the bases, so that they tell what smaller bases keep.

    Args:
        inputs: As in :func:`best_coefficients`.
        outputs: Likewise.

    Returns:
        ``(layers, r, k)`` and ``(layers, r', k)``.

    Example:
        >>> grams, rows = torch.eye(3).double()[None], torch.eye(2, 3).double()[None]
        >>> inside, outside = whitened((grams, rows), (grams, 2 * rows))
        >>> (outside @ inside.mT).diagonal(dim1=1, dim2=2).round(decimals=9).tolist()
        [[2.0, 2.0, 0.0]]
    """
    (_, inside), (_, outside) = _whitened(inputs, outputs)
    return inside, outside


def _whitened(*sides: Seen) -> list[tuple[Tensor, Tensor]]:
    """Root ``(layers, r, r)`` and rows in its coordinates ``(layers, r, k)`` of each side."""
    count = min(rows.shape[1] for _, rows in sides)
    found = []
    for grams, rows in sides:
        root = cholesky(grams)
        found.append((root, torch.linalg.solve_triangular(root, rows[:, :count].mT, upper=False)))
    return found
