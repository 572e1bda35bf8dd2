"""Summaries: bounds of many layers in one row each, layers by block and projection, versions."""

import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from tntune.theory.bound import Bound

__all__ = ["NO_THEOREM", "BoundSummary", "folder_labels", "grid", "shown", "summarize", "versions"]

NO_THEOREM = "E26+"
"""Label of the one row that is no theorem: it is shown to be compared, and may fail."""

_PACKAGES = ("tntune", "torch", "tensorly", "tensorly-torch", "numpy", "scipy")
_INTEGER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class BoundSummary:
    """One statement over many layers.

    Attributes:
        label: Row of the ledger in ``theory/README.md``.
        statement: The inequality.
        held: In how many layers it holds.
        layers: Of how many.
        tightest: Least ratio between bound and measured quantity.
        median: The median one.
        example: The bound that is tightest, with its values.

    Example:
        >>> BoundSummary("T6", "s", 1, 2, 1.0, 2.0, Bound("T6", "s", 2, 1, ("a",))).theorem
        True
    """

    label: str
    statement: str
    held: int
    layers: int
    tightest: float
    median: float
    example: Bound

    @property
    def theorem(self) -> bool:
        """Whether a failure would be an error of this program or of the theory."""
        return self.label != NO_THEOREM


def summarize(bounds: Iterable[Bound]) -> tuple[BoundSummary, ...]:
    """Bounds grouped by label and statement, in the order of their first appearance.

    Example:
        >>> one = Bound("T6", "rank T <= 12", 12, 9, ("rank of up is 4",))
        >>> [(found.held, found.layers) for found in summarize([one, one])]
        [(2, 2)]
    """
    groups: dict[tuple[str, str], list[Bound]] = {}
    for bound in bounds:
        groups.setdefault((bound.label, bound.statement), []).append(bound)
    found = []
    for (label, statement), own in groups.items():
        ordered = sorted(own, key=lambda bound: bound.slack)
        found.append(
            BoundSummary(
                label=label,
                statement=statement,
                held=sum(bound.holds for bound in own),
                layers=len(own),
                tightest=ordered[0].slack,
                median=ordered[len(ordered) // 2].slack,
                example=ordered[0],
            )
        )
    return tuple(found)


def folder_labels(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Names of folders, numbered where names alone do not tell them apart.

    Example:
        >>> folder_labels(["runs/a", "runs/b"]), folder_labels(["one/a", "two/a"])
        (['a', 'b'], ['a (1)', 'a (2)'])
    """
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def grid(names: Sequence[str]) -> tuple[list[str], list[str], dict[str, tuple[int, int]]]:
    """Rows, columns, and the place of each module path: block index by projection, else a list.

    The block is the first integer of a path. Where some path has none, or two paths share a place, there is
    one column and a row for each path.

    Example:
        >>> grid(["h.0.fc", "h.1.fc", "h.1.proj"])
        (['0', '1'], ['fc', 'proj'], {'h.0.fc': (0, 0), 'h.1.fc': (1, 0), 'h.1.proj': (1, 1)})
        >>> grid(["head"])
        (['head'], [''], {'head': (0, 0)})
    """
    parts = {name: _parted(name) for name in names}
    split = {name: found for name, found in parts.items() if found is not None}
    if len(split) < len(names) or len(set(split.values())) < len(names):
        return list(names), [""], {name: (i, 0) for i, name in enumerate(names)}
    blocks = sorted({block for block, _ in split.values()})
    kinds = list(dict.fromkeys(kind for _, kind in split.values()))
    places = {name: (blocks.index(block), kinds.index(kind)) for name, (block, kind) in split.items()}
    return [str(block) for block in blocks], kinds, places


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that computed.

    Example:
        >>> sorted(versions())
        ['numpy', 'python', 'scipy', 'tensorly', 'tensorly-torch', 'tntune', 'torch']
    """
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def shown(value: float | None, digits: int = 3) -> str:
    """A number for people; ``-`` where there is none, ``∞`` where it is infinite.

    Example:
        >>> shown(1234.5), shown(0.00001234), shown(None), shown(float("inf")), shown(0.0)
        ('1,230', '1.23e-05', '-', '∞', '0')
    """
    if value is None:
        return "-"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 1 <= abs(value) < 1e6:
        rounded = float(f"{value:.{digits}g}")
        return f"{rounded:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"


def _parted(name: str) -> tuple[int, str] | None:
    """The first integer of a path, and what stands behind it (before it where nothing does)."""
    match = _INTEGER.search(name)
    if not match:
        return None
    rest = name[match.end() :].lstrip(".")
    return int(match[1]), rest or name[: match.start()]
