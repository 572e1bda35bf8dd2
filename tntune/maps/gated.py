"""Gated: a map with a trained gate on each direction of its width."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import SpecError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap

__all__ = ["GATE", "Gated"]

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
        >>> from tntune.maps.lora import LoRA
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
        if not self.inner.is_even:
            raise SpecError("gates need sites of one size, and those of this map differ")
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

    @property
    def is_generated(self) -> bool:
        return self.inner.is_generated

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
