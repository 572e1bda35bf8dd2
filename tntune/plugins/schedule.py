"""Schedule: sizes that differ from block to block, known before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from tntune.adapters.linear import features
from tntune.adapters.spec import AdapterSpec, target_names
from tntune.errors import SpecError
from tntune.maps.base import positive
from tntune.maps.grid import place
from tntune.maps.site import Site

__all__ = ["by_block", "linear_sizes", "scheduled_sites"]

_SIZED = ("width", "rank")


def linear_sizes(blocks: int, *, first: int, last: int) -> tuple[int, ...]:
    """Sizes that change linearly from the first block to the last, rounded: their mean is that of both ends.

    With 4 and 12 it is the allocation that PRILoRA describes (rising ranks); its pruning by the norms of
    inputs is no part of this, so this is not a reproduction of PRILoRA.

    Args:
        blocks: How many.
        first: Size in the first.
        last: Size in the last.

    Raises:
        SpecError: Where a number is no positive integer.

    Example:
        >>> linear_sizes(5, first=4, last=12)
        (4, 6, 8, 10, 12)

    Reference: after Benedek and Wolf (PRILoRA, arXiv 2401.11316).
    """
    span = max(positive("blocks", blocks) - 1, 1)
    rise = positive("last", last) - positive("first", first)
    return tuple(round(first + rise * k / span) for k in range(blocks))


def by_block(targets: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """One size for each target: that of its block, the first number in its path, in rising order.

    The result is what :func:`scheduled_sites` takes, and also a ``rank_pattern`` for
    :class:`tntune.peft.TensorGuideConfig` or PEFT's own configurations.

    Args:
        targets: Module paths.
        sizes: One for each block that occurs among them.

    Raises:
        SpecError: Where a path has no number, or blocks and sizes differ in number.

    Example:
        >>> by_block(["h.0.q", "h.0.v", "h.1.q"], [4, 8])
        {'h.0.q': 4, 'h.0.v': 4, 'h.1.q': 8}
    """
    blocks = {name: _block(name) for name in targets}
    known = sorted(set(blocks.values()))
    if len(known) != len(sizes):
        raise SpecError(f"{len(sizes)} sizes given for the {len(known)} blocks {known}")
    return {name: sizes[known.index(block)] for name, block in blocks.items()}


def scheduled_sites(
    model: nn.Module, spec: AdapterSpec, sizes: Mapping[str, int], *, what: str = "width"
) -> dict[str, Site]:
    """``spec.sites_for(model)`` with the width, or bound of TT-ranks, that each target has in ``sizes``.

    Each scale is ``alpha`` over the target's own width, as in PEFT's ``rank_pattern``.

    Args:
        model: Whose layers they are.
        spec: All else.
        sizes: One for each target of the specification, by path.
        what: ``"width"`` or ``"rank"``.

    Returns:
        What :func:`tntune.adapters.adapt` takes.

    Raises:
        SpecError: Where ``sizes`` lacks a target or names another module, for another ``what``, or for a
            method whose maps serve several layers.
        TargetError: As :meth:`AdapterSpec.sites_for`.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> sites = scheduled_sites(model, AdapterSpec(method="lora"), {"0": 2, "2": 3})
        >>> [site.map.width for site in sites.values()]
        [2, 3]
    """
    names = target_names(model, spec.targets, spec.exclude)
    if set(names) != set(sizes) or what not in _SIZED:
        odd = sorted(set(names) ^ set(sizes))
        raise SpecError(f"sizes and targets differ in {odd}, or what={what!r} is none of {_SIZED}")
    modules = dict(model.named_modules())
    found = {}
    for index, name in enumerate(names):
        size = sizes[name]
        own = replace(spec, width=size) if what == "width" else replace(spec, rank=size)
        map = own.map_for(*features(modules[name]), index=index)
        scale = 1.0 if spec.alpha is None else spec.alpha / map.width
        found[name] = Site(map, scale, spec.activation)
    return found


def _block(name: str) -> int:
    """The first part of a path that is a number."""
    block, _ = place(name)
    if not block:
        raise SpecError(f"{name}: its path has no number, so it belongs to no block")
    return int(block)
