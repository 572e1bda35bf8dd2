"""LayerJacobian: how one layer's weights depend on its parameters: nullity, spectrum, condition, bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor

from tntune.errors import RankError
from tntune.maps.base import WeightMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.latent_train import LatentTrain
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.report.compact import CompactJacobian, compact
from tntune.report.counted import CountedSpectrum
from tntune.report.layers import AdaptedLayer
from tntune.report.numerical import EXACT_PARAMETERS, numerical_spectrum
from tntune.theory.bound import Bound
from tntune.theory.bounds import conditioning, preconditioning
from tntune.theory.gauge import canonicalize, gauge_fixed_spectrum, map_trains
from tntune.theory.jacobian import MapJacobian, map_jacobian
from tntune.theory.nullity import nullity
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.train import Train, cores, tt_tensor

__all__ = ["LayerJacobian", "layer_blocks", "layer_jacobian", "nullity_by_shape"]

_T2, _CANONICAL, _NONE = "T2", "numerical", "-"


@dataclass(frozen=True)
class LayerJacobian:
    """The Jacobian of one layer's map by its parameters.

    Attributes:
        of: ``"w"``: the entries of both factors, (down, up). ``"delta"``: ΔW / scale = up · down, without an
            activation for a LoRA, whose J of w is the identity, and for maps that are one network of ΔW.
        params: P.
        nullity_formula: Directions of the parameters that change nothing, by shape (T1, T4); None where the
            shapes admit no formula.
        spectrum: Eigenvalues of ``J Jᵀ`` with the cores as they are; None above ``EXACT_PARAMETERS``.
        relative: The same of ``(down / |down|, up / |up|)``: relative changes of both factors; None where
            one of them is zero.
        gauge_fixed: The same on canonical cores, of the whole train with its padding; None where it is zero,
            or where there is no train.
        gauge_fixed_by: ``"T2"``: the closed form, on gauge-fixed directions. ``"numerical"``: all of J, where
            a latent is in the way of the closed form. ``"-"``: there is none.
        bounds: T3 and T3', each with what it bounds.

    Example:
        >>> import torch
        >>> from tntune.maps.site import Site
        >>> tensors = {"lora_down": torch.eye(1, 3).double(), "lora_up": 2 * torch.eye(4, 1).double()}
        >>> found = layer_jacobian(AdaptedLayer("fc", Site(LoRA(3, 4, 1)), tensors))
        >>> found.of, [round(value, 9) for value in found.spectrum.values], found.spectrum.counts
        ('delta', [5.0, 4.0, 1.0], (1, 2, 3))
    """

    of: str
    params: int
    nullity_formula: int | None
    spectrum: CountedSpectrum | None
    relative: CountedSpectrum | None
    gauge_fixed: CountedSpectrum | None
    gauge_fixed_by: str
    bounds: tuple[Bound, ...]

    @property
    def rank_bound(self) -> int:
        """The largest rank that J can have: P less the nullity, where a formula gives it."""
        return self.params - (self.nullity_formula or 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; what was not computed is None."""
        spectra = {"spectrum": self.spectrum, "relative": self.relative, "gauge_fixed": self.gauge_fixed}
        return {
            "of": self.of,
            "params": self.params,
            "nullity_formula": self.nullity_formula,
            "rank_bound": self.rank_bound,
            **{name: found and found.to_json() for name, found in spectra.items()},
            "gauge_fixed_by": self.gauge_fixed_by,
        }


def layer_blocks(layer: AdaptedLayer) -> tuple[TrainJacobian, ...]:
    """The Jacobians of a layer's trains, side by side; for a product that of ΔW by (up, down), in this order.

    Example:
        >>> import torch
        >>> from tntune.maps.site import Site
        >>> tensors = {"lora_down": torch.ones(1, 3), "lora_up": torch.ones(4, 1)}
        >>> layer_blocks(AdaptedLayer("fc", Site(LoRA(3, 4, 1)), tensors))[0].modes
        (4, 3)
    """
    if layer.is_delta:
        return (TrainJacobian.plain(_delta_cores(layer)),)
    return map_jacobian(layer.site.map, layer.tensors, layer.tensors).blocks


def layer_jacobian(layer: AdaptedLayer) -> LayerJacobian:
    """Everything about J of one layer, by compact trains: a cost without N, and without the mode sizes.

    Args:
        layer: A layer of any map. Without trains there is the spectrum alone, and that where it is small
            (:func:`tntune.report.numerical.numerical_spectrum`).

    Example:
        >>> import torch
        >>> from tntune.maps.layout import Geometry
        >>> from tntune.maps.build import build_map
        >>> from tntune.maps.site import Site
        >>> map = build_map("tensorguide", Geometry(12, 20, 4), rank=2, layout="io w", start="random")
        >>> params, fixed = map.init(torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = layer_jacobian(AdaptedLayer("fc", Site(map), {**params, **fixed}))
        >>> found.params, found.nullity_formula, found.spectrum.nullity, found.gauge_fixed_by
        (72, 4, 4, 'T2')
    """
    if not layer.has_trains:
        return _untrained(layer)
    blocks = layer_blocks(layer)
    smalls = [compact(block) for block in blocks]
    gauge_fixed, how = _gauge_fixed(layer)
    exact = all(small.small.num_parameters <= EXACT_PARAMETERS for small in smalls)
    return LayerJacobian(
        of="delta" if layer.is_delta else "w",
        params=layer.site.map.num_parameters,
        nullity_formula=nullity_by_shape(layer),
        spectrum=_spectrum(smalls) if exact else None,
        relative=_relative(layer),
        gauge_fixed=gauge_fixed,
        gauge_fixed_by=how,
        bounds=tuple(_bounds(blocks)) if exact else (),
    )


