"""Layouts: how the entries of one generated tensor become the two factors, and back."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tntune.errors import ModeError, SpecError
from tntune.maps.base import Factors, Shape, positives
from tntune.maps.layout_base import Geometry, Layout, Selection
from tntune.maps.modes import exact_modes
from tntune.maps.pattern import Groups, digits, parse_pattern
from tntune.tt.modes import auto_modes

__all__ = ["Concat", "Geometry", "Joined", "Layout", "Selection"]


@dataclass(frozen=True)
class Concat(Layout):
    """The paper's flat vector ``w = [vec W1; vec W2]``: W1 = down^T (D x M), W2 = up^T (M x Q), row-major.

    Attributes:
        sizes: The modes, with product M (D + Q), cut wherever one likes.

    Example:
        >>> Concat((16, 8, 257, 16)).check(Geometry(512, 2, 1024))

    Reference: Qi et al. (arXiv 2506.16456), eq. 3, and their published code.
    """

    kind: ClassVar[str] = "concat"

    sizes: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", positives("sizes", self.sizes))

    @property
    def modes(self) -> Shape:
        return self.sizes

    def check(self, geometry: Geometry) -> None:
        needed = geometry.width * (geometry.in_features + geometry.out_features)
        if math.prod(self.modes) != needed:
            raise ModeError(
                f"concat modes {self.modes} have the product {math.prod(self.modes)}, "
                f"but width * (in + out) = {geometry.width} * ({geometry.in_features} + "
                f"{geometry.out_features}) = {needed}"
            )

    def selections(self, geometry: Geometry, site: int | None = None) -> tuple[Selection, ...]:
        return (self._tail(0)._replace(cut=geometry.width * geometry.in_features),)

    def up_selections(self, geometry: Geometry, site: int | None = None) -> tuple[Selection, ...]:
        entries = geometry.width * geometry.out_features
        return (self._tail(self.modes[0] - math.ceil(entries / math.prod(self.modes[1:]))),)

    def read_up(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Tensor:
        (flat,) = parts
        return _matrix(flat[..., -geometry.width * geometry.out_features :], geometry.width).mT

    def read(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Factors:
        first, second = parts
        return Factors(_matrix(first, geometry.in_features).mT, _matrix(second, geometry.width).mT)

    def write(self, down: Tensor, up: Tensor) -> Tensor:
        return torch.cat([down[0].mT.reshape(-1), up[0].mT.reshape(-1)]).reshape(self.modes)

    def up_entries(self, geometry: Geometry) -> tuple[int, Tensor] | None:
        return None

    def _tail(self, start: int) -> Selection:
        """The entries from this slice of the first mode on."""
        names = tuple(f"m{k}" for k in range(len(self.modes)))
        rest = ((name, m, 0, m) for name, m in zip(names[1:], self.modes[1:], strict=True))
        first, length = self.modes[0], self.modes[0] - start
        legs = (((names[0], first, start, length),), *((leg,) for leg in rest))
        return Selection(legs, names, (length * math.prod(self.modes[1:]),))


@dataclass(frozen=True)
class Joined(Layout):
    """Named modes in any order: entry (side, feature, width) is W1[f, w] on side 0, W2^T[f, w] on side 1.

    Attributes:
        pattern: Legs in TT order, parentheses group legs into one mode: ``"side f1 f2 w"``,
            ``"(f1 w1) (f2 w2) side"``, ``"layer proj side f1 f2 w"``, ``"io w"``. Legs: ``side`` (size
            2); ``f``, ``f1``, ``f2``, ...: the digits of the feature index, in the order of their
            numbers, the first the most significant; ``w``...: the digits of the width index; ``io``...:
            instead of side and f, the digits of one index that runs over the D inputs and then the Q
            outputs; a single ``io`` beside a side: the same index, of which each side reads its own part
            (``"io (layer side w)"``: bases of inputs and outputs, and coefficients of every layer and side);
            ``layer`` and ``proj``: one site for each pair.
        sizes: Size of each leg, in the order in which the pattern names them. Feature digits may
            exceed what is needed; that padding is cut off, and not generated where the leading digit
            can be cut. Width digits are exact.
        groups: The legs of each mode, read from the pattern.
        legs: Size of each leg by name, in TT order.

    Raises:
        SpecError: For a pattern that cannot be read, or sizes that do not fit it.

    Example:
        >>> layout = Joined.auto("side f1 (f2 w)", Geometry(384, 384, 8))
        >>> layout.sizes, layout.modes
        ((2, 24, 16, 8), (2, 24, 128))
    """

    kind: ClassVar[str] = "joined"

    pattern: str
    sizes: Shape
    groups: Groups = field(init=False, repr=False, compare=False)
    legs: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes, groups = positives("sizes", self.sizes), parse_pattern(self.pattern)
        names = [name for group in groups for name in group]
        if len(names) != len(sizes):
            raise SpecError(f"pattern {self.pattern!r} names {len(names)} legs, but sizes are {sizes}")
        legs = dict(zip(names, sizes, strict=True))
        if legs.get("side", 2) != 2:
            raise SpecError(f"the side leg of {self.pattern!r} has size 2, not {legs['side']}")
        for name, value in (("sizes", sizes), ("groups", groups), ("legs", legs)):
            object.__setattr__(self, name, value)

    @classmethod
    def auto(cls, pattern: str, geometry: Geometry, *, layers: int = 1, projections: int = 1) -> "Joined":
        """The layout of this pattern with balanced digits for these sizes, padded where primes force it.

        Raises:
            SpecError: For a pattern that cannot be read, or several layers or projections without a leg.
        """
        names = [name for group in parse_pattern(pattern) for name in group]
        for leg, count in (("layer", layers), ("proj", projections)):
            if count != 1 and leg not in names:
                raise SpecError(f"layout {pattern!r} has no {leg} leg, but {count} were asked for")
        features = max(geometry.in_features, geometry.out_features)
        joint = geometry.in_features + geometry.out_features
        sizes = {"side": 2, "layer": layers, "proj": projections}
        for family, total in (("f", features), ("w", geometry.width), ("io", joint)):
            own = digits(names, family)
            if own:
                sizes.update(zip(own, _split(total, len(own), exact=family == "w"), strict=True))
        return cls(pattern, tuple(sizes[name] for name in names))

    @property
    def modes(self) -> Shape:
        return tuple(math.prod(self.legs[name] for name in group) for group in self.groups)

    @property
    def sites(self) -> int:
        return self.legs.get("layer", 1) * self.legs.get("proj", 1)

    @property
    def family(self) -> str:
        """The legs that carry features: ``"f"`` or ``"io"``."""
        return "f" if digits(self.legs, "f") else "io"

    def span(self, family: str) -> int:
        """Size of the index that the digits of a family make: ``w``, ``f`` or ``io``."""
        return math.prod(self.legs[name] for name in digits(self.legs, family))

    def check(self, geometry: Geometry) -> None:
        d, q, width = geometry
        needed = d + q if self.family == "io" else max(d, q)
        if self.span("w") != width or self.span(self.family) < needed:
            raise ModeError(
                f"legs {self.legs} of {self.pattern!r} span {self.span('w')} widths and "
                f"{self.span(self.family)} features, but exactly {width} and at least {needed} are needed"
            )

    def selections(self, geometry: Geometry, site: int | None = None) -> tuple[Selection, ...]:
        d, q, _ = geometry
        if "side" not in self.legs:
            return (self._selection(d + q, site=site),)
        if self.family == "io":
            return (self._selection(d, (0, 1), site), self._selection(q, (1, 1), site, start=d))
        if d == q:
            return (self._selection(d, (0, 2), site),)
        return (self._selection(d, (0, 1), site), self._selection(q, (1, 1), site))

    def read(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Factors:
        d, q, _ = geometry
        if "side" not in self.legs:
            both = _cut(parts[0], d + q)
            first, second = torch.split(both, [d, q], dim=-1)
            return Factors(first, second.mT)
        sides = [side for part in parts for side in part.unbind(-4)]
        return Factors(_cut(sides[0], d), _cut(sides[1], q).mT)

    def write(self, down: Tensor, up: Tensor) -> Tensor:
        total, first = self.span(self.family), down.shape[-1] if self.family == "io" else 0
        if "side" in self.legs:
            both = torch.stack([_pad(down, total), _pad(up.mT, total, first)])  # (side, sites, w, f or io)
        else:
            both = _pad(torch.cat([down, up.mT], dim=-1), total)  # (sites, w, io)
        order = self._order
        split = both.reshape([self.legs[name] for name in order])
        return split.permute([order.index(name) for name in self.legs]).reshape(self.modes)

    def up_entries(self, geometry: Geometry) -> tuple[int, Tensor] | None:
        names = ["side"] if "side" in self.legs else digits(self.legs, "io")
        if len(names) > 1:
            return None
        (k,) = (k for k, group in enumerate(self.groups) if names[0] in group)
        group = self.groups[k]
        entries = torch.arange(self.modes[k], device="cpu").reshape([self.legs[name] for name in group])
        axis = group.index(names[0])
        first = 1 if names == ["side"] else geometry.in_features
        return k, entries.narrow(axis, first, entries.shape[axis] - first).flatten()

    @property
    def _order(self) -> list[str]:
        """Legs in the order (side, layer, proj, w digits, feature digits)."""
        head = [name for name in ("side", "layer", "proj") if name in self.legs]
        return head + digits(self.legs, "w") + digits(self.legs, self.family)

    def _selection(
        self, needed: int, sides: tuple[int, ...] = (), site: int | None = None, *, start: int = 0
    ) -> Selection:
        """What to generate: these sides and site, of the leading digit only what ``needed`` needs.

        Only a single leading digit may start elsewhere than at 0.
        """
        leading = digits(self.legs, self.family)[0]
        inner = self.span(self.family) // self.legs[leading]
        parts = {name: (0, size) for name, size in self.legs.items()}
        parts[leading] = (start, -(-needed // inner))
        if sides:
            parts["side"] = (sides[0], sides[1])
        if site is not None:
            layer, projection = divmod(site, self.legs.get("proj", 1))
            chosen = {"layer": (layer, 1), "proj": (projection, 1)}
            parts.update({leg: chosen[leg] for leg in chosen if leg in parts})
        legs = tuple(tuple((name, self.legs[name], *parts[name]) for name in group) for group in self.groups)
        sites = self.sites if site is None else 1
        shape = (*sides[1:], sites, self.span("w"), parts[leading][1] * inner)
        return Selection(legs, tuple(self._order), shape)


def _split(total: int, count: int, *, exact: bool) -> Shape:
    """Digits, the first the largest: the finer the leading digit, the less padding is generated."""
    return exact_modes(total, count) if exact else auto_modes(total, order=count).sizes[::-1]


def _cut(matrix: Tensor, columns: int) -> Tensor:
    """The first columns; the matrix itself where it has no more."""
    return matrix if matrix.shape[-1] == columns else matrix[..., :columns]


def _matrix(flat: Tensor, rows: int) -> Tensor:
    """Flat entries as row-major matrices of one site: ``(..., 1, rows, columns)``."""
    return flat.reshape(*flat.shape[:-1], 1, rows, flat.shape[-1] // rows)


def _pad(matrix: Tensor, total: int, first: int = 0) -> Tensor:
    return functional.pad(matrix, (first, total - first - matrix.shape[-1]))
