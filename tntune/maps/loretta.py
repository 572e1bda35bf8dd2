"""LoRETTA_rep: LoRA with each factor reshaped to one long tensor train."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import SpecError
from tntune.maps.base import Factors, Shape, Shapes, Tensors, WeightMap, positive, positives
from tntune.maps.latent_train import LatentTrain
from tntune.maps.tt_lora import TTLoRA

__all__ = ["LoRETTA"]

_STARTS = ("zero", "random", "published")


@dataclass(frozen=True)
class LoRETTA(WeightMap):
    """The factors of :class:`TTLoRA` without a latent: a train over D M entries and one over M Q.

    The reparametrising form of the paper; its other form is a bottleneck adapter with biases, not a map.

    Attributes:
        in_features: D.
        out_features: Q.
        width: M, the paper's bottleneck.
        down_modes: Modes of D M entries; W1 = down^T (D x M), row-major, so that modes need not end at D.
        up_modes: Modes of M Q entries.
        rank: R of every inner bond.
        start: ``"zero"``, ``"random"``: as in TTLoRA. ``"published"``: entries of both factors have the
            variance 1 / (fan-in + fan-out), as in the released code, so that ΔW is not zero.

    Raises:
        ModeError: Where modes have not as many entries as their factor.

    Example:
        >>> LoRETTA(768, 768, 8, (8, 8, 12, 8), (8, 8, 12, 8), 5).num_parameters
        1160

    Reference: Yang et al. (arXiv 2402.11417), LoRETTA_rep.
    """

    kind: ClassVar[str] = "loretta"

    in_features: int
    out_features: int
    width: int
    down_modes: Shape
    up_modes: Shape
    rank: int
    start: str = "zero"
    trains: TTLoRA = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.start not in _STARTS:
            raise SpecError(f"start must be one of {', '.join(_STARTS)}, not {self.start!r}")
        own = "random" if self.start == "published" else self.start
        rank = positive("rank", self.rank)
        down, up = (_train(positives(name, getattr(self, name)), rank) for name in ("down_modes", "up_modes"))
        trains = TTLoRA(self.in_features, self.out_features, self.width, down, up, own)
        made = {"trains": trains, "down_modes": down.modes, "up_modes": up.modes}
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def plans(self) -> tuple[Plan, ...]:
        return self.trains.plans

    @property
    def param_shapes(self) -> Shapes:
        return self.trains.param_shapes

    @property
    def fixed_shapes(self) -> Shapes:
        return {}

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.start != "published":
            return self.trains.init(generator, dtype=dtype)
        variances = (1 / (self.width + features) for features in (self.in_features, self.out_features))
        pairs = zip((self.trains.down_train, self.trains.up_train), variances, strict=True)
        cores = [core for train, v in pairs for core in train.init_cores("random", v, generator, dtype)]
        return dict(zip(self.param_shapes, cores, strict=True)), {}

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        return self.trains.factors(params, fixed)

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` by one TT-SVD for each factor at our rank; exact where it suffices."""
        self.check_factors(down, up)
        return self.trains.from_factors(down, up)


def _train(modes: Shape, rank: int) -> LatentTrain:
    return LatentTrain(modes, (1, *[rank] * (len(modes) - 1), 1))