def nullity_by_shape(layer: AdaptedLayer) -> int | None:
    """Of a LoRA's ΔW r², of trains the sum of theirs (T1, T4); None where the modes do not admit the ranks.

    None too for maps without trains, and for a train of ΔW under an activation.

    Example:
        >>> from tntune.maps.site import Site
        >>> nullity_by_shape(AdaptedLayer("fc", Site(LoRA(12, 20, 4)), {}))
        16
    """
    map = layer.site.map
    if layer.is_product:
        return map.width**2 if map.width <= min(layer.shape) else None
    if isinstance(map, LoRA):
        return 0
    if not layer.has_trains or (isinstance(map, DeltaTrain) and not layer.is_delta):
        return None
    try:
        found = [nullity(train, layer.tensors.get(f"{prefix}latent")) for train, prefix in _trains(map)]
    except RankError:
        return None
    return sum(each.total for each in found)


def _untrained(layer: AdaptedLayer) -> LayerJacobian:
    """What is known of J without trains: its spectrum."""
    return LayerJacobian(
        of="delta" if layer.is_delta else "w",
        params=layer.site.map.num_parameters,
        nullity_formula=None,
        spectrum=numerical_spectrum(layer),
        relative=None,
        gauge_fixed=None,
        gauge_fixed_by=_NONE,
        bounds=(),
    )


def _delta_cores(layer: AdaptedLayer) -> list[Tensor]:
    """ΔW / scale as a train: of a LoRA (1, out, r), (r, in, 1)."""
    if isinstance(layer.site.map, DeltaTrain):
        return list(cores(layer.site.map.tensor_train(layer.tensors)))
    return [layer.tensors["lora_up"][None], layer.tensors["lora_down"][..., None]]


def _trains(map: WeightMap) -> tuple[tuple[LatentTrain, str], ...]:
    """The trains of a map and the prefixes of their names."""
    if isinstance(map, DeltaTrain):
        return ((LatentTrain((*map.in_modes, *map.out_modes), map.ranks), "tt_"),)
    return map_trains(map.trains if isinstance(map, LoRETTA) else map)


def _spectrum(smalls: Sequence[CompactJacobian]) -> CountedSpectrum:
    """The spectra of blocks along one diagonal."""
    return reduce(CountedSpectrum.joined, [small.spectrum() for small in smalls])


def _relative(layer: AdaptedLayer) -> CountedSpectrum | None:
    """Eigenvalues of J of (down / |down|, up / |up|)."""
    norms = [float(factor.norm()) for factor in layer.factors]
    if min(norms) == 0.0:
        return None
    map, tensors = layer.site.map, layer.tensors
    if isinstance(map, LoRA):
        sizes = (map.width * map.in_features, map.width * map.out_features)
        pairs = [(norm**-2, size) for norm, size in zip(norms, sizes, strict=True)]
        return CountedSpectrum.of(pairs, size=map.num_parameters)
    found = map_jacobian(map, tensors, tensors, down_scale=1 / norms[0], up_scale=1 / norms[1])
    return _if_small(found)


def _if_small(jacobian: MapJacobian) -> CountedSpectrum | None:
    """Its spectrum, unless that takes too long."""
    smalls = [compact(block) for block in jacobian.blocks]
    if any(small.small.num_parameters > EXACT_PARAMETERS for small in smalls):
        return None
    return _spectrum(smalls)


def _gauge_fixed(layer: AdaptedLayer) -> tuple[CountedSpectrum | None, str]:
    """The spectrum at canonical cores, and how it was found."""
    map = layer.site.map
    if layer.is_delta:
        return _closed_form([tt_tensor(_delta_cores(layer))], map.num_parameters), _T2
    if isinstance(map, DeltaTrain):  # halves between open bonds
        return None, _NONE
    if isinstance(map, LoRA):  # trains of one core: no bonds, and J = 1
        return CountedSpectrum((1.0,), (map.num_parameters,), map.num_parameters), _T2
    trains = _trains(map)
    if any(train.latent.stored for train, _ in trains):
        params = canonicalize(map, layer.tensors, layer.tensors)
        return _if_small(map_jacobian(map, {**layer.tensors, **params}, layer.tensors)), _CANONICAL
    own = [_plain(layer.tensors, train.names(prefix)) for train, prefix in trains]
    return _closed_form(own, map.num_parameters), _T2


def _plain(tensors: dict[str, Tensor], names: Sequence[str]) -> Train:
    """A train without z: open latent legs are part of the mode, boundary ranks are summed."""
    own = [tensors[name].flatten(1, -2) for name in names]
    own[0], own[-1] = own[0].sum(0, keepdim=True), own[-1].sum(-1, keepdim=True)
    return tt_tensor(own)


def _closed_form(trains: Sequence[Train], size: int) -> CountedSpectrum | None:
    """T2's eigenvalues of all trains together; None where one of them is zero."""
    pairs: list[tuple[float, int]] = []
    for train in trains:
        if any(not bool(core.any()) for core in cores(train)):
            return None
        found = gauge_fixed_spectrum(train)
        pairs += [(value**2, count) for value, count in zip(found.values, found.counts, strict=True)]
    return CountedSpectrum.of(pairs, size=size)


def _bounds(blocks: Sequence[TrainJacobian]) -> list[Bound]:
    """T3 of every train, and T3' of those without weights, on compact trains of the same eigenvalues."""
    found: list[Bound] = []
    for block in blocks:
        small = compact(block, spare=1).small
        found += conditioning(small)
        if all(bool((weight == 1).all()) and weight.numel() == weight.shape[2] for weight in small.weights):
            try:
                found += preconditioning(small)
            except RankError:
                continue  # cores that are not minimal have no such preconditioner
    return found
