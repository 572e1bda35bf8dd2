"""Gates on sites, and maps without the directions whose gate is zero."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tntune.errors import UnsupportedError
from tntune.maps.base import Tensors, WeightMap
from tntune.maps.gated import GATE, Gated
from tntune.maps.layout import Joined
from tntune.maps.lora import LoRA
from tntune.maps.pattern import digits
from tntune.maps.site import Site
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["gated_sites", "narrowed"]

Narrowing = Callable[[dict[str, Tensor], Tensor, Tensor], tuple[WeightMap, dict[str, Tensor]]]


def gated_sites(sites: Mapping[str, Site], *, start: str = "normal") -> dict[str, Site]:
    """The same sites, each map with a gate on every direction (:class:`tntune.maps.Gated`).

    Example:
        >>> sites = gated_sites({"fc": Site(LoRA(4, 3, 2))})
        >>> sites["fc"].map.param_shapes["gate"]
        (1, 2)
    """
    return {name: replace(site, map=Gated(site.map, start)) for name, site in sites.items()}


def narrowed(map: Gated, tensors: Tensors) -> tuple[WeightMap, dict[str, Tensor]]:
    """Map and tensors without gates, and without the directions whose gate is zero: the same function.

    Gates are multiplied into up. Where all are zero one direction is kept, and is zero.

    Args:
        map: Gates on a LoRA, a TTLoRA whose width is a mode of both trains, or a TensorGuide with side and
            width, as one leg, in the same core (the default layout), without a frozen start.
        tensors: Its params and fixed.

    Raises:
        UnsupportedError: For gates on any other map, whose tensors have no axis of the width alone.

    Example:
        >>> map = Gated(LoRA(4, 3, 2))
        >>> params, _ = map.init()
        >>> smaller, _ = narrowed(map, {**params, "gate": torch.tensor([[0.0, 2.0]])})
        >>> smaller.width
        1
    """
    narrow = _narrowing(map.inner)
    if narrow is None:
        raise UnsupportedError(
            f"gates on this map of kind {map.inner.kind!r} cannot be taken out of its tensors; keep them, or "
            'use a LoRA, or a TensorGuide of one layer with the layout "f1 f2 (side w)"'
        )
    gate = tensors[GATE][0]
    kept = gate.nonzero().flatten()
    if not len(kept):
        kept = torch.zeros(1, dtype=torch.long, device=gate.device)
    own = {name: tensor for name, tensor in tensors.items() if name != GATE}
    return narrow(own, gate, kept)


def _narrowing(map: WeightMap) -> Narrowing | None:
    """How to narrow a map: a function of its tensors, the gates, and the directions that stay."""
    if isinstance(map, LoRA):
        return partial(_narrowed_lora, map)
    if isinstance(map, TTLoRA) and map.down_train.modes[-1] == map.up_train.modes[0] == map.width:
        return partial(_narrowed_trains, map)
    if isinstance(map, TensorGuide) and _has_width_leg(map):
        return partial(_narrowed_guide, map)
    return None


def _narrowed_lora(
    map: LoRA, tensors: Tensors, gate: Tensor, kept: Tensor
) -> tuple[WeightMap, dict[str, Tensor]]:
    """Rows of down and gated columns of up."""
    down, up = tensors["lora_down"][kept], (tensors["lora_up"] * gate)[:, kept]
    return replace(map, width=len(kept)), {"lora_down": down, "lora_up": up}


def _narrowed_trains(
    map: TTLoRA, tensors: Tensors, gate: Tensor, kept: Tensor
) -> tuple[WeightMap, dict[str, Tensor]]:
    """The last mode of the down train and the first of the up train at these entries."""
    width, down, up = len(kept), map.down_train, map.up_train
    ends = down.names("tt_down_")[-1], up.names("tt_up_")[0]
    made = {
        **tensors,
        ends[0]: tensors[ends[0]].index_select(-2, kept),
        ends[1]: (tensors[ends[1]] * gate[:, None]).index_select(-2, kept),
    }
    down = replace(down, modes=(*down.modes[:-1], width))
    return replace(
        map, width=width, down_train=down, up_train=replace(up, modes=(width, *up.modes[1:]))
    ), made


def _has_width_leg(map: TensorGuide) -> bool:
    layout = map.layout
    if not isinstance(layout, Joined) or map.sites != 1 or map.subtracts_start:
        return False
    widths = digits(layout.legs, "w")
    return len(widths) == 1 and any({"side", widths[0]} <= set(group) for group in layout.groups)


def _narrowed_guide(
    map: TensorGuide, tensors: Tensors, gate: Tensor, kept: Tensor
) -> tuple[WeightMap, dict[str, Tensor]]:
    """The one core with side and width at these entries of its width leg."""
    layout = map.layout
    assert isinstance(layout, Joined)  # _has_width_leg saw it
    (leg,) = digits(layout.legs, "w")
    k = next(k for k, group in enumerate(layout.groups) if leg in group)
    group, name = layout.groups[k], map.train.names("tt_")[k]
    core = tensors[name]
    front = core.ndim - 2  # axes before the mode's
    places = (front + group.index("side"), front + group.index(leg))
    sizes = [layout.legs[each] for each in group]
    view = core.reshape(*core.shape[:-2], *sizes, core.shape[-1]).movedim(places, (0, 1))
    gates = torch.stack([torch.ones_like(gate), gate])
    view = (view * gates.reshape(2, -1, *(1,) * (view.ndim - 2)))[:, kept].movedim((0, 1), places)
    made = {**tensors, name: view.reshape(*core.shape[:-2], -1, core.shape[-1]).contiguous()}
    legs = tuple(len(kept) if each == leg else size for each, size in layout.legs.items())
    return replace(map, width=len(kept), layout=Joined(layout.pattern, legs)), made
