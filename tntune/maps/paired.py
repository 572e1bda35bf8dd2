"""The paired start: for a nonlinear σ no unit is dead, since each has one of the opposite sign beside it."""

import torch
from torch import Tensor

from tntune.maps.base import Tensors, WeightMap
from tntune.maps.layout import Joined
from tntune.maps.lora import LoRA
from tntune.maps.pattern import digits
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["paired"]

Place = tuple[str, int, tuple[int, ...], int]


def paired(map: WeightMap, tensors: Tensors) -> dict[str, Tensor]:
    """The same start with ``down[width / 2:] == -down[:width / 2]``, so that σ sees x and -x of every unit.

    A ReLU of few units can have them all at zero for every input, and then nothing trains. Of a pair one is
    always active. Where up is zero it stays zero. A map that has no leg for it (an odd width, the flat
    layout, maps of other kinds) keeps its start.

    Args:
        map: The map.
        tensors: Params or fixed, as :meth:`WeightMap.init` gives them.

    Example:
        >>> lora = LoRA(5, 3, 4)
        >>> down = paired(lora, lora.init(torch.Generator().manual_seed(0))[0])["lora_down"]
        >>> bool((down[2:] == -down[:2]).all())
        True
    """
    if isinstance(map, LoRA):
        place: Place = ("lora_down", 0, (map.width,), 0)
    elif isinstance(map, TTLoRA) and map.down_train.modes[-1] == map.width:
        place = (map.down_train.names("tt_down_")[-1], -2, (map.width,), 0)
    elif isinstance(map, TensorGuide) and isinstance(map.layout, Joined):
        place = _width_leg(map, map.layout)
    else:
        return dict(tensors)
    name, axis, legs, leg = place
    names = {name, name.replace("tt_", "tt_start_", 1)}
    return {key: _mirrored(t, axis, legs, leg) if key in names else t for key, t in tensors.items()}


def _width_leg(map: TensorGuide, layout: Joined) -> Place:
    """Core, axis of its mode, sizes of the legs of that mode, and the place of the leading width digit."""
    digit = digits(layout.legs, "w")[0]
    k = next(k for k, group in enumerate(layout.groups) if digit in group)
    group = layout.groups[k]
    sizes = tuple(layout.legs[name] for name in group)
    return map.train.names("tt_")[k], -2, sizes, group.index(digit)


def _mirrored(tensor: Tensor, axis: int, legs: tuple[int, ...], leg: int) -> Tensor:
    """The second half of one leg of an axis as the negative of the first; untouched for an odd size."""
    if legs[leg] % 2:
        return tensor
    at = axis % tensor.ndim
    view = tensor.reshape(*tensor.shape[:at], *legs, *tensor.shape[at + 1 :])
    half = view.narrow(at + leg, 0, legs[leg] // 2)
    return torch.cat([half, -half], dim=at + leg).reshape(tensor.shape)
