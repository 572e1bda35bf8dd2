"""Jacobians of maps that are tensor networks: JᵀJ by contracting the network with itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.contract.equation import equation
from tntune.contract.plan import plan
from tntune.errors import SpecError, UnsupportedError
from tntune.maps.base import Tensors
from tntune.maps.delta import DeltaMap
from tntune.maps.network import CUT, INDEX, Network
from tntune.theory.spectrum import SpectrumReport

__all__ = ["MAX_PARAMETERS", "NetworkJacobian", "network_gram", "network_jacobian"]

MAX_PARAMETERS = 2**14
"""JᵀJ has the square of that many entries: 2 GiB."""

Legs = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class NetworkJacobian:
    """J of ``θ -> vec(ΔW)`` of all sites, or of ``θ -> (down, up)``: exact, at a cost without N.

    The block of two nodes is the network without the one, contracted over its open legs with the network
    without the other. Parameters are counted in the order of ``map.param_shapes``.

    Attributes:
        map: The map.
        nodes: Its params in float64.
        of: ``"delta"`` or ``"factors"``.

    Example:
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> map = LoTR(Stack(6, 5, layers=3), 2, start="random")
        >>> found = network_jacobian(map, map.init(torch.Generator().manual_seed(0))[0])
        >>> found.num_parameters, found.nullity  # a gauge of r² on both bonds
        (34, 8)

    Statement: T0 in theory/jacobian.md.
    """

    map: DeltaMap
    nodes: dict[str, Tensor]
    of: str

    @property
    def num_parameters(self) -> int:
        """P: entries of all params."""
        return self.map.num_parameters

    def gram(self) -> Tensor:
        """``JᵀJ`` (P, P), exact.

        Raises:
            UnsupportedError: Above :data:`MAX_PARAMETERS`.
        """
        if self.num_parameters > MAX_PARAMETERS:
            raise UnsupportedError(
                f"JᵀJ of {self.num_parameters} parameters has their square of entries; the limit is "
                f"{MAX_PARAMETERS}: take a smaller stack or rank"
            )
        return network_gram(self.map.network, self.nodes, of=self.of)

    def spectrum(self) -> SpectrumReport:
        """The spectrum of ``JᵀJ`` (P, P); singular values of J below about 1e-7 of the largest are lost."""
        return SpectrumReport.from_gram(self.gram())

    @property
    def effective_dimension(self) -> int:
        """Rank of J: how many directions of ΔW, or of the factors, the params move."""
        return self.spectrum().rank

    @property
    def nullity(self) -> int:
        """``P - rank J``: directions of the params that change nothing."""
        return self.num_parameters - self.effective_dimension


def network_jacobian(map: DeltaMap, params: Tensors, *, of: str = "delta") -> NetworkJacobian:
    """Exact J of a map that is one network: ``gram() == J.mT @ J`` for the dense J.

    Args:
        map: TensLoRA, LoTR, LoRTA, FacT, MetaTT, DeltaTrain, or any other :class:`tntune.maps.DeltaMap`.
        params: Trainable tensors.
        of: ``"delta"``: ΔW of all sites. ``"factors"``: down and up of all sites, as :func:`map_jacobian`.

    Raises:
        UnsupportedError: For a map that is no network.
        SpecError: For another ``of``.

    Example:
        >>> from tntune.maps.delta_train import DeltaTrain
        >>> map = DeltaTrain((3, 2), (2, 4), (1, 2, 3, 2, 1), start="random")
        >>> params, _ = map.init(torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> network_jacobian(map, params).nullity  # 2² + 3² + 2²
        17

    Statement: T0 in theory/jacobian.md.
    """
    if not isinstance(map, DeltaMap):
        raise UnsupportedError(f"{map.kind} is no network of ΔW; use map_jacobian")
    if of not in ("delta", "factors"):
        raise SpecError(f"of must be delta or factors, not {of!r:.80}")
    return NetworkJacobian(map, {name: params[name].detach().double() for name in map.param_shapes}, of)


def network_gram(network: Network, nodes: Mapping[str, Tensor], *, of: str = "delta") -> Tensor:
    """``JᵀJ`` (P, P) of a network: of ΔW of all sites, or of down and up.

    Args:
        network: Its legs; a leg may have any size that the nodes have.
        nodes: Its tensors, in whose dtype it is computed.
        of: ``"delta"`` or ``"factors"``.

    Example:
        >>> from tntune.maps.lotr import LoTR
        >>> from tntune.maps.stack import Stack
        >>> map = LoTR(Stack(6, 5, layers=3), 2, start="random")
        >>> network_gram(map.network, map.init()[0]).shape
        torch.Size([34, 34])

    Statement: T0 in theory/jacobian.md.
    """
    feature = {"down": network.in_legs, "up": network.out_legs}
    parts: list[tuple[Sequence[str], Legs]] = [
        (list(network.down), (*INDEX, CUT, *feature["down"])),
        (list(network.up), (*INDEX, CUT, *feature["up"])),
    ]
    if of == "delta":
        parts = [(list(network.nodes), (*INDEX, *feature["down"], *feature["up"]))]
    blocks = [_part(network, {name: nodes[name] for name in names}, legs) for names, legs in parts]
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined


def _part(network: Network, tensors: Mapping[str, Tensor], open_legs: Legs) -> Tensor:
    """JᵀJ of these nodes, which together make a tensor with these open legs."""
    rows = []
    for first in tensors:
        row = [_block(network, tensors, (first, second), open_legs) for second in tensors]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def _block(network: Network, tensors: Mapping[str, Tensor], pair: tuple[str, str], open_legs: Legs) -> Tensor:
    """``(P_first, P_second)``: both environments contracted over the open legs that neither node has."""
    operands: list[tuple[list[str], Tensor]] = []
    for side, removed in zip("ab", pair, strict=True):
        for name, tensor in tensors.items():
            if name != removed:
                operands.append((_named(network, name, side, open_legs), tensor))
    own = [_named(network, name, side, open_legs) for side, name in zip("ab", pair, strict=True)]
    output = list(dict.fromkeys([*own[0], *own[1]]))
    held = {leg for legs, _ in operands for leg in legs}
    ones = [leg for leg in (*INDEX, *output) if leg in output or leg not in held]
    like = next(iter(tensors.values()))
    operands += [([leg], like.new_ones(_size(network, leg))) for leg in dict.fromkeys(ones)]
    run = plan(
        equation([legs for legs, _ in operands], output), *(tuple(tensor.shape) for _, tensor in operands)
    )
    return _spread(run(*(tensor for _, tensor in operands)), output, own)


def _spread(block: Tensor, output: list[str], own: Sequence[list[str]]) -> Tensor:
    """A block as a matrix: a leg that both nodes have is a diagonal."""
    shared = [leg for leg in own[0] if leg in own[1]]
    first = [leg for leg in own[0] if leg not in shared]
    second = [leg for leg in own[1] if leg not in shared]
    block = block.permute([output.index(leg) for leg in (*first, *second, *shared)])
    for _ in shared:  # the last axis becomes a pair in front
        block = torch.diag_embed(block, dim1=0, dim2=1)
    names = [name for leg in shared for name in (f"{leg} row", f"{leg} column")] + first + second
    rows = [f"{leg} row" if leg in shared else leg for leg in own[0]]
    columns = [f"{leg} column" if leg in shared else leg for leg in own[1]]
    whole = block.permute([names.index(name) for name in (*rows, *columns)])
    return whole.flatten(0, len(rows) - 1).flatten(1)


def _named(network: Network, name: str, side: str, open_legs: Legs) -> list[str]:
    """Legs of a node in one of the two copies: open ones are the same in both."""
    return [leg if leg in open_legs else f"{leg} {side}" for leg in network.nodes[name].legs]


def _size(network: Network, leg: str) -> int:
    """Size of a leg in either copy; 1 for an index leg that the network does not have."""
    return network.sizes.get(leg) or network.sizes.get(leg[:-2], 1)
