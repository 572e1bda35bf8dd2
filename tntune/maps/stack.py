"""Stack: the layers that one joint map serves, by their named modes."""

from dataclasses import dataclass
from typing import ClassVar

from tntune.errors import ModeError, SpecError
from tntune.maps.base import Shape, positive

__all__ = ["Stack", "check_heads", "check_stack", "split_heads"]


@dataclass(frozen=True)
class Stack:
    """Layers of one shape under one roof: site ``layer * projections + proj`` is that layer's projection.

    Attributes:
        in_features: D of every site.
        out_features: Q of every site; layers of another shape need a map of their own, as the keys and
            values of grouped-query attention do.
        layers: Blocks of the model.
        projections: Adapted matrices of each block.

    Raises:
        SpecError: For a size that is no positive integer.

    Example:
        >>> Stack(768, 768, layers=12, projections=3).sites
        36
    """

    kind: ClassVar[str] = "stack"

    in_features: int
    out_features: int
    layers: int = 1
    projections: int = 1

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "layers", "projections"):
            positive(name, getattr(self, name))

    @property
    def sites(self) -> int:
        """How many matrices it holds."""
        return self.layers * self.projections

    @property
    def index(self) -> dict[str, int]:
        """Sizes of the modes that address a site, the first the most significant."""
        return {"layer": self.layers, "proj": self.projections}


def check_stack(value: object) -> Stack:
    """``value`` where it is a :class:`Stack`; :class:`SpecError` otherwise.

    Example:
        >>> check_stack(Stack(4, 3)).sites
        1
    """
    if not isinstance(value, Stack):
        raise SpecError(f"a joint map needs a Stack, not {value!r:.80}")
    return value


def split_heads(out_features: int, heads: int) -> int:
    """Size of each head, of which ``heads`` make the features.

    Raises:
        ModeError: Where the heads do not divide the features.

    Example:
        >>> split_heads(768, 12)
        64
    """
    if out_features % positive("heads", heads):
        raise ModeError(f"{heads} heads do not divide {out_features} features")
    return out_features // heads


def check_heads(stack: Stack, input_heads: object) -> Shape:
    """``input_heads`` as a tuple of projections of the stack whose heads split the input.

    Raises:
        SpecError: Where it names a projection twice, or one that the stack does not have.
        ModeError: Where the sites are not square, so that one factor cannot serve input and output.

    Example:
        >>> check_heads(Stack(8, 8, layers=2, projections=4), [3])
        (3,)
    """
    found = tuple(input_heads) if isinstance(input_heads, list | tuple) else (input_heads,)
    known = range(stack.projections)
    if len(set(map(repr, found))) < len(found) or any(type(p) is not int or p not in known for p in found):
        raise SpecError(
            f"input_heads must be different projections below {len(known)}, not {input_heads!r:.80}"
        )
    if found and stack.in_features != stack.out_features:
        raise ModeError(
            f"heads on the input of some projections need square sites, "
            f"not {stack.in_features} x {stack.out_features}"
        )
    return found
