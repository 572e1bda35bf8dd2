"""Grid: the modules that one joint map serves, by the block and the role that their paths name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tntune.errors import SpecError

__all__ = ["Grid", "grids", "place"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Grid:
    """Modules in rows of blocks and columns of roles: module ``i * len(roles) + k`` has block i and role k.

    Attributes:
        modules: Paths, block by block.
        blocks: Number of each block, ``""`` for modules outside of any.
        roles: Paths with a star for the number of the block.

    Raises:
        SpecError: Where there are not as many modules as places.

    Example:
        >>> Grid(("h.0.q", "h.0.v"), ("0",), ("h.*.q", "h.*.v")).named(("v",))
        (1,)
    """

    modules: tuple[str, ...]
    blocks: tuple[str, ...]
    roles: tuple[str, ...]

    def __post_init__(self) -> None:
        places = len(self.blocks) * len(self.roles)
        if len(self.modules) != places or not places:
            raise SpecError(
                f"{len(self.modules)} modules do not fill a grid of {len(self.blocks)} blocks "
                f"and {len(self.roles)} roles"
            )

    def named(self, endings: Iterable[str]) -> tuple[int, ...]:
        """Indexes of the roles whose path ends with one of these names."""
        dotted = tuple(f".{ending}" for ending in endings)
        return tuple(k for k, role in enumerate(self.roles) if f".{role}".endswith(dotted))


def place(module: str) -> tuple[str, str]:
    """``(block, role)`` of a path: its first numbered part, and the path with a star in its place.

    Example:
        >>> place("model.layers.11.self_attn.q_proj"), place("pooler.dense")
        (('11', 'model.layers.*.self_attn.q_proj'), ('', 'pooler.dense'))
    """
    number = _NUMBER.search(module)
    if number is None:
        return "", module
    return number[0], module[: number.start()] + "*" + module[number.end() :]


def grids(modules: Iterable[str]) -> tuple[Grid, ...]:
    """The modules as full grids, in their order: roles that have the same blocks make one.

    So what only some blocks have, or no block, is a grid of its own.

    Example:
        >>> [grid.modules for grid in grids(["h.0.q", "h.0.v", "h.1.q", "h.1.v", "pooler"])]
        [('h.0.q', 'h.0.v', 'h.1.q', 'h.1.v'), ('pooler',)]
    """
    roles: dict[str, dict[str, str]] = {}
    for module in modules:
        block, role = place(module)
        roles.setdefault(role, {})[block] = module
    alike: dict[frozenset[str], list[str]] = {}
    for role, own in roles.items():
        alike.setdefault(frozenset(own), []).append(role)
    found = []
    for together in alike.values():
        blocks = tuple(roles[together[0]])
        ordered = tuple(roles[role][block] for block in blocks for role in together)
        found.append(Grid(ordered, blocks, tuple(together)))
    return tuple(found)
