"""Gated: a map with a trained gate on each direction of its width."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import SpecError, UnsupportedError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap
from tntune.maps.layout import Joined
from tntune.maps.lora import LoRA
from tntune.maps.pattern import digits
from tntune.maps.site import Site
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["GATE", "Gated", "gated_sites", "narrowed"]

Narrowing = Callable[[dict[str, Tensor], Tensor, Tensor], tuple[WeightMap, dict[str, Tensor]]]

GATE = "gate"
"""Flat name of the gates among the params."""


@dataclass(frozen=True)
class Gated(WeightMap):
    """``up diag(gate) @ down``: the factors of any map, with one gate for each direction of every site.

    Under a nonlinear σ the gate acts behind it: ``up (gate * σ(down x))``.

    Attributes:
        inner: The map whose factors are gated.
        start: ``"normal"``: standard normal gates, and ΔW = 0 by the inner map's zero start, as SoRA has it.
            ``"zero"``: gates of zero on an inner map of another start, as dynamic DoRA (Mao et al.) has it.

    Raises:
        SpecError: For an unknown start, gates of zero on a map that starts at zero too (no gradient would
            ever get through), or a map that averages over a latent, whose factors are wider than its width.

    Example:
        >>> map = Gated(LoRA(4, 3, 2))
        >>> map.num_parameters - map.inner.num_parameters
        2

    Reference: Ding et al. (SoRA, EMNLP 2023); Mao et al. (arXiv 2405.17357).
    """

    kind: ClassVar[str] = "gated"

    inner: WeightMap
    start: str = "normal"
    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    width: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, WeightMap) or isinstance(self.inner, Gated):
            raise SpecError(f"gates need a map without gates, not {self.inner!r:.80}")
        if self.start not in ("normal", "zero"):
            raise SpecError(f"start must be one of normal, zero, not {self.start!r}")
        if self.start == "zero" and getattr(self.inner, "start", None) == "zero":
            raise SpecError('gates of zero on a map that starts at zero never train; give it start="random"')
        if self.inner.factor_width != self.inner.width:
            raise SpecError("a mean over a latent widens the factors, and a gate would act on a part of them")
        for name in ("in_features", "out_features", "width"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @property
    def sites(self) -> int:
        return self.inner.sites

    @property
    def param_shapes(self) -> Shapes:
        return {**self.inner.param_shapes, GATE: (self.sites, self.width)}

    @property
    def fixed_shapes(self) -> Shapes:
        return self.inner.fixed_shapes

    @property
    def latent_names(self) -> tuple[str, ...]:
        return self.inner.latent_names

    @property
    def resampled(self) -> tuple[str, ...]:
        return self.inner.resampled

    @property
    def plans(self) -> tuple[Plan, ...]:
        return self.inner.plans

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params, fixed = self.inner.init(generator, dtype=dtype)
        gate = torch.zeros(self.sites, self.width, device="cpu")
        if self.start == "normal":
            gate.normal_(generator=generator)
        return {**params, GATE: gate.to(dtype)}, fixed

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        down, up = self.inner.factors(params, fixed)
        return Factors(down, up * params[GATE][:, None])

    def site_factors(self, params: Tensors, fixed: Tensors, site: int) -> Factors:
        down, up = self.inner.site_factors(params, fixed, site)
        return Factors(down, up * params[GATE][site])

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the inner map finds, with gates of 1."""
        params, fixed = self.inner.from_factors(down, up)
        return {**params, GATE: down.new_ones(self.sites, self.width)}, fixed


def gated_sites(sites: Mapping[str, Site], *, start: str = "normal") -> dict[str, Site]:
    """The same sites with a gate on every direction (:class:`Gated`), for :func:`tntune.adapters.adapt`.

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
