"""single_site: one layer of a shared map, as a map of its own with the params that it reads."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tntune.errors import UnsupportedError
from tntune.maps.base import Tensors, WeightMap
from tntune.maps.gated import GATE, Gated
from tntune.maps.joint import JointMap
from tntune.maps.layout import Joined
from tntune.maps.stack import Stack
from tntune.maps.streams import Streams
from tntune.maps.tensorguide import TensorGuide

__all__ = ["single_site"]


def single_site(map: WeightMap, tensors: Tensors, index: int) -> tuple[WeightMap, dict[str, Tensor]]:
    """``(own, t)``, of one site, with ``own.factors(t, t) == map.site_factors(tensors, tensors, index)``.

    What all layers share stays as it is; of a tensor that knows layers or projections, this one's slice is
    taken. So its Jacobian is that of the layer, by the params that the layer reads.

    Args:
        map: A TensorGuide of named modes without a frozen start, a :class:`tntune.maps.JointMap` of a stack,
            streams, or gates on one of these. A map of one site is returned as it is.
        tensors: Its params and fixed.
        index: Which site.

    Raises:
        UnsupportedError: For another map of several sites.

    Example:
        >>> import torch
        >>> from tntune.maps.lotr import LoTR
        >>> shared = LoTR(Stack(5, 3, layers=4), 2)
        >>> own, tensors = single_site(shared, shared.init()[0], 3)
        >>> own.num_parameters, tuple(tensors["tn_core"].shape)
        (20, (1, 1, 2, 2))
    """
    if map.sites == 1:
        return map, dict(tensors)
    if isinstance(map, Gated):
        inner, own = single_site(map.inner, {k: t for k, t in tensors.items() if k != GATE}, index)
        return replace(map, inner=inner), {**own, GATE: tensors[GATE][index : index + 1]}
    if isinstance(map, Streams):
        return _of_streams(map, tensors, index)
    if isinstance(map, TensorGuide) and isinstance(map.layout, Joined) and not map.subtracts_start:
        return _of_guide(map, map.layout, tensors, index)
    stack = getattr(map, "stack", None)
    if isinstance(map, JointMap) and isinstance(stack, Stack):
        return _of_stack(map, stack, tensors, index)
    raise UnsupportedError(
        f"a map of kind {map.kind!r} for {map.sites} layers has no slices of which each is one layer's"
    )


def _of_stack(
    map: JointMap, stack: Stack, tensors: Tensors, index: int
) -> tuple[WeightMap, dict[str, Tensor]]:
    """A stack of one layer and one projection."""
    layer, projection = divmod(index, stack.projections)
    place = {"layer": layer, "proj": projection}
    changes: dict[str, Any] = {"stack": replace(stack, layers=1, projections=1)}
    if map.network.turned:
        changes["input_heads"] = (0,) if projection in map.network.turned else ()
    own = replace(map, **changes)
    return own, {
        name: _at(tensors[name], dict(enumerate(node.legs)), place)
        for name, node in map.network.nodes.items()
    }


def _of_streams(map: Streams, tensors: Tensors, index: int) -> tuple[WeightMap, dict[str, Tensor]]:
    """The streams of the site's sides, with its coefficients alone."""
    streams = map.inputs[index], map.outputs[index]
    used = sorted(set(streams))
    own = replace(
        map,
        sizes=tuple(map.sizes[stream] for stream in used),
        ranks=tuple(map.ranks[stream] for stream in used),
        inputs=(used.index(streams[0]),),
        outputs=(used.index(streams[1]),),
        widths=(map.widths[index],),
    )
    sides = map.coefficients_of(tensors, index)
    made = {}
    for place, stream in enumerate(used):
        made[f"basis_{place}"] = tensors[f"basis_{stream}"]
        rows = [side for side, other in zip(sides, streams, strict=True) if other == stream]
        made[f"coefficients_{place}"] = torch.cat(rows, dim=1)
    return own, made


def _of_guide(
    map: TensorGuide, layout: Joined, tensors: Tensors, index: int
) -> tuple[WeightMap, dict[str, Tensor]]:
    """The same train with layer and projection legs of size 1."""
    layer, projection = divmod(index, layout.legs.get("proj", 1))
    place = {"layer": layer, "proj": projection}
    legs = {name: 1 if name in place else size for name, size in layout.legs.items()}
    own = replace(map, layout=Joined(layout.pattern, tuple(legs.values())))
    made = dict(tensors)
    for name, group in zip(map.train.names("tt_"), layout.groups, strict=True):
        core = tensors[name]
        front = core.ndim - 2  # axes before the mode's
        split = core.reshape(*core.shape[:-2], *(layout.legs[leg] for leg in group), core.shape[-1])
        cut = _at(split, {front + axis: leg for axis, leg in enumerate(group)}, place)
        made[name] = cut.reshape(*core.shape[:-2], -1, core.shape[-1])
    return own, made


def _at(tensor: Tensor, legs: Mapping[int, str], place: Mapping[str, int]) -> Tensor:
    """The slices of length 1 at the values of a place, of the axes that have its legs."""
    for axis, leg in legs.items():
        if leg in place:
            tensor = tensor.narrow(axis, place[leg], 1)
    return tensor
