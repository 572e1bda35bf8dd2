"""Layouts: how the entries of one generated tensor become the two factors, and back."""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tntune.errors import ModeError, SpecError
from tntune.maps.base import Factors, Shape, positives
from tntune.tt.modes import auto_modes

__all__ = ["Concat", "Geometry", "Joined", "Layout", "Selection", "exact_modes"]

_LEG = re.compile(r"side|layer|proj|(?:f|w|io)\d*")


class Geometry(NamedTuple):
    """The sizes that a layout must serve: ``(in_features, out_features, width)`` of every site."""

    in_features: int
    out_features: int
    width: int


class Selection(NamedTuple):
    """A part of the generated tensor that one contraction makes.

    Attributes:
        legs: For each core the ``(name, size, start, length)`` of the legs of its mode: only entries
            ``start .. start + length`` of a leg are generated.
        output: Names of the legs in the order of the result.
        shape: Shape to which the result is reshaped.
    """

    legs: tuple[tuple[tuple[str, int, int, int], ...], ...]
    output: tuple[str, ...]
    shape: Shape


class Layout(ABC):
    """The order in which named modes become the modes of a train; finals are frozen dataclasses."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def modes(self) -> Shape:
        """Open modes m_k of the train."""

    @property
    def sites(self) -> int:
        """Layers of one shape that one train serves."""
        return 1

    @abstractmethod
    def check(self, geometry: Geometry) -> None:
        """Raise :class:`ModeError` or :class:`SpecError` where the modes cannot hold both factors."""

    @abstractmethod
    def selections(self, geometry: Geometry) -> tuple[Selection, ...]:
        """The contractions that make the factors, without the padding that slicing can avoid."""

    @abstractmethod
    def read(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Factors:
        """The factors, down ``(sites, width, in)`` and up ``(sites, out, width)``, from those contractions.

        Axes in front of the shapes of :meth:`selections` (open latent legs) stay in front.
        """

    @abstractmethod
    def write(self, down: Tensor, up: Tensor) -> Tensor:
        """The tensor of shape ``modes`` from which the factors are read; its padding is zero."""

    @abstractmethod
    def up_entries(self, geometry: Geometry) -> tuple[int, Tensor] | None:
        """``(k, entries)``: zeroing these entries of the mode of core k makes up = 0; None where none do."""


@dataclass(frozen=True)
class Concat(Layout):
    """The paper's flat vector ``w = [vec W1; vec W2]``: W1 = down^T (D x M), W2 = up^T (M x Q), row-major.

    Attributes:
        sizes: The modes, with product M (D + Q), cut wherever one likes.

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

    def selections(self, geometry: Geometry) -> tuple[Selection, ...]:
        names = tuple(f"m{k}" for k in range(len(self.modes)))
        legs = tuple(((name, m, 0, m),) for name, m in zip(names, self.modes, strict=True))
        return (Selection(legs, names, (math.prod(self.modes),)),)

    def read(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Factors:
        (flat,) = parts
        d, q, width = geometry
        first, second = flat[..., : d * width], flat[..., d * width :]
        down = first.reshape(*first.shape[:-1], 1, d, width).mT
        up = second.reshape(*second.shape[:-1], 1, width, q).mT
        return Factors(down, up)

    def write(self, down: Tensor, up: Tensor) -> Tensor:
        return torch.cat([down[0].mT.reshape(-1), up[0].mT.reshape(-1)]).reshape(self.modes)

    def up_entries(self, geometry: Geometry) -> tuple[int, Tensor] | None:
        return None


@dataclass(frozen=True)
class Joined(Layout):
    """Named modes in any order: entry (side, feature, width) is W1[f, w] on side 0, W2^T[f, w] on side 1.

    Attributes:
        pattern: Legs in TT order, parentheses group legs into one mode: ``"side f1 f2 w"``,
            ``"(f1 w1) (f2 w2) side"``, ``"layer proj side f1 f2 w"``, ``"io w"``. Legs: ``side`` (size
            2); ``f``, ``f1``, ``f2``, ...: the digits of the feature index, in the order of their
            numbers, the first the most significant; ``w``...: the digits of the width index; ``io``...:
            instead of side and f, the digits of one index that runs over the D inputs and then the Q
            outputs; ``layer`` and ``proj``: one site for each pair.
        sizes: Size of each leg, in the order in which the pattern names them. Feature digits may
            exceed what is needed; that padding is cut off, and not generated where the leading digit
            can be cut. Width digits are exact.

    Raises:
        SpecError: For a pattern that cannot be read, or sizes that do not fit it.

    Example:
        >>> layout = Joined.auto("side f1 f2 w", Geometry(384, 384, 8))
        >>> layout.sizes, layout.modes
        ((2, 24, 16, 8), (2, 24, 16, 8))
    """

    kind: ClassVar[str] = "joined"

    pattern: str
    sizes: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", positives("sizes", self.sizes))
        names = [name for group in _groups(self.pattern) for name in group]
        if len(names) != len(self.sizes):
            raise SpecError(f"pattern {self.pattern!r} names {len(names)} legs, but sizes are {self.sizes}")
        _check_legs(self.pattern, dict(zip(names, self.sizes, strict=True)))

    @classmethod
    def auto(cls, pattern: str, geometry: Geometry, *, layers: int = 1, projections: int = 1) -> "Joined":
        """The layout of this pattern with balanced digits for these sizes, padded where primes force it."""
        names = [name for group in _groups(pattern) for name in group]
        totals = {
            "f": max(geometry.in_features, geometry.out_features),
            "w": geometry.width,
            "io": geometry.in_features + geometry.out_features,
        }
        sizes = {"side": 2, "layer": layers, "proj": projections}
        for family, total in totals.items():
            digits = _digits(names, family)
            if digits:
                exact = family == "w"
                sizes.update(zip(digits, _split(total, len(digits), exact=exact), strict=True))
        return cls(pattern, tuple(sizes[name] for name in names))

    @property
    def legs(self) -> dict[str, int]:
        """Size of each leg by name, in TT order."""
        names = [name for group in _groups(self.pattern) for name in group]
        return dict(zip(names, self.sizes, strict=True))

    @property
    def modes(self) -> Shape:
        legs = self.legs
        return tuple(math.prod(legs[name] for name in group) for group in _groups(self.pattern))

    @property
    def sites(self) -> int:
        return self.legs.get("layer", 1) * self.legs.get("proj", 1)

    def check(self, geometry: Geometry) -> None:
        for family, needed in self._needed(geometry).items():
            digits = {name: self.legs[name] for name in _digits(list(self.legs), family)}
            total = math.prod(digits.values())
            if total < needed or (family == "w" and total != needed):
                relation = "exactly" if family == "w" else "at least"
                raise ModeError(
                    f"legs {digits} of {self.pattern!r} give {total}, but {relation} {needed} is needed"
                )

    def selections(self, geometry: Geometry) -> tuple[Selection, ...]:
        d, q, width = geometry
        if self._family == "io":
            return (self._selection("io", d + q, (), width),)
        if d == q:
            return (self._selection("f", d, (0, 2), width),)
        return (self._selection("f", d, (0, 1), width), self._selection("f", q, (1, 1), width))

    def read(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Factors:
        d, q, _ = geometry
        if self._family == "io":
            both = parts[0][..., : d + q]
            return Factors(both[..., :d], both[..., d:].mT)
        if len(parts) == 1:
            first, second = parts[0].unbind(-4)
        else:
            first, second = parts[0].squeeze(-4), parts[1].squeeze(-4)
        return Factors(first[..., :d], second[..., :q].mT)

    def write(self, down: Tensor, up: Tensor) -> Tensor:
        legs, family = self.legs, self._family
        total = math.prod(legs[name] for name in _digits(list(legs), family))
        if family == "io":
            both = _pad(torch.cat([down, up.mT], dim=-1), total)  # (sites, w, io)
        else:
            both = torch.stack([_pad(down, total), _pad(up.mT, total)])  # (side, sites, w, f)
        order = self._order(family)
        split = both.reshape([legs[name] for name in order])
        return split.permute([order.index(name) for name in legs]).reshape(self.modes)

    def up_entries(self, geometry: Geometry) -> tuple[int, Tensor] | None:
        cut = {"side": slice(1, 2), "io": slice(geometry.in_features, None)}
        single = "side" if self._family == "f" else "io"
        if self._family == "io" and len(_digits(list(self.legs), "io")) > 1:
            return None
        for k, group in enumerate(_groups(self.pattern)):
            names = [name for name in group if name == single or _digits([name], single)]
            if names:
                index = tuple(cut[single] if name in names else slice(None) for name in group)
                entries = torch.arange(self.modes[k]).reshape([self.legs[name] for name in group])
                return k, entries[index].flatten()
        raise AssertionError("a joined layout has a side or an io leg")

    @property
    def _family(self) -> str:
        return "f" if "side" in self.legs else "io"

    def _needed(self, geometry: Geometry) -> dict[str, int]:
        d, q, width = geometry
        return {"w": width, "io": d + q} if self._family == "io" else {"w": width, "f": max(d, q)}

    def _order(self, family: str) -> list[str]:
        """Legs in the order (side, layer, proj, w digits, feature digits)."""
        names = list(self.legs)
        head = [name for name in ("side", "layer", "proj") if name in names]
        return head + _digits(names, "w") + _digits(names, family)

    def _selection(self, family: str, needed: int, sides: tuple[int, ...], width: int) -> Selection:
        """What to generate: these sides, and of the leading digit only the entries that ``needed`` needs."""
        leading, *rest = _digits(list(self.legs), family)
        inner = math.prod(self.legs[name] for name in rest)
        parts = {leading: (0, math.ceil(needed / inner))}
        if sides:
            parts["side"] = (sides[0], sides[1])
        legs = tuple(
            tuple((name, self.legs[name], *parts.get(name, (0, self.legs[name]))) for name in group)
            for group in _groups(self.pattern)
        )
        head = (sides[1],) if sides else ()
        shape = (*head, self.sites, width, parts[leading][1] * inner)
        return Selection(legs, tuple(self._order(family)), shape)


def _groups(pattern: object) -> list[list[str]]:
    """``"(f1 w1) f2"`` to ``[["f1", "w1"], ["f2"]]``."""
    if not isinstance(pattern, str) or not re.fullmatch(
        r"\s*(?:(?:\w+|\(\s*\w+(?:\s+\w+)*\s*\))\s*)+", pattern
    ):
        raise SpecError(
            f"cannot read the layout {pattern!r}; write legs and groups such as 'side (f1 w1) f2'"
        )
    return [token.strip("() ").split() for token in re.findall(r"\([^)]*\)|\w+", pattern)]


def _check_legs(pattern: str, legs: dict[str, int]) -> None:
    names = [name for group in _groups(pattern) for name in group]
    unknown = [name for name in names if not _LEG.fullmatch(name)]
    if unknown or len(set(names)) != len(names):
        raise SpecError(
            f"layout {pattern!r} repeats a leg or has an unknown one {unknown}; "
            "legs are side, layer, proj, f1.., w1.., io1.."
        )
    if not _digits(names, "w"):
        raise SpecError(f"layout {pattern!r} has no width leg w")
    features, joint = _digits(names, "f"), _digits(names, "io")
    if bool(features) == bool(joint) or bool(features) != ("side" in names):
        raise SpecError(f"layout {pattern!r} needs either side and f legs, or io legs")
    if "side" in legs and legs["side"] != 2:
        raise SpecError(f"the side leg of {pattern!r} has size 2, not {legs['side']}")


def _digits(names: list[str], family: str) -> list[str]:
    """The legs of a family, most significant first."""
    own = [name for name in names if re.fullmatch(rf"{family}\d*", name)]
    return sorted(own, key=lambda name: int(name[len(family) :] or 0))


def _split(total: int, count: int, *, exact: bool) -> Shape:
    """Digits, the first the largest: the finer the leading digit, the less padding is generated."""
    return exact_modes(total, count) if exact else auto_modes(total, order=count).sizes[::-1]


def exact_modes(total: int, order: int) -> Shape:
    """``order`` modes with product exactly ``total``, as balanced as its divisors allow, largest first.

    Example:
        >>> exact_modes(526336, 4), exact_modes(7, 2)
        ((257, 16, 16, 8), (7, 1))
    """
    if order == 1:
        return (total,)
    target = total ** (1 / order)
    best = min(_divisors(total), key=lambda n: abs(math.log(n / target)))
    return tuple(sorted((best, *exact_modes(total // best, order - 1)), reverse=True))


def _divisors(total: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
    return small + [total // n for n in reversed(small)]


def _pad(matrix: Tensor, total: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, total - matrix.shape[-1]))
