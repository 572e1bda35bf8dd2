"""Routes: the paths by which a train is contracted, by name."""

from collections.abc import Sequence
from typing import TypeAlias

from tntune.contract.step import Path

__all__ = ["train_routes"]

_Tree: TypeAlias = int | tuple["_Tree", "_Tree"]


def train_routes(order: int, *, has_z: bool) -> dict[str, Path]:
    """Paths through the cores of a train, and z as the last operand where it has one, by name.

    From the left or from the right, with z in the first core; and two halves that one product joins, so
    that a backward keeps nothing larger than a half, with z in the left or the right one, and the right one
    from either of its ends. Equal paths have one name, and one operand has none.

    Example:
        >>> train_routes(3, has_z=False)
        {'left to right': ((0, 1), (1, 0)), 'right to left': ((1, 2), (0, 1))}
    """
    z = [order] if has_z else []
    cores = range(order)
    trees = {"left to right": _from_left(cores, z), "right to left": _from_right(cores, z)}
    for at in range(1, order):
        left, right = cores[:at], cores[at:]
        for own, other, where in ((z, [], ", z in the left"), ([], z, ", z in the right")):
            name = f"halves at bond {at}{where if z else ''}"
            trees[name] = (_from_left(left, own), _from_left(right, other))
            if len(right) > 2:
                trees[f"{name}, inward"] = (_from_left(left, own), _from_right(right, other))
    paths = {name: _path(tree, order + len(z)) for name, tree in trees.items()}
    names = {path: name for name, path in reversed(paths.items())}
    return {names[path]: path for path in dict.fromkeys(paths.values()) if path}


def _from_left(cores: Sequence[int], z: Sequence[int]) -> _Tree:
    """Each core behind what is made so far, z in the first."""
    made: _Tree = cores[0]
    for operand in (*z, *cores[1:]):
        made = (made, operand)
    return made


def _from_right(cores: Sequence[int], z: Sequence[int]) -> _Tree:
    """Each core before what is made so far, z in the last."""
    made: _Tree = (cores[-1], z[0]) if z else cores[-1]
    for core in reversed(cores[:-1]):
        made = (core, made)
    return made


def _path(tree: _Tree, count: int) -> tuple[tuple[int, int], ...]:
    """The pairs of positions that contract ``count`` operands along a tree."""
    left = [*range(count)]
    steps: list[tuple[int, int]] = []

    def contract(node: _Tree) -> int:
        if isinstance(node, int):
            return node
        first, second = contract(node[0]), contract(node[1])
        steps.append((left.index(first), left.index(second)))
        made = count + len(steps)
        left[:] = [*(one for one in left if one not in (first, second)), made]
        return made

    contract(tree)
    return tuple(steps)
