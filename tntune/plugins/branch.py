"""Branch: one generator of a model with the layers that it serves, and its tensors as trains of cores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tntune.adapters.adapt import adapted_layers
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import UnsupportedError
from tntune.maps.base import Factors, Shape, WeightMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.latent_train import LatentTrain
from tntune.maps.lora import LoRA
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["Branch", "Chain", "branches", "chains", "with_ranks"]

_LEAST = 1e-6  # weight of a side, relative to the other, where the other is still zero


@dataclass(frozen=True)
class Branch:
    """What ``scale * up σ(down x)`` is made of: a generator, and the layers whose map it holds.

    Attributes:
        name: Of the first layer, for reports.
        generator: Its map and tensors.
        scales: s of each of its sites; a site that no layer applies has 0.
        layers: Adapted layers that note its map; none where another library holds them.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(width=4))
        >>> [branch.name for branch in branches(model)]
        ['0']
    """

    name: str
    generator: FactorGenerator
    scales: tuple[float, ...] = (1.0,)
    layers: tuple[AdaptedLinear, ...] = ()

    def adopt(self, map: WeightMap, params: dict[str, Tensor]) -> None:
        """Give the generator another map of the same names, and new params for it; the others stay.

        A new param trains where the old one did.
        """
        held, kept = self.generator, dict(self.generator.named_parameters())
        fresh = FactorGenerator(map, {**kept, **params}, dict(held.named_buffers()))
        for name, param in fresh.train(held.training).named_parameters():
            param.requires_grad_(kept[name].requires_grad)
        vars(held).update({name: value for name, value in vars(fresh).items() if "hook" not in name})
        for name in kept.keys() - params.keys():
            held.register_parameter(name, kept[name])
        for layer in self.layers:
            layer.spec = replace(layer.spec, map=map)

    @torch.no_grad()
    def factors(self) -> Factors:
        """The factors at the stored latent in float64, the scales in ``up``."""
        down, up = (factor.detach().double() for factor in self.generator.stored())
        return Factors(down, up * torch.tensor(self.scales).to(up)[:, None, None])


@dataclass(frozen=True)
class Chain:
    """One train of a map: ``cores(params)`` are those of its weighted tensor.

    Attributes:
        names: Flat names of the params, in the order of the train.
        shapes: Shape of each param as a core ``(r, .., r')``.
        weights: A factor for every mode entry of one core, or of all of the train.
        at: Which core bears the weights.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    weights: Tensor
    at: int = 0

    @property
    def ranks(self) -> Shape:
        """All K + 1 ranks."""
        return (self.shapes[0][0], *(shape[-1] for shape in self.shapes))

    def cores(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The weighted tensor's cores ``(r, n, r')`` in float64, from the params in order."""
        own = [t.detach().double().reshape(shape) for t, shape in zip(tensors, self.shapes, strict=True)]
        own[self.at] = own[self.at] * self.weights.to(own[self.at].device)[:, None]
        return [core.flatten(1, -2) for core in own]

    def params(self, cores: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """The way back from :meth:`cores`, at whatever ranks; two-way where the params are."""
        made = []
        for k, (core, shape, old) in enumerate(zip(cores, self.shapes, like, strict=True)):
            wide = core.reshape(len(core), *shape[1:-1], -1)
            wide = wide / self.weights.to(wide)[:, None] if k == self.at else wide
            made.append((wide.squeeze(0 if k == 0 else -1) if old.ndim == 2 else wide).to(old.dtype))
        return [each.contiguous() for each in made]


def branches(model: nn.Module) -> list[Branch]:
    """One branch for each generator of the adapted layers of ``model``, in its order.

    Raises:
        TargetError: Where there are no adapted layers.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 4)), AdapterSpec(width=4))
        >>> [type(branch.generator.map).__name__ for branch in branches(model)]
        ['TensorGuide', 'TensorGuide']
    """
    found: dict[FactorGenerator, list[tuple[str, AdaptedLinear]]] = {}
    for name, layer in adapted_layers(model):
        found.setdefault(layer.generator, []).append((name, layer))
    made = []
    for generator, own in found.items():
        scales = {layer.site: layer.spec.scale for _, layer in own}
        every = tuple(scales.get(site, 0.0) for site in range(generator.map.sites))
        made.append(Branch(own[0][0], generator, every, tuple(layer for _, layer in own)))
    return made


def chains(branch: Branch) -> tuple[Chain, ...]:
    """The trains of a branch, each weighed so that distances are those of ΔW to first order.

    ``δΔW = s (up δdown + δup down)``, so ``|δΔW|² <= 2 s² (|up|₂² |δdown|² + |down|₂² |δup|²)``: entries that
    make down bear the weight ``s |up|₂`` and those of up ``s |down|₂``, the largest of all sites. The train
    of a LoRA is ΔW itself, where distances are exact. Where no core tells up's entries from down's (the flat
    layout), all bear the larger of both weights. A latent leg counts with the mode beside it, z aside.

    Raises:
        UnsupportedError: For a map without trains, one with boundary ranks above 1, or one that subtracts a
            frozen start of the same ranks.

    Example:
        >>> branch = Branch("fc", FactorGenerator.fresh(LoRA(4, 3, 2)))
        >>> [chain.ranks for chain in chains(branch)]
        [(1, 2, 1)]
    """
    map = branch.generator.map
    if isinstance(map, LoRA):
        two = ((1, map.out_features, map.width), (map.width, map.in_features, 1))
        return (Chain(("lora_up", "lora_down"), two, _scalar(branch.scales[0], map.out_features)),)
    if isinstance(map, DeltaTrain):
        weights = _scalar(branch.scales[0], map.in_modes[0])
        return (Chain(tuple(map.param_shapes), tuple(map.param_shapes.values()), weights),)
    down, up = _weights(branch)
    if isinstance(map, TTLoRA):
        pairs = ((map.down_train, "tt_down_", down), (map.up_train, "tt_up_", up))
        return tuple(_chain(train, prefix, _scalar(w, train.modes[0]), 0) for train, prefix, w in pairs)
    if isinstance(map, TensorGuide):
        return (_guide_chain(map, down, up),)
    raise UnsupportedError(f"{branch.name}: a map of kind {map.kind!r} has no bonds whose ranks could change")


def with_ranks(map: WeightMap, ranks: Sequence[Shape]) -> WeightMap:
    """The same map with these ranks, all K + 1 of each of its trains.

    Example:
        >>> with_ranks(LoRA(4, 3, 2), [(1, 1, 1)]).width
        1
    """
    if isinstance(map, LoRA):
        return replace(map, width=ranks[0][1])
    if isinstance(map, TTLoRA):
        down, up = (replace(t, ranks=r) for t, r in zip((map.down_train, map.up_train), ranks, strict=True))
        return replace(map, down_train=down, up_train=up)
    if isinstance(map, TensorGuide | DeltaTrain):
        return replace(map, ranks=ranks[0])
    raise UnsupportedError(f"a map of kind {map.kind!r} has no bonds whose ranks could change")


def _guide_chain(map: TensorGuide, down: float, up: float) -> Chain:
    """The train of both sides, weighed on the core that tells them apart."""
    if map.subtracts_start:
        raise UnsupportedError(
            "a flat layout with the zero start subtracts a frozen train of its own ranks, which cannot "
            'change; choose a layout with a side, or start="random"'
        )
    found = map.layout.up_entries(map.geometry)
    if found is None:
        return _chain(map.train, "tt_", _scalar(max(down, up), map.train.modes[0]), 0)
    k, entries = found
    weights = _scalar(down, map.train.modes[k])
    weights[entries] = up
    return _chain(map.train, "tt_", weights, k)


def _chain(train: LatentTrain, prefix: str, weights: Tensor, at: int) -> Chain:
    if train.ranks[0] != 1 or train.ranks[-1] != 1:
        raise UnsupportedError(
            f"boundary ranks {train.ranks[0]} and {train.ranks[-1]} only repeat parameters; make them 1"
        )
    return Chain(train.names(prefix), train.core_shapes, weights, at)


def _weights(branch: Branch) -> tuple[float, float]:
    """What entries of down and of up count: the spectral norm of the other."""
    down, up = branch.factors()
    spectral = [torch.linalg.matrix_norm(factor, ord=2) for factor in (up, down)]
    own = float(spectral[0].max())
    other = float((spectral[1] * torch.tensor(branch.scales).to(down).abs()).max())
    largest = max(own, other) or 1.0
    return max(own, _LEAST * largest), max(other, _LEAST * largest)


def _scalar(value: float, size: int) -> Tensor:
    return torch.full((size,), abs(value), dtype=torch.float64)
