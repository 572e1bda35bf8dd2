"""Kinds of maps: how each is made for a stack of layers at a size; a new one is one line of the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tntune.experiments.form import Form
from tntune.maps.base import WeightMap
from tntune.maps.build import build_map, capped_ranks, make_latent
from tntune.maps.codec import decode_map
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.fact import FacT
from tntune.maps.layout import Geometry, Joined
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.lorta import LoRTA
from tntune.maps.lotr import LoTR
from tntune.maps.metatt import MetaTT
from tntune.maps.modes import exact_modes
from tntune.maps.stack import Stack
from tntune.maps.tenslora import TensLoRA
from tntune.maps.tensorguide import TensorGuide

__all__ = ["KINDS", "Builder", "Kind"]

Builder = Callable[[Form, Stack, int, int], WeightMap]
"""``(form, stack, size, seed) -> map`` with as many sites as the stack."""

_SHARED_LAYOUT = "layer proj f1 f2 (side w)"
_DIGITS = 3  # of each feature index in long trains


@dataclass(frozen=True)
class Kind:
    """How one kind of map is made.

    Attributes:
        size: What a budget chooses: ``"width"`` or ``"rank"``; ``"none"`` where the map is given as it is.
        shared: Whether one map serves all targets of a shape.
        options: Fields of :class:`tntune.experiments.form.Form` that it uses.
        build: Makes the map.

    Example:
        >>> KINDS["lora"].build(Form(), Stack(512, 2), 4, 0).num_parameters
        2056
    """

    size: str
    shared: bool
    options: tuple[str, ...]
    build: Builder


def _lora(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return LoRA(stack.in_features, stack.out_features, size, form.start)


def _tt_lora(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    geometry = Geometry(stack.in_features, stack.out_features, form.width)
    return build_map("tt_lora", geometry, rank=size, latent=form.latent, seed=seed, start=form.start)


def _guide(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    geometry = Geometry(stack.in_features, stack.out_features, form.width)
    return build_map(
        "tensorguide",
        geometry,
        rank=size,
        layout=form.layout,
        latent=form.latent,
        seed=seed,
        start=form.start,
    )


def _shared_guide(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    geometry = Geometry(stack.in_features, stack.out_features, form.width)
    pattern = form.layout or _without_units(_SHARED_LAYOUT, stack.index)
    layout = Joined.auto(pattern, geometry, layers=stack.layers, projections=stack.projections)
    latent = make_latent(form.latent, len(layout.modes), seed)
    return TensorGuide(*geometry, layout, capped_ranks(layout.modes, size), latent, form.start)


def _delta_train(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    modes = exact_modes(stack.in_features, _DIGITS), exact_modes(stack.out_features, _DIGITS)[::-1]
    return DeltaTrain(*modes, capped_ranks((*modes[0], *modes[1]), size), start=form.start)


def _loretta(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    sizes = stack.in_features, stack.out_features, form.width
    down, up = (exact_modes(form.width * features, _DIGITS + 1) for features in sizes[:2])
    return LoRETTA(*sizes, down, up, size, form.start)


def _lotr(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return LoTR(stack, size, start=form.start)


def _lorta(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return LoRTA(stack, size, form.heads, start=form.start)


def _metatt(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return MetaTT(stack, size, form.heads, start=form.start)


def _fact(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return FacT(stack, size, form.variant or "tt", start=form.start)


def _tenslora(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return TensLoRA.isorank(stack, form.variant or "QKV_Depth", size, heads=form.heads)


def _exact(form: Form, stack: Stack, size: int, seed: int) -> WeightMap:
    return decode_map(form.map)


KINDS: Mapping[str, Kind] = {
    "lora": Kind("width", False, ("start",), _lora),
    "tt_lora": Kind("rank", False, ("width", "latent", "start"), _tt_lora),
    "tensorguide": Kind("rank", False, ("width", "layout", "latent", "start"), _guide),
    "tensorguide-shared": Kind("rank", True, ("width", "layout", "latent", "start"), _shared_guide),
    "delta_train": Kind("rank", False, ("start",), _delta_train),
    "loretta": Kind("rank", False, ("width", "start"), _loretta),
    "lotr": Kind("rank", True, ("start",), _lotr),
    "lorta": Kind("rank", True, ("heads", "start"), _lorta),
    "metatt": Kind("rank", True, ("heads", "start"), _metatt),
    "fact": Kind("rank", True, ("variant", "start"), _fact),
    "tenslora": Kind("rank", True, ("variant", "heads"), _tenslora),
    "exact": Kind("none", False, ("map",), _exact),
}
"""Every kind by its name in settings."""


def _without_units(pattern: str, sizes: Mapping[str, int]) -> str:
    """The pattern without index legs of size 1: their cores would only scale the others."""
    return " ".join(leg for leg in pattern.split(" ") if sizes.get(leg) != 1)
