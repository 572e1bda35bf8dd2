"""LoRA: two independent matrices, the baseline of everything here."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tntune.errors import SpecError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap, positive

__all__ = ["LoRA"]


@dataclass(frozen=True)
class LoRA(WeightMap):
    """``down`` and ``up`` themselves: ``factors(params, fixed) == (lora_down, lora_up)``.

    Attributes:
        in_features: D.
        out_features: Q.
        width: The rank r.
        start: ``"zero"``: down Kaiming-uniform (variance 1 / (3 D)), up zero. ``"random"``: up has that
            kind of start too, with variance 1 / (3 M).

    Example:
        >>> LoRA(512, 2, 4).num_parameters
        2056

    Reference: Hu et al. (arXiv 2106.09685).
    """

    kind: ClassVar[str] = "lora"

    in_features: int
    out_features: int
    width: int
    start: str = "zero"

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width"):
            positive(name, getattr(self, name))
        if self.start not in ("zero", "random"):
            raise SpecError(f"start must be one of zero, random, not {self.start!r}")

    @property
    def param_shapes(self) -> Shapes:
        return {"lora_down": (self.width, self.in_features), "lora_up": (self.out_features, self.width)}

    @property
    def fixed_shapes(self) -> Shapes:
        return {}

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        down = _kaiming((self.width, self.in_features), generator)
        up = torch.zeros(self.out_features, self.width, device="cpu")
        if self.start == "random":
            up = _kaiming((self.out_features, self.width), generator)
        return {"lora_down": down.to(dtype), "lora_up": up.to(dtype)}, {}

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        return Factors(params["lora_down"][None], params["lora_up"][None])

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` with exactly these factors."""
        self.check_factors(down, up)
        return {"lora_down": down[0].clone(), "lora_up": up[0].clone()}, {}


def _kaiming(shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """Uniform in ±1/sqrt(fan-in): Kaiming-uniform with a = sqrt(5), as in LoRA's published code."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
