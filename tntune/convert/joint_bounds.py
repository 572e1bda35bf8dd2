"""joint_bounds: what a joint train can reach at best and reaches at worst, before anything is fitted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.convert.gauge import Balanced

__all__ = ["JointBounds", "JointSpectra", "joint_bounds", "joint_spectra"]


class JointSpectra(NamedTuple):
    """Squared singular values of the layers' ΔW together, each falling and summing to the same total.

    Attributes:
        inputs: Of all ΔW one below the other: the directions of inputs that the layers share.
        outputs: Of all ΔW side by side.
        layers: Of each ΔW alone.

    Example:
        >>> JointSpectra._fields
        ('inputs', 'outputs', 'layers')
    """

    inputs: Tensor
    outputs: Tensor
    layers: tuple[Tensor, ...]


class JointBounds(NamedTuple):
    """Bounds on the relative Frobenius error of the best joint train.

    Attributes:
        lower: No train of this rank and width is better.
        upper: One is as good: all ΔW projected on the leading joint directions, then truncated.

    Example:
        >>> JointBounds(0.1, 0.2).upper
        0.2
    """

    lower: float
    upper: float


def joint_spectra(layers: Sequence[Balanced]) -> JointSpectra:
    """Spectra of the unfoldings of ``ΔW[layer, out, in]``, which no choice of basis changes.

    Args:
        layers: Balanced factors of layers of one shape.

    Returns:
        Float64, in O((in + out) R²) for R singular values in all layers.

    Example:
        >>> from tntune.convert.gauge import balance
        >>> layers = [balance(torch.eye(1, 5), (k + 1.0) * torch.eye(3, 1)) for k in range(2)]
        >>> [round(value, 6) for value in joint_spectra(layers).inputs.tolist()]
        [5.0, 0.0]
    """
    rows = torch.cat([each.values.sqrt()[:, None] * each.down for each in layers])  # σ vᵀ
    columns = torch.cat([each.up * each.values.sqrt() for each in layers], dim=1)
    stacked, beside = torch.linalg.svdvals(rows), torch.linalg.svdvals(columns)
    return JointSpectra(stacked.square(), beside.square(), tuple(each.values.square() for each in layers))


def joint_bounds(spectra: JointSpectra, rank: int, width: int) -> JointBounds:
    """``max(tails) <= error² <= sum of tails`` for the best train ``ΔW_l ≈ F A_l Eᵀ``, rank(A_l) <= width.

    Statement: C3 in theory/compression.md. The tails are those of the two joint spectra behind ``rank`` and,
    summed over the layers, of each layer's own behind ``width``.

    Args:
        spectra: Of the layers.
        rank: r, columns of F and of E.
        width: w.

    Example:
        >>> spectra = JointSpectra(torch.tensor([3.0, 1.0]), torch.tensor([4.0]), (torch.ones(4),))
        >>> bounds = joint_bounds(spectra, 1, 4)
        >>> bounds.lower == bounds.upper == 0.5
        True
    """
    tails = [float(each[rank:].sum()) for each in (spectra.inputs, spectra.outputs)]
    tails.append(math.fsum(float(each[width:].sum()) for each in spectra.layers))
    total = math.fsum(float(each.sum()) for each in spectra.layers)
    lower, upper = max(tails) / total, min(sum(tails) / total, 1.0)
    return JointBounds(math.sqrt(lower), math.sqrt(upper))
