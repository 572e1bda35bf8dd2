"""Chains: the factors as layers apply them, left as products where that is cheaper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

from tntune.contract.equation import equation
from tntune.contract.plan import Plan, plan
from tntune.maps.base import Factors, Tensors, WeightMap
from tntune.maps.latent_train import gather
from tntune.maps.layout import Joined, Selection
from tntune.maps.pattern import digits
from tntune.maps.tensorguide import TensorGuide, sliced

__all__ = ["Chains", "Halves", "generated_entries", "halves"]

_NARROW = 16
_Cut: TypeAlias = tuple[int, bool]
_SITE = ("side", "layer", "proj")


class Chains(NamedTuple):
    """Each factor of one site as the matrices whose product it is, the one that is applied first in front.

    Attributes:
        down: Matrices ``(n_out, n_in)`` as a linear layer has them, from ``in_features`` to ``width``.
        up: From ``width`` to ``out_features``.

    Example:
        >>> import torch
        >>> chains = Chains.of(Factors(torch.ones(1, 2, 5), torch.ones(1, 3, 2)))
        >>> [tuple(matrix.shape) for matrix in (*chains.down, *chains.up)]
        [(2, 5), (3, 2)]
    """

    down: tuple[Tensor, ...]
    up: tuple[Tensor, ...]

    @classmethod
    def of(cls, factors: Factors) -> "Chains":
        """The factors of one site, each a chain of one matrix."""
        return cls((factors.down.squeeze(0),), (factors.up.squeeze(0),))


@dataclass(frozen=True)
class _Half:
    """One half of a train: what makes it of its cores and, where ``has_z``, of z, and its sizes."""

    run: Plan
    cores: slice
    has_z: bool
    shape: tuple[int, int, int]  # (sides, rows, columns)

    def __call__(self, cores: Sequence[Tensor], z: Sequence[Tensor]) -> Tensor:
        return self.run(*cores[self.cores], *(z if self.has_z else ())).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Halves:
    """``chains(...)`` multiply to ``factors(...)``, and cost less to make and to apply.

    A bond of the train separates the feature legs from the width legs, so that each factor is a product
    through that bond; only the two halves are generated.

    Attributes:
        map: The map.
        bond: Inner size of the products: the TT-rank of the bond, times the latent legs of the feature half.
        parts: For each contraction of the layout its selection and both halves: features ``(sides, bond,
            features)`` and widths ``(sides, width, bond)``.
    """

    map: TensorGuide
    bond: int
    parts: tuple[tuple[Selection, _Half, _Half], ...]

    @property
    def pays(self) -> bool:
        """Whether products serve better than whole factors: where the bond is at most half of the width.

        Then they have fewer entries to generate, and fewer flops for any number of tokens. A bond below 16
        counts as 16, since so narrow a product is no faster.
        """
        return 2 * max(self.bond, _NARROW) <= self.map.width

    def __call__(self, params: Tensors, fixed: Tensors) -> Chains:
        """The chains for these tensors, in the dtype of the params."""
        cores, own = gather([params[name] for name in self.map.train.names("tt_")])
        z = [fixed[name].to(cores[0]) for name in self.map.latent_names]
        sides = [pair for part in self.parts for pair in _sides(part, cores, z)]
        (first, down), (last, up) = sides[0], sides[-1]
        d, q, _ = self.map.geometry
        start = d if len(sides) == 1 else 0  # one matrix for both holds the inputs, then the outputs
        chains = Chains((first[:, :d], down), (up.mT, last[:, start : start + q].mT))
        return Chains(*(tuple(matrix.to(own) for matrix in chain) for chain in chains))


def halves(map: WeightMap) -> Halves | None:
    """The products that make the factors, or None where no bond separates features from widths.

    A :class:`TensorGuide` of one site has them in a joined layout whose width legs lie together at one end,
    without a frozen start that is subtracted and without the mean over a latent.

    Example:
        >>> from tntune.maps.build import build_map
        >>> from tntune.maps.layout import Geometry
        >>> wide, narrow = (build_map("tensorguide", Geometry(768, 768, width)) for width in (64, 8))
        >>> halves(wide).bond, halves(wide).pays, halves(narrow).pays
        (8, True, False)
    """
    if not isinstance(map, TensorGuide) or not isinstance(map.layout, Joined) or map.sites > 1:
        return None
    cut = _cut(map.layout)
    if cut is None or map.subtracts_start or map.latent.mode == "mean":
        return None
    selections = map.layout.selections(map.geometry)
    parts = tuple((selection, *_halves_of(map, map.layout, selection, cut)) for selection in selections)
    bond = parts[0][1].shape[1]
    return Halves(map, bond, parts)


def generated_entries(map: WeightMap) -> int:
    """Entries that a layer of this map generates, of products or of whole factors.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> generated_entries(LoRA(5, 3, 2))
        16
    """
    products = halves(map)
    if products is None or not products.pays:
        return map.factor_width * (map.in_features + map.out_features)
    return sum(math.prod(half.shape) for _, *both in products.parts for half in both)


def _sides(
    part: tuple[Selection, _Half, _Half], cores: list[Tensor], z: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Features ``(bond, features)`` and widths ``(width, bond)`` of each side that one contraction makes."""
    selection, features, widths = part
    views = sliced(cores, selection)
    made = features(views, z), widths(views, z)
    count = max([len(own) for own in made])  # torch 2.6 traces no max of a map
    first, second = (half.expand(count, -1, -1).unbind() for half in made)
    return list(zip(first, second, strict=True))


