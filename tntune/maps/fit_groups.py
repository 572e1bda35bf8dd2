"""fit_groups: trained factors of many layers, such as LoRAs, to the maps of any method."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tntune.errors import RankError, SpecError
from tntune.maps.base import Factors, WeightMap
from tntune.maps.delta import DeltaMap
from tntune.maps.group import Group
from tntune.maps.recipe import Recipe, group_name

__all__ = ["FittedGroup", "fit_groups"]


class FittedGroup(NamedTuple):
    """A map with the tensors that were found for it.

    Attributes:
        group: The map and its modules, with scale 1.
        tensors: Params and fixed, float64.
        error: ``‖ΔW − ΔW'‖ / ‖ΔW‖`` over the modules of the group; 0 where both are zero.

    Example:
        >>> FittedGroup._fields
        ('group', 'tensors', 'error')
    """

    group: Group
    tensors: dict[str, Tensor]
    error: float


def fit_groups(recipe: Recipe, layers: Mapping[str, Factors]) -> dict[str, FittedGroup]:
    """Maps whose ΔW is that of the factors where the ranks suffice; otherwise each says how far off it is.

    Each map's own ``from_factors`` does it, in float64: HOSVD and TT-SVD within a known factor of the best,
    alternating least squares for a CP. What comes out is for :func:`tntune.adapters.install` and
    :func:`tntune.checkpoint.write_groups`.

    Args:
        recipe: The method and its ranks.
        layers: Down ``(r, in)`` and up ``(out, r)`` of every module by path, the scale in up; any ranks.

    Returns:
        A group for each map, by name; of one module where the method gives every layer a map of its own.

    Raises:
        SpecError: For no layers, or as :meth:`Recipe.joint_maps`.
        RankError: Where the factors of a layer are wider than a map that has a width of its own.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> u, v = (torch.randn(n, 2, generator=generator) for n in (6, 5))
        >>> layers = {f"h.{i}.q": Factors((i + 1) * u.mT, v) for i in range(4)}
        >>> fitted = fit_groups(Recipe(method="lotr", rank=2), layers)["6x5"]
        >>> fitted.group.map.num_parameters, fitted.error < 1e-6
        (38, True)
    """
    if not layers:
        raise SpecError("there are no layers to fit a map to")
    sizes = {name: (down.shape[1], up.shape[0]) for name, (down, up) in layers.items()}
    found: dict[str, FittedGroup] = {}
    for modules, map in _maps(recipe, sizes):
        down, up = _stacked(map, [layers[name] for name in modules])
        params, fixed = map.from_factors(down, up)
        made = map.factors(params, fixed)
        group = Group(map, modules, (1.0,) * map.sites)
        name = group_name((map.in_features, map.out_features), found)
        found[name] = FittedGroup(group, {**params, **fixed}, _error(Factors(down, up), made))
    return found


def _maps(recipe: Recipe, sizes: Mapping[str, tuple[int, int]]) -> list[tuple[tuple[str, ...], WeightMap]]:
    """The maps of a recipe, each with its modules."""
    if recipe.is_joint:
        return [(grid.modules, map) for grid, map in recipe.joint_maps(sizes).values()]
    return [((name,), map) for name, map in recipe.layer_maps(sizes).items()]


def _stacked(map: WeightMap, layers: list[Factors]) -> Factors:
    """Factors of all sites in float64, widened by zeros to one width: the map's, where it has its own."""
    widest = max(down.shape[0] for down, _ in layers)
    if not isinstance(map, DeltaMap):
        if widest > map.width:
            raise RankError(f"factors of width {widest} do not fit a map of width {map.width}")
        widest = map.width
    padded = [
        (
            functional.pad(down.double(), (0, 0, 0, widest - len(down))),
            functional.pad(up.double(), (0, widest - len(down))),
        )
        for down, up in layers
    ]
    downs, ups = zip(*padded, strict=True)
    return Factors(torch.stack(downs), torch.stack(ups))


def _error(wanted: Factors, made: Factors) -> float:
    """Relative Frobenius distance of the two products, by QR of thin factors: ΔW is not formed."""
    whole = _norm(wanted)
    both = Factors(torch.cat([wanted.down, made.down], 1), torch.cat([wanted.up, -made.up], 2))
    distance = _norm(both)
    if whole == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / whole


def _norm(factors: Factors) -> float:
    """``‖up @ down‖`` over all sites."""
    rows, columns = (torch.linalg.qr(part)[1] for part in (factors.down.mT, factors.up))
    return float((columns @ rows.mT).norm())
