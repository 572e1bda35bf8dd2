"""Adapted layers of every kind with trained-looking params, and folders of them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.support.maps import tensors_of
from tntune.checkpoint import write_tensorguide
from tntune.maps import Geometry, LoRA, Site, TensorGuide, WeightMap, build_map
from tntune.report import AdaptedLayer

SIZES = Geometry(12, 20, 4)

MAPS: dict[str, WeightMap] = {
    "lora": LoRA(12, 20, 3, "random"),
    "tt_lora": build_map("tt_lora", SIZES, rank=2),
    "io w": build_map("tensorguide", SIZES, rank=3, layout="io w"),
    "padded": build_map("tensorguide", Geometry(11, 7, 4), rank=3),
    "side w f1 f2": build_map("tensorguide", SIZES, rank=2, layout="side w f1 f2"),
    "latent": build_map("tensorguide", SIZES, rank=2, latent="fixed"),
    "concat": TensorGuide.concat(12, 20, 2, modes=(8, 8), ranks=(2, 3, 1), start="random"),
    "mean": build_map("tensorguide", SIZES, rank=2, latent="mean"),
}
"""One map of every kind that has a Jacobian by structure; ``concat`` has a dead boundary rank."""


def layer_of(map: WeightMap, *, activation: str = "identity", scale: float = 0.5) -> AdaptedLayer:
    """The layer ``h.0.fc`` with standard normal params."""
    params, fixed = tensors_of(map, dtype=torch.float64)
    return AdaptedLayer("h.0.fc", Site(map, scale, activation), {**params, **fixed})


def guide_folder(path: Path, layers: Mapping[str, AdaptedLayer]) -> Path:
    """A TensorGuide folder of these layers, in float64."""
    write_tensorguide(path, {name: (each.site, each.tensors) for name, each in layers.items()}, config={})
    return path


def expanded(values: tuple[float, ...], counts: tuple[int, ...]) -> Tensor:
    """Every eigenvalue as often as it occurs."""
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
