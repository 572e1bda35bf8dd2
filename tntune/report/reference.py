"""Reference layers: what else could stand in a layer's place with as many parameters, freshly started."""

from bisect import bisect_right

import torch

from tntune.maps.base import WeightMap
from tntune.maps.build import build_map
from tntune.maps.layout import Geometry
from tntune.maps.lora import LoRA
from tntune.maps.site import Site
from tntune.report.layers import AdaptedLayer

__all__ = ["reference_layers"]

_LARGEST_RANK = 512
_NAMES = {"tt_lora": "TT-LoRA", "tensorguide": "TensorGuide"}


def reference_layers(layer: AdaptedLayer, *, seed: int) -> dict[str, AdaptedLayer]:
    """LoRA, TT-LoRA and TensorGuide of at most the layer's parameters, each at two starts, by label.

    Trains have the layer's width, activation and scale, and the largest rank within the budget (rank 1
    where even that is above it); a LoRA has the width that fits and no activation. A layer that is no LoRA
    also stands there itself, at its map's own start. Parameters are drawn from ``seed``, float64.

    Args:
        layer: Whose sizes and parameter count are matched.
        seed: Of every start.

    Example:
        >>> layer = AdaptedLayer("fc", Site(LoRA(16, 16, 2)), {})
        >>> {label: each.site.map.num_parameters for label, each in reference_layers(layer, seed=0).items()}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'LoRA r=2, zero start': 64, 'LoRA r=2, random start': 64,
         'TT-LoRA r<=2, zero start': 56, 'TT-LoRA r<=2, paper start': 56,
         'TensorGuide r<=3, zero start': 60, 'TensorGuide r<=3, paper start': 60}
    """
    own = layer.site.map
    out_features, in_features = layer.shape
    width = max(1, own.num_parameters // (in_features + out_features))
    found: dict[str, AdaptedLayer] = {}
    for start in ("zero", "random"):
        site = Site(LoRA(in_features, out_features, width, start), layer.site.scale)
        found[f"LoRA r={width}, {start} start"] = _fresh(layer.name, site, seed)
    for method, name in _NAMES.items():
        for start in ("zero", "paper"):
            map, rank = _fitted(method, Geometry(in_features, out_features, own.width), layer, start)
            site = Site(map, layer.site.scale, layer.site.activation)
            found[f"{name} r<={rank}, {start} start"] = _fresh(layer.name, site, seed)
    if not isinstance(own, LoRA):
        found["this map, its own start"] = _fresh(layer.name, layer.site, seed)
    return found


def _fitted(method: str, geometry: Geometry, layer: AdaptedLayer, start: str) -> tuple[WeightMap, int]:
    """The map of the largest rank with at most as many parameters as the layer, and that rank."""
    budget = layer.site.map.num_parameters

    def made(rank: int) -> WeightMap:
        return build_map(method, geometry, rank=rank, start=start)

    ranks = range(1, _LARGEST_RANK + 1)
    rank = max(1, bisect_right(ranks, budget, key=lambda rank: made(rank).num_parameters))
    map = made(rank)
    while rank > 1 and made(rank - 1).num_parameters == map.num_parameters:
        rank -= 1  # a cap above what the modes admit says nothing
    return map, rank


def _fresh(name: str, site: Site, seed: int) -> AdaptedLayer:
    """A layer at its map's start."""
    params, fixed = site.map.init(torch.Generator().manual_seed(seed), dtype=torch.float64)
    return AdaptedLayer(name, site, {**params, **fixed})
