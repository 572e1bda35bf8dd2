"""What every layout is: which parts of the generated tensor are made, and which factors they are."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from tntune.maps.base import Factors, Shape

__all__ = ["Geometry", "Layout", "Selection"]


class Geometry(NamedTuple):
    """The sizes that a layout must serve: ``(in_features, out_features, width)`` of every site.

    Example:
        >>> Geometry(768, 3072, 8).out_features
        3072
    """

    in_features: int
    out_features: int
    width: int


class Selection(NamedTuple):
    """A part of the generated tensor that one contraction makes: padding is not even generated.

    Example:
        >>> from tntune.maps.layout import Joined
        >>> (both,) = Joined.auto("side f w", Geometry(3, 3, 2)).selections(Geometry(3, 3, 2))
        >>> both.output, both.shape
        (('side', 'w', 'f'), (2, 1, 2, 3))

    Attributes:
        legs: For each core the ``(name, size, start, length)`` of the legs of its mode: only entries
            ``start .. start + length`` of a leg are generated.
        output: Names of the legs in the order of the result.
        shape: Shape to which the result is reshaped.
        cut: Where a flat result is cut into two parts; None leaves it whole.
    """

    legs: tuple[tuple[tuple[str, int, int, int], ...], ...]
    output: tuple[str, ...]
    shape: Shape
    cut: int | None = None


class Layout(ABC):
    """Which entry of a train is which entry of the factors: ``read`` undoes ``write``.

    Finals are frozen dataclasses: :class:`Concat`, the paper's flat vector, and :class:`Joined`, named modes.
    """

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
    def selections(self, geometry: Geometry, site: int | None = None) -> tuple[Selection, ...]:
        """The contractions that make the factors of all sites, or of one, without avoidable padding."""

    @abstractmethod
    def read(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Factors:
        """The factors, down ``(sites, width, in)`` and up ``(sites, out, width)``, from those contractions.

        A contraction that is cut gives two parts. Axes in front of the shapes of :meth:`selections` (open
        latent legs) stay in front.
        """

    def up_selections(self, geometry: Geometry, site: int | None = None) -> tuple[Selection, ...]:
        """The contractions that make up, for :meth:`read_up`; more than that where up lies among the rest."""
        return self.selections(geometry, site)

    def read_up(self, parts: tuple[Tensor, ...], geometry: Geometry) -> Tensor:
        """Up ``(sites, out, width)`` from those contractions."""
        return self.read(parts, geometry).up

    @abstractmethod
    def write(self, down: Tensor, up: Tensor) -> Tensor:
        """The tensor of shape ``modes`` from which the factors are read; its padding is zero."""

    @abstractmethod
    def up_entries(self, geometry: Geometry) -> tuple[int, Tensor] | None:
        """``(k, entries)``: zeroing these entries of the mode of core k makes up = 0; None where none do."""
