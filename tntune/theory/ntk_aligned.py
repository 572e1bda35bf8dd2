"""Gradients through a train whose features and width lie on two sides of one bond."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tntune.maps.base import Tensors, WeightMap
from tntune.maps.layout import Joined
from tntune.maps.pattern import digits
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA
from tntune.theory.ntk_rows import Outer

__all__ = ["AlignedTrain", "aligned_trains", "train_rows"]


@dataclass(frozen=True, eq=False)
class AlignedTrain:
    """A train ``w = L R`` cut at one bond, and gradients of outputs as ``Σ_t left_t ⊗ right_t`` over w.

    Attributes:
        names: Names of the cores.
        cores: The cores ``(r, m, r')``.
        bond: Cores before it make L, the others R.
        terms: Pairs of ``(n | 1, C | 1, entries of L)`` and ``(n | 1, C | 1, entries of R)``.

    Example:
        >>> cores = (torch.ones(1, 3, 2), torch.ones(2, 4, 1))
        >>> term = (torch.ones(5, 1, 3), torch.ones(5, 6, 4))
        >>> sorted(train_rows(AlignedTrain(("g0", "g1"), cores, 1, (term,))))
        ['g0', 'g1']
    """

    names: tuple[str, ...]
    cores: tuple[Tensor, ...]
    bond: int
    terms: tuple[tuple[Tensor, Tensor], ...]


def train_rows(train: AlignedTrain) -> dict[str, tuple[Outer, ...]]:
    """Gradients of θ from those of w: rows of every core with ``factor(rows) == G @ J`` up to column order.

    The two cores at the bond see only vectors of the other side, so their rows stay outer products. The rows
    of cores further out are formed, from interfaces, at a cost free of the entries of w.

    Statement: N2 in theory/ntk.md.
    """
    cut, modes = train.bond, [core.shape[1] for core in train.cores]
    left = list(train.cores[:cut])
    right = [core.permute(2, 1, 0) for core in reversed(train.cores[cut:])]  # the far end first, as in left
    left_terms, right_terms = zip(*train.terms, strict=True)
    turned = [_reversed(term, modes[cut:]) for term in right_terms]
    left_matrix, right_matrix = _interface(left), _interface(right)
    outward = [(p, q @ right_matrix) for p, q in zip(left_terms, turned, strict=True)]
    inward = [(q, p @ left_matrix) for p, q in zip(left_terms, turned, strict=True)]
    rows = [*_half_rows(left, outward), *reversed(_half_rows(right, inward))]
    return dict(zip(train.names, rows, strict=True))


def aligned_trains(
    map: WeightMap, params: Tensors, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor]
) -> tuple[AlignedTrain, ...] | None:
    """The trains of ``map`` with these gradients, or None where no bond parts features from width.

    Args:
        map: Any map. Trains with a latent, concat layouts and interleaved legs give None.
        params: The cores by flat name.
        down: Gradient of down as (feature side ``(n | 1, C | 1, D)``, width side ``(n | 1, C | 1, M)``).
        up: Gradient of up as (feature side ``(n | 1, C | 1, Q)``, width side).

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> aligned_trains(LoRA(2, 2, 1), {}, (torch.ones(1, 1, 2),) * 2, (torch.ones(1, 1, 2),) * 2) is None
        True
    """
    if isinstance(map, TTLoRA):
        return _tt_lora_trains(map, params, down, up)
    if isinstance(map, TensorGuide) and isinstance(map.layout, Joined) and map.sites == 1:
        return _joined_trains(map, map.layout, params, down, up)
    return None


def _joined_trains(
    map: TensorGuide, layout: Joined, params: Tensors, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor]
) -> tuple[AlignedTrain, ...] | None:
    bond = _separating_bond(layout)
    if bond is None or map.train.has_latent:
        return None
    halves = [[name for group in part for name in group] for part in _parts(layout, bond)]
    terms = []
    for side, (features, width) in enumerate((down, up)):
        placed = [
            _placed(width if _is_width(names) else _padded(features, map, layout, side), layout, names, side)
            for names in halves
        ]
        terms.append((placed[0], placed[1]))
    names = map.train.names("tt_")
    return (AlignedTrain(names, tuple(params[name] for name in names), bond, tuple(terms)),)


def _tt_lora_trains(
    map: TTLoRA, params: Tensors, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor]
) -> tuple[AlignedTrain, ...] | None:
    found = []
    for train, prefix, term in (
        (map.down_train, "tt_down_", down),
        (map.up_train, "tt_up_", (up[1], up[0])),
    ):
        heads = [math.prod(train.modes[:k]) for k in range(1, train.order)]
        rows = term[0].shape[2]
        if train.has_latent or rows not in heads:
            return None
        names = train.names(prefix)
        cores = tuple(params[name] for name in names)
        found.append(AlignedTrain(names, cores, heads.index(rows) + 1, (term,)))
    return tuple(found)


def _separating_bond(layout: Joined) -> int | None:
    """The first bond with all features on one side and all of the width on the other."""
    for bond in range(1, len(layout.groups)):
        found = [
            {digit[0] for part in group for digit in part if digit[0] in "wfi"}
            for group in _parts(layout, bond)
        ]
        if all(len(families) == 1 for families in found) and found[0] != found[1]:
            return bond
    return None


def _parts(layout: Joined, bond: int) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    return layout.groups[:bond], layout.groups[bond:]


def _is_width(names: Sequence[str]) -> bool:
    return bool(digits(names, "w"))


def _padded(features: Tensor, map: TensorGuide, layout: Joined, side: int) -> Tensor:
    """The feature vector in the index that the layout's feature digits span."""
    span = layout.span(layout.family)
    before = map.in_features if layout.family == "io" and side else 0
    return functional.pad(features, (before, span - before - features.shape[2]))


def _placed(vector: Tensor, layout: Joined, names: Sequence[str], side: int) -> Tensor:
    """``(n | 1, C | 1, entries)`` in TT order of these legs, on this side of the side leg if it is here."""
    order = digits(names, "w") or digits(names, layout.family)
    entry = vector.reshape(*vector.shape[:2], *(layout.legs[name] for name in order))
    if "side" in names:
        parts = [entry if other == side else torch.zeros_like(entry) for other in range(2)]
        entry, order = torch.stack(parts, dim=2), ["side", *order]
    kept = [name for name in names if name in order]  # legs of a single layer or projection have size 1
    return entry.permute(0, 1, *(2 + order.index(name) for name in kept)).flatten(2)


def _reversed(term: Tensor, modes: Sequence[int]) -> Tensor:
    """The entries with the modes in reverse order."""
    split = term.reshape(*term.shape[:2], *modes)
    return split.permute(0, 1, *range(split.ndim - 1, 1, -1)).flatten(2)


def _interface(cores: Sequence[Tensor]) -> Tensor:
    """``(entries, r)``: the product of the cores, with the outer rank summed."""
    left = cores[0].new_ones(1, cores[0].shape[0])
    for core in cores:
        left = (left @ core.flatten(1)).reshape(-1, core.shape[2])
    return left


def _half_rows(cores: Sequence[Tensor], terms: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Outer, ...]]:
    """Rows of each core of a half, far end first, for gradients ``Σ_t p_t ⊗ q_t`` (entries, bond)."""
    rows = []
    for k, core in enumerate(cores):
        left = _interface(cores[:k]) if k else core.new_ones(1, core.shape[0])
        split = [(p.reshape(*p.shape[:2], len(left), core.shape[1], -1), q) for p, q in terms]
        reduced = [(torch.einsum("xa,ncxmy->ncamy", left, p), q) for p, q in split]
        if k == len(cores) - 1:
            rows.append(tuple(Outer(p.flatten(2), q) for p, q in reduced))
        else:
            rows.append((Outer(_outer_row(reduced, _toward_bond(cores[k + 1 :]))),))
    return rows


def _toward_bond(cores: Sequence[Tensor]) -> Tensor:
    """``(r, entries, bond)``: the product of cores with both ends open."""
    product = cores[0]
    for core in cores[1:]:
        product = torch.tensordot(product, core, dims=1).flatten(1, 2)
    return product


def _outer_row(reduced: Sequence[tuple[Tensor, Tensor]], right: Tensor) -> Tensor:
    """``(n | 1, C | 1, r m r')``: the row of a core that does not touch the bond."""
    total = None
    for p, q in reduced:  # (n|1, C|1, a, m, y) and (n|1, C|1, s)
        behind = torch.einsum("bys,ncs->ncyb", right, q)
        row = (p.flatten(2, 3) @ behind).flatten(2)
        total = row if total is None else total + row
    assert total is not None
    return total
