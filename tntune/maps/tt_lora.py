"""TT-LoRA as the TensorGuide paper runs it: one train for each factor, independent of the other."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import ModeError, SpecError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap, positive
from tntune.maps.latent_train import LatentTrain, check_start, gather
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule

__all__ = ["TTLoRA"]


@dataclass(frozen=True)
class TTLoRA(WeightMap):
    """``W1 = TT_1(z_1)`` and ``W2 = TT_2(z_2)``: two trains that share nothing.

    Attributes:
        in_features: D.
        out_features: Q.
        width: M.
        down_train: Train of D M entries; W1 = down^T (D x M), row-major.
        up_train: Train of M Q entries; W2 = up^T (M x Q), row-major.
        start: ``"zero"``: the last core of the up train is zero. ``"random"``: Gaussian cores, entries
            of down with variance 1 / (3 D). ``"paper"``, ``"published"``: as in TensorGuide.

    Raises:
        ModeError: Where a train has not as many entries as its factor.

    Example:
        >>> from tntune.maps.latent import Latent
        >>> down = LatentTrain((8, 8, 80), (1, 2, 2, 1), Latent("fixed", (8, 8, 8)))
        >>> up = LatentTrain((10, 2), (1, 2, 1), Latent("fixed", (4, 5), seed=1))
        >>> TTLoRA(512, 2, 10, down, up).num_parameters
        1764

    Reference: Qi et al. (arXiv 2506.16456), section 2.3, and their published baseline.
    """

    kind: ClassVar[str] = "tt_lora"

    in_features: int
    out_features: int
    width: int
    down_train: LatentTrain
    up_train: LatentTrain
    start: str = "zero"
    _plans: tuple[Plan, Plan] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width"):
            positive(name, getattr(self, name))
        check_start(self.start)
        _check("down_train", self.down_train, self.width * self.in_features)
        _check("up_train", self.up_train, self.width * self.out_features)
        object.__setattr__(self, "_plans", (_plan(self.down_train), _plan(self.up_train)))

    @property
    def plans(self) -> tuple[Plan, ...]:
        return self._plans

    @property
    def param_shapes(self) -> Shapes:
        return {**self.down_train.param_shapes("tt_down_"), **self.up_train.param_shapes("tt_up_")}

    @property
    def fixed_shapes(self) -> Shapes:
        return {**self.down_train.fixed_shapes("tt_down_"), **self.up_train.fixed_shapes("tt_up_")}

    @property
    def latent_names(self) -> tuple[str, ...]:
        return tuple(self.fixed_shapes)

    @property
    def resampled(self) -> tuple[str, ...]:
        pairs = ((self.down_train, "tt_down_"), (self.up_train, "tt_up_"))
        return tuple(
            name for train, p in pairs if train.latent.mode == "resample" for name in train.fixed_shapes(p)
        )

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        variance = 1 / (3 * self.in_features)
        down = self.down_train.init_cores(self.start, variance, generator, dtype)
        up = self.up_train.init_cores(self.start, variance, generator, dtype)
        if self.start == "zero":
            up[-1].zero_()
        return self._named(down, up)

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        down_plan, up_plan = self._plans
        down = _generate(self.down_train, down_plan, "tt_down_", params, fixed)
        up = _generate(self.up_train, up_plan, "tt_up_", params, fixed)
        return Factors(
            down.reshape(1, self.in_features, self.width).mT, up.reshape(1, self.width, self.out_features).mT
        )

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` by one TT-SVD for each factor at our ranks; exact where the ranks suffice."""
        self.check_factors(down, up)
        pairs = ((self.down_train, down[0].mT), (self.up_train, up[0].mT))
        fitted = [
            train.lift(tt_svd(matrix.reshape(train.modes), RankRule(ranks=train.ranks[1:-1])).value)
            for train, matrix in pairs
        ]
        return self._named(*fitted)

    def _named(self, down: list[Tensor], up: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = dict(zip(self.param_shapes, [*down, *up], strict=True))
        return params, {**self.down_train.fixed("tt_down_"), **self.up_train.fixed("tt_up_")}


def _check(name: str, train: object, entries: int) -> None:
    if not isinstance(train, LatentTrain):
        raise SpecError(f"{name} must be a LatentTrain, not {type(train).__name__}")
    found = train.num_entries
    if found != entries:
        raise ModeError(f"{name} has modes {train.modes} with {found} entries, but its factor has {entries}")
    if train.latent.mode == "mean":
        raise SpecError(f"{name}: the mean over two independent latents is zero; use 'fixed' or 'resample'")


def _plan(train: LatentTrain) -> Plan:
    legs = [(f"m{k}", size) for k, size in enumerate(train.modes)]
    return train.contraction([[leg] for leg in legs], [name for name, _ in legs])


def _generate(train: LatentTrain, run: Plan, prefix: str, params: Tensors, fixed: Tensors) -> Tensor:
    cores, own = gather([params[name] for name in train.names(prefix)])
    return run(*train.fed(cores, fixed, prefix)).to(own)
