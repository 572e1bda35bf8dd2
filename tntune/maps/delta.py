"""DeltaMap: a map whose tensor network is ΔW itself, cut into two factors at one bond."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import ModeError, SpecError
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap
from tntune.maps.latent_train import gather
from tntune.maps.network import INDEX, Half, Network

__all__ = ["DeltaMap"]


@dataclass(frozen=True)
class DeltaMap(WeightMap):
    """``up @ down == ΔW`` of every site, as one tensor network; finals say which.

    The network is cut at one bond into down and up, so ΔW is never formed to be applied. That bond has a
    gauge: ``from_factors`` fits the product of two factors, not the factors, and under a nonlinear activation
    it does not keep the function.

    Attributes:
        in_features: D.
        out_features: Q.
        width: Size of the bond that is cut.
        start: ``"zero"``: one node is zero, so ΔW = 0 with non-zero gradients. ``"random"``: it is drawn like
            the others.
        network: Nodes, legs and sizes.

    Example:
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> map = LoTR(Stack(5, 3, layers=4), 2)
        >>> isinstance(map, DeltaMap), map.sites, bool(map.delta(*map.init()).any())
        (True, 4, False)
    """

    starts: ClassVar[tuple[str, ...]] = ("zero", "random")

    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    width: int = field(init=False, repr=False)
    network: Network = field(init=False, repr=False, compare=False)
    _halves: tuple[Half, Half] = field(init=False, repr=False, compare=False)
    _site_halves: tuple[Half, Half] = field(init=False, repr=False, compare=False)
    start: str = field(default="zero", kw_only=True)

    def __post_init__(self) -> None:
        if self.start not in self.starts:
            raise SpecError(f"start must be one of {', '.join(self.starts)}, not {self.start!r}")
        network = self._network()
        made = {
            "network": network,
            "in_features": network.span(network.in_legs),
            "out_features": network.span(network.out_legs),
            "width": network.sizes["width"],
            "_halves": network.halves(INDEX),
            "_site_halves": network.halves(()),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @abstractmethod
    def _network(self) -> Network:
        """The network of these fields, after checking them."""

    @property
    def sites(self) -> int:
        layers, projections = self.network.stack_shape
        return layers * projections

    @property
    def param_shapes(self) -> Shapes:
        return self.network.shapes

    @property
    def fixed_shapes(self) -> Shapes:
        return {}

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(half.run for half in self._halves)

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        draw = torch.float64 if dtype == torch.float64 else torch.float32
        drawn = {
            name: node.fill(self.param_shapes[name], generator, draw)
            for name, node in self.network.nodes.items()
        }
        if self.start == "zero":
            drawn[self.network.silent].zero_()
        return {name: tensor.to(dtype).contiguous() for name, tensor in drawn.items()}, {}

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        tensors, own = self._gather(params)
        layers, projections = self.network.stack_shape
        down, up = (half(tensors, {}).expand(layers, projections, -1, -1) for half in self._halves)
        down, up = self.turn(down, up)
        return Factors(down.flatten(0, 1).to(own), up.flatten(0, 1).to(own))

    def site_factors(self, params: Tensors, fixed: Tensors, site: int) -> Factors:
        """One site's factors; the others are not generated."""
        tensors, own = self._gather(params)
        address = dict(zip(INDEX, divmod(site, self.network.stack_shape[1]), strict=True))
        down, up = (half(tensors, address)[0].to(own) for half in self._site_halves)
        return Factors(up.mT, down.mT) if address["proj"] in self.network.turned else Factors(down, up)

    def check_factors(self, down: Tensor, up: Tensor) -> None:
        """Raise :class:`ModeError` unless down is ``(sites, m, in)`` and up ``(sites, out, m)``."""
        inner = down.shape[1] if down.ndim == 3 else self.width
        wanted = (self.sites, inner, self.in_features), (self.sites, self.out_features, inner)
        if (tuple(down.shape), tuple(up.shape)) != wanted:
            raise ModeError(
                f"{self.kind} needs down {wanted[0]} and up {wanted[1]}, "
                f"not {tuple(down.shape)} and {tuple(up.shape)}"
            )

    def _gather(self, params: Tensors) -> tuple[dict[str, Tensor], torch.dtype]:
        """The nodes in the dtype that contractions run in, and their own dtype."""
        wide, own = gather([params[name] for name in self.param_shapes])
        return dict(zip(self.param_shapes, wide, strict=True)), own

    def turn(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Down and up (layer, proj, ..), exchanged and transposed at turned projections; its own inverse."""
        turned = self.network.turned
        if not turned:
            return down, up
        pairs = [(down[:, p], up[:, p]) for p in range(down.shape[1])]
        pairs = [(up.mT, down.mT) if p in turned else (down, up) for p, (down, up) in enumerate(pairs)]
        return torch.stack([pair[0] for pair in pairs], 1), torch.stack([pair[1] for pair in pairs], 1)
