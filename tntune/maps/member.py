"""Member: one site of a map that serves several, as a map of its own."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tntune.errors import ModeError, UnsupportedError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap

__all__ = ["Member"]


@dataclass(frozen=True)
class Member(WeightMap):
    """``Member(map, i).factors(...) == map.site_factors(..., i)``: a layer's view of a shared map.

    Its tensors are those of the whole map, which other members read too. It has no form in JSON: a folder
    stores the :class:`tntune.maps.Group` that it comes from.

    Attributes:
        whole: The shared map.
        index: Which of its sites.

    Raises:
        ModeError: Where the map has no such site.

    Example:
        >>> from tntune.maps.layout import Geometry, Joined
        >>> from tntune.maps.tensorguide import TensorGuide
        >>> layout = Joined.auto("io (layer side w)", Geometry(5, 3, 2), layers=4)
        >>> member = Member(TensorGuide(5, 3, 2, layout, (1, 2, 1)), 3)
        >>> member.whole.sites, member.sites, member.width
        (4, 1, 2)
    """

    kind: ClassVar[str] = "member"

    whole: WeightMap
    index: int
    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    width: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.whole.sites:
            raise ModeError(f"site {self.index} is outside the {self.whole.sites} sites of the map")
        sizes = self.whole.site_sizes(self.index)
        for name, size in zip(("in_features", "out_features", "width"), sizes, strict=True):
            object.__setattr__(self, name, size)

    @property
    def factor_width(self) -> int:
        return self.width if self.whole.factor_width == self.whole.width else self.whole.factor_width

    @property
    def param_shapes(self) -> Shapes:
        return self.whole.param_shapes

    @property
    def fixed_shapes(self) -> Shapes:
        return self.whole.fixed_shapes

    @property
    def latent_names(self) -> tuple[str, ...]:
        return self.whole.latent_names

    @property
    def resampled(self) -> tuple[str, ...]:
        return self.whole.resampled

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.whole.init(generator, dtype=dtype)

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        return self.whole.site_factors(params, fixed, self.index)

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        raise UnsupportedError(
            f"the factors of one layer do not fix a map that serves {self.whole.sites}; fit the whole map"
        )
