"""Patterns of joined layouts: ``"side (f1 w1) f2"`` to named legs in groups."""

import re
from collections.abc import Iterable

from tntune.errors import SpecError

__all__ = ["Groups", "digits", "parse_pattern"]

Groups = tuple[tuple[str, ...], ...]

_LEG = re.compile(r"side|layer|proj|(?:f|w|io)(?:[1-9][0-9]{0,2})?")
_TOKEN = re.compile(r"\(([\w\s]*)\)|(\w+)")


def parse_pattern(pattern: str) -> Groups:
    """The legs of a layout in TT order, grouped by the mode they share.

    Raises:
        SpecError: For a pattern that cannot be read, or that lacks a leg, repeats one or has an unknown one.

    Example:
        >>> parse_pattern("side (f1 w) f2")
        (('side',), ('f1', 'w'), ('f2',))
    """
    if not isinstance(pattern, str):
        raise SpecError(f"a layout is a pattern such as 'side (f1 w1) f2', not {pattern!r:.80}")
    groups = tuple(tuple((inner or single).split()) for inner, single in _TOKEN.findall(pattern))
    if _TOKEN.sub("", pattern).strip() or not all(groups) or not groups:
        raise SpecError(f"cannot read the layout {pattern!r}; write it like 'side (f1 w1) f2'")
    _check_legs(pattern, [name for group in groups for name in group])
    return groups


def digits(names: Iterable[str], family: str) -> list[str]:
    """The legs of a family, most significant first: ``f`` before ``f1`` before ``f2``.

    Example:
        >>> digits(["side", "f10", "w", "f2"], "f")
        ['f2', 'f10']
    """
    own = [name for name in names if re.fullmatch(rf"{family}[0-9]*", name)]
    return sorted(own, key=lambda name: int(name[len(family) :] or 0))


def _check_legs(pattern: str, names: list[str]) -> None:
    unknown = [name for name in names if not _LEG.fullmatch(name)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if unknown or repeated:
        raise SpecError(
            f"layout {pattern!r} has unknown legs {unknown} and repeats {repeated}; "
            "legs are side, layer, proj, f, f1.., w, w1.., io, io1.."
        )
    if not digits(names, "w"):
        raise SpecError(f"layout {pattern!r} has no width leg w")
    features, joint, side = digits(names, "f"), digits(names, "io"), "side" in names
    if bool(features) == bool(joint) or (features and not side) or (side and len(joint) > 1):
        raise SpecError(
            f"layout {pattern!r} needs a side leg and f legs, or io legs instead of both, or a side leg and "
            "one io leg"
        )