def _cut(layout: Joined) -> _Cut | None:
    """The bond with all feature legs on one side and all width legs on the other; whether they come first."""
    widths, features = set(digits(layout.legs, "w")), set(digits(layout.legs, layout.family))
    for at in range(1, len(layout.groups)):
        before = {name for group in layout.groups[:at] for name in group}
        after = set(layout.legs) - before
        if features <= before and widths <= after:
            return at, True
        if widths <= before and features <= after:
            return at, False
    return None


def _halves_of(map: TensorGuide, layout: Joined, selection: Selection, cut: _Cut) -> tuple[_Half, _Half]:
    """Features ``(sides, bond, features)`` and widths ``(sides, width, bond)`` of one contraction."""
    at, in_front = cut
    first, last = slice(0, at), slice(at, map.train.order)
    features, widths = (first, last) if in_front else (last, first)
    numbers = range(map.train.order)[features] if map.latent.stored else ()
    bond = [f"rank {at}", *(f"latent {k}" for k in numbers)]
    return (
        _half(map, selection, features, (bond, digits(layout.legs, layout.family))),
        _half(map, selection, widths, (digits(layout.legs, "w"), bond), has_z=map.latent.stored),
    )


def _half(
    map: TensorGuide,
    selection: Selection,
    cores: slice,
    matrix: tuple[list[str], list[str]],
    *,
    has_z: bool = False,
) -> _Half:
    """The contraction of these cores to ``(sides, rows, columns)`` of these legs."""
    legs = [[(name, length) for name, _, _, length in mode] for mode in selection.legs]
    operands, shapes = map.train.operands(legs)
    own, sizes = operands[cores], shapes[cores]
    if has_z:
        own, sizes = [*own, operands[-1]], [*sizes, shapes[-1]]
    length = {
        name: size
        for legs, shape in zip(own, sizes, strict=True)
        for name, size in zip(legs, shape, strict=True)
    }
    site = [name for name in _SITE if name in length]
    run = plan(equation(own, [*site, *matrix[0], *matrix[1]]), *sizes)
    counts = [math.prod(length[name] for name in names) for names in (site, *matrix)]
    return _Half(run, cores, has_z, (counts[0], counts[1], counts[2]))
