"""Targets of a model: their sizes, and the stacks that targets of one shape make."""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from tntune.adapters.linear import features
from tntune.errors import TargetError
from tntune.maps.stack import Stack

__all__ = ["Targets", "stacks", "target_sizes"]

Targets = Mapping[str, tuple[int, int]]
"""``(in_features, out_features)`` of every target by its path."""


def target_sizes(model: nn.Module, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Sizes of the named linear layers, in the order of the names.

    Raises:
        TargetError: Where the model has no such module, or it is not linear.

    Example:
        >>> target_sizes(nn.Sequential(nn.Linear(4, 3)), ["0"])
        {'0': (4, 3)}
    """
    modules = dict(model.named_modules())
    missing = [path for path in paths if path not in modules]
    if missing or not paths:
        raise TargetError(f"{type(model).__name__} has no modules {missing}, or none was named")
    return {path: features(modules[path]) for path in paths}


def stacks(targets: Targets, *, shared: bool) -> tuple[tuple[Stack, tuple[str, ...]], ...]:
    """Targets with the stack that each makes alone, or that those of one shape make together.

    Together, targets are a grid where every number in their paths (the block) has the same rest of the path
    (the role): layers times projections. Otherwise each is a layer of one projection.

    Returns:
        Stacks with the paths of their sites, in the order of the sites.

    Example:
        >>> targets = {f"h.{i}.{role}": (6, 6) for i in range(3) for role in ("q", "v")}
        >>> [(stack.layers, stack.projections) for stack, _ in stacks(targets, shared=True)]
        [(3, 2)]
    """
    if not shared:
        return tuple((Stack(*sizes), (path,)) for path, sizes in targets.items())
    shapes: dict[tuple[int, int], list[str]] = {}
    for path, sizes in targets.items():
        shapes.setdefault(sizes, []).append(path)
    return tuple(_stack(sizes, paths) for sizes, paths in shapes.items())


def _stack(sizes: tuple[int, int], paths: Sequence[str]) -> tuple[Stack, tuple[str, ...]]:
    """The grid of these paths, or their list."""
    blocks: dict[str, dict[str, str]] = {}
    for path in paths:
        number = re.search(r"\d+", path)
        role = path if number is None else f"{path[: number.start()]}*{path[number.end() :]}"
        blocks.setdefault("" if number is None else number[0], {})[role] = path
    roles = list(next(iter(blocks.values())))
    if any(set(block) != set(roles) for block in blocks.values()):
        return Stack(*sizes, layers=len(paths)), tuple(paths)
    ordered = tuple(block[role] for block in blocks.values() for role in roles)
    return Stack(*sizes, layers=len(blocks), projections=len(roles)), ordered
