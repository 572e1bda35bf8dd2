"""The spectrum of J where a map is no train: of a network in compact legs, of a small map by autodiff."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tntune.maps.delta import DeltaMap
from tntune.maps.network import Network
from tntune.report.counted import CountedSpectrum
from tntune.report.layers import AdaptedLayer
from tntune.theory.jacobian import jacobian
from tntune.theory.network_jacobian import network_gram

__all__ = ["EXACT_PARAMETERS", "network_spectrum", "numerical_spectrum"]

EXACT_PARAMETERS = 800
"""What has more parameters than this, once compact, has no numerical spectrum here: it takes P³."""

_DENSE_ENTRIES = 2**22  # of a Jacobian by autodiff

Pairs = list[tuple[float, int]]


def numerical_spectrum(layer: AdaptedLayer) -> CountedSpectrum | None:
    """Eigenvalues of ``J Jᵀ`` of any map: of ΔW / scale for a network without activation, else of (down, up).

    Returns:
        The spectrum, or None where it takes too long.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.gated import Gated
        >>> from tntune.maps.site import Site
        >>> gate = torch.full((1, 1), 3.0).double()
        >>> down, up = torch.zeros(1, 3).double(), torch.zeros(4, 1).double()
        >>> tensors = {"lora_down": down, "lora_up": up, "gate": gate}
        >>> layer = AdaptedLayer("fc", Site(Gated(LoRA(3, 4, 1))), tensors)
        >>> found = numerical_spectrum(layer)
        >>> [round(value, 9) for value in found.values], found.counts, found.nullity
        ([9.0, 1.0], (4, 3), 1)
    """
    map, tensors = layer.site.map, layer.tensors
    if isinstance(map, DeltaMap):
        return network_spectrum(map.network, tensors, of="delta" if layer.is_delta else "factors")
    entries = map.factor_width * (map.in_features + map.out_features) * map.num_parameters
    if map.num_parameters > EXACT_PARAMETERS or entries > _DENSE_ENTRIES:
        return None
    values = torch.linalg.svdvals(jacobian(map, tensors, tensors)).square()
    return _counted([(value, 1) for value in values.tolist()], map.num_parameters)


def network_spectrum(
    network: Network, nodes: Mapping[str, Tensor], *, of: str = "delta"
) -> CountedSpectrum | None:
    """Eigenvalues of ``J Jᵀ`` of a network, at a cost without the sizes of legs that one node has alone.

    A rotation of such a leg of n entries leaves at most q of its slices, as many as the node has other
    entries. A slice that is zero is met by no other parameter, so its block of JᵀJ splits off, n - q times.

    Args:
        network: The network.
        nodes: Its tensors.
        of: ``"delta"`` or ``"factors"``, as :func:`tntune.theory.network_jacobian`.

    Returns:
        The spectrum, or None for more than ``EXACT_PARAMETERS`` once compact. Singular values of J below
        about 1e-7 of the largest are lost.

    Example:
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> map = LoTR(Stack(300, 200), 2, start="random")
        >>> found = network_spectrum(map.network, map.init(torch.Generator().manual_seed(0))[0])
        >>> found.nullity, found.size  # a gauge of r² on both bonds
        (8, 1004)
    """
    wide = {name: nodes[name].detach().double() for name in network.nodes}
    spares: dict[str, tuple[int, int]] = {}  # node: axis of its leg, and the slices beyond those kept
    sizes = dict(network.sizes)
    for name, (axis, leg) in _own_legs(network).items():
        small = _compact(wide[name], axis)
        if small.shape[axis] < wide[name].shape[axis]:
            spares[name] = axis, wide[name].shape[axis] - small.shape[axis] + 1
            wide[name], sizes[leg] = small, small.shape[axis]
    if sum(tensor.numel() for tensor in wide.values()) > EXACT_PARAMETERS:
        return None
    gram = network_gram(replace(network, sizes=sizes), wide, of=of)
    kept, pairs, first = torch.ones(len(gram), dtype=torch.bool), Pairs(), 0
    for name, tensor in wide.items():
        if name in spares:
            axis, count = spares[name]
            places = torch.arange(first, first + tensor.numel()).reshape(tensor.shape)
            own = places.select(axis, -1).flatten()
            kept[own] = False
            pairs += [(value, count) for value in _eigenvalues(gram, own)]
        first += tensor.numel()
    pairs += [(value, 1) for value in _eigenvalues(gram, kept.nonzero().flatten())]
    return _counted(pairs, sum(math.prod(shape) for shape in network.shapes.values()))


def _own_legs(network: Network) -> dict[str, tuple[int, str]]:
    """Axis and name of a feature leg of each node that no other node has."""
    held = [leg for node in network.nodes.values() for leg in node.legs]
    found = {}
    for name, node in network.nodes.items():
        for axis, leg in enumerate(node.legs):
            if leg in (*network.in_legs, *network.out_legs) and held.count(leg) == 1:
                found[name] = axis, leg
    return found


def _compact(tensor: Tensor, axis: int) -> Tensor:
    """The slices that a rotation of the axis leaves, and a zero one; the tensor where it has no more."""
    rows = tensor.movedim(axis, 0)
    flat = rows.flatten(1)
    if len(flat) <= flat.shape[1] + 1:
        return tensor
    turned = torch.linalg.qr(flat, mode="r").R
    turned = torch.cat([turned, turned.new_zeros(1, flat.shape[1])])
    return turned.reshape(-1, *rows.shape[1:]).movedim(0, axis)


def _eigenvalues(gram: Tensor, places: Tensor) -> list[float]:
    """Those of the block at these places."""
    found: list[float] = torch.linalg.eigvalsh(gram[places][:, places]).tolist()
    return found


def _counted(pairs: Pairs, size: int) -> CountedSpectrum:
    """The spectrum without what is rounding of JᵀJ."""
    limit = size * torch.finfo(torch.float64).eps * max((value for value, _ in pairs), default=0.0)
    return CountedSpectrum.of([pair for pair in pairs if pair[0] > limit], size=size)
