"""Part: some sites of a map that serves many, as a map of their own with tensors of its own."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tntune.errors import ModeError, UnsupportedError
from tntune.maps.base import WeightMap
from tntune.maps.layout import Joined
from tntune.maps.tensorguide import TensorGuide

__all__ = ["Part"]


@dataclass(frozen=True)
class Part:
    """``part.map.factors(part.tensors(t)) == whole.factors(t)`` at these sites, in this order.

    The tensors that all sites share stay as they are; of the one core that knows the sites, theirs are taken.
    All sites in their own order make the whole map again.

    Attributes:
        whole: A map of one site, or a TensorGuide whose layout has a ``layer`` leg and no ``proj`` leg.
        sites: Which sites, each at most once.
        map: The map that serves only them.

    Raises:
        ModeError: For no site, one twice, or one that the map does not have.
        UnsupportedError: For another map of several sites.

    Example:
        >>> from tntune.maps.layout import Geometry
        >>> layout = Joined.auto("io (layer side w)", Geometry(5, 3, 2), layers=4)
        >>> part = Part(TensorGuide(5, 3, 2, layout, (1, 2, 1), start="random"), (3, 1))
        >>> part.map.sites, part.map.param_shapes["tt_core_1"]
        (2, (2, 8, 1))
    """

    whole: WeightMap
    sites: tuple[int, ...]
    map: WeightMap = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = range(self.whole.sites)
        if not self.sites or len(set(self.sites)) < len(self.sites) or not set(self.sites) <= set(known):
            raise ModeError(f"sites {self.sites} are not some of the {len(known)} of the map, each once")
        object.__setattr__(self, "map", self.whole if self.whole.sites == 1 else self._cut_map())

    def tensor(self, name: str, value: Tensor) -> Tensor:
        """The part's own tensor of that name, given the whole map's."""
        if self.whole.sites == 1 or name != self._core:
            return value
        legs, axis = self._legs
        split = value.reshape(value.shape[0], *legs, value.shape[-1])
        sites = torch.tensor(self.sites, device=value.device)
        return split.index_select(axis + 1, sites).flatten(1, -2)

    def tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of the part's tensors."""
        return {name: self.tensor(name, value) for name, value in tensors.items()}

    @property
    def _layout(self) -> Joined:
        layout = self.whole.layout if isinstance(self.whole, TensorGuide) else None
        plain = not self.whole.fixed_shapes
        if isinstance(layout, Joined) and plain and "layer" in layout.legs and "proj" not in layout.legs:
            return layout
        raise UnsupportedError(
            f"a map of kind {self.whole.kind!r} for {self.whole.sites} sites is not cut: only plain trains "
            "with a layer leg and no proj leg are"
        )

    @property
    def _legs(self) -> tuple[list[int], int]:
        """Sizes of the legs of the core that knows the sites, and which of them is the layers'."""
        group = next(group for group in self._layout.groups if "layer" in group)
        return [self._layout.legs[name] for name in group], group.index("layer")

    @property
    def _core(self) -> str:
        index = next(k for k, group in enumerate(self._layout.groups) if "layer" in group)
        return list(self.whole.param_shapes)[index]

    def _cut_map(self) -> WeightMap:
        legs = {**self._layout.legs, "layer": len(self.sites)}
        layout = replace(self._layout, sizes=tuple(legs.values()))
        assert isinstance(self.whole, TensorGuide)
        return replace(self.whole, layout=layout)
