"""Network: ΔW of many layers as one tensor network with named legs, cut at one bond into down and up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.contract.equation import equation
from tntune.contract.plan import Plan, plan
from tntune.maps.base import Shape, Shapes

__all__ = ["CUT", "INDEX", "Fill", "Half", "Network", "Node", "identity", "normal", "orthonormal", "uniform"]

INDEX = ("layer", "proj")
"""Legs by which a site is addressed, the first the most significant."""

CUT = "width"
"""The bond between the nodes of down and those of up."""

Fill = Callable[[Shape, torch.Generator | None, torch.dtype], Tensor]
"""How the entries of a node are drawn: a function of shape, generator and dtype."""


@dataclass(frozen=True)
class Node:
    """One trainable tensor: the names of its legs, in the order of its axes, and how it starts.

    Example:
        >>> Node(("in", "width"), normal(1.0)).legs
        ('in', 'width')
    """

    legs: tuple[str, ...]
    fill: Fill


@dataclass(frozen=True)
class Half:
    """The contraction of one half of a network, for all sites or for one.

    Attributes:
        nodes: Names and legs of the operands.
        run: Its plan.
        shape: ``(layers, projections, rows, columns)``, with 1 for an index leg that the half does not have.
    """

    nodes: Mapping[str, tuple[str, ...]]
    run: Plan
    shape: Shape

    def __call__(self, tensors: Mapping[str, Tensor], address: Mapping[str, int]) -> Tensor:
        """The matrices of this half, with index legs at the values of ``address`` where it names them."""
        operands = [_at(tensors[name], legs, address) for name, legs in self.nodes.items()]
        return self.run(*operands).reshape(self.shape)


@dataclass(frozen=True)
class Network:
    """``ΔW[layer, proj] = Σ_bonds Π nodes``: equal names are the same leg, inner legs are summed.

    An index leg on every node makes independent networks; on one node only, that node is the mode's factor.
    Down and up share no leg but the cut and index legs, so a leg of a CP is the cut itself.

    Attributes:
        sizes: Size of every leg.
        down: Nodes on the side of the input.
        up: Nodes on the side of the output.
        in_legs: Legs that make the input features, the most significant first.
        out_legs: Legs that make the output features.
        silent: The node whose zeros make ΔW = 0 and leave it a gradient.
        turned: Projections whose ΔW is the transpose, up and down exchanged: their heads split the input.

    Example:
        >>> lora = Network({"in": 5, "out": 3, "width": 2}, {"a": Node(("in", "width"), normal(1.0))},
        ...                {"b": Node(("out", "width"), normal(1.0))}, ("in",), ("out",), "b")
        >>> lora.shapes
        {'a': (5, 2), 'b': (3, 2)}
    """

    sizes: Mapping[str, int]
    down: Mapping[str, Node]
    up: Mapping[str, Node]
    in_legs: tuple[str, ...]
    out_legs: tuple[str, ...]
    silent: str
    turned: Shape = ()

    @property
    def nodes(self) -> dict[str, Node]:
        """All nodes by name."""
        return {**self.down, **self.up}

    @property
    def shapes(self) -> Shapes:
        """Shape of every node by name."""
        return {name: tuple(self.sizes[leg] for leg in node.legs) for name, node in self.nodes.items()}

    @property
    def stack_shape(self) -> tuple[int, int]:
        """``(layers, projections)``."""
        return self.sizes.get("layer", 1), self.sizes.get("proj", 1)

    def span(self, legs: tuple[str, ...]) -> int:
        """Features that these legs make together."""
        return math.prod(self.sizes[leg] for leg in legs)

    def halves(self, index: tuple[str, ...]) -> tuple[Half, Half]:
        """How down ``(.., width, in)`` and up ``(.., out, width)`` are made, with these index legs open.

        The other index legs are cut to one value before the contraction. Nothing that has both in and out
        legs is ever formed.
        """
        down = self._half(self.down, index, (CUT, *self.in_legs), (self.sizes[CUT], self.span(self.in_legs)))
        up = self._half(self.up, index, (*self.out_legs, CUT), (self.span(self.out_legs), self.sizes[CUT]))
        return down, up

    def _half(
        self, nodes: Mapping[str, Node], index: tuple[str, ...], legs: tuple[str, ...], matrix: Shape
    ) -> Half:
        closed = set(INDEX) - set(index)
        operands = [[leg for leg in node.legs if leg not in closed] for node in nodes.values()]
        present = [leg for leg in index if any(leg in operand for operand in operands)]
        shapes = [[self.sizes[leg] for leg in operand] for operand in operands]
        lead = (self.sizes[leg] if leg in present else 1 for leg in INDEX)
        run = plan(equation(operands, [*present, *legs]), *shapes)
        return Half({name: node.legs for name, node in nodes.items()}, run, (*lead, *matrix))


def _at(tensor: Tensor, legs: tuple[str, ...], address: Mapping[str, int]) -> Tensor:
    """A node with its index legs cut to the values of an address."""
    for axis, leg in reversed(list(enumerate(legs))):
        if leg in address:
            tensor = tensor.select(axis, address[leg])
    return tensor


@dataclass(frozen=True)
class _Normal:
    spread: float

    def __call__(self, shape: Shape, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cpu").normal_(0, self.spread, generator=generator)


@dataclass(frozen=True)
class _Uniform:
    bound: float

    def __call__(self, shape: Shape, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        drawn = torch.empty(shape, dtype=dtype, device="cpu")
        return drawn.uniform_(-self.bound, self.bound, generator=generator)


def normal(spread: float) -> Fill:
    """Independent normal entries of this standard deviation.

    Example:
        >>> normal(0.0)((2,), None, torch.float32)
        tensor([0., 0.])
    """
    return _Normal(spread)


def uniform(bound: float) -> Fill:
    """Independent uniform entries in ±bound.

    Example:
        >>> bool(uniform(2.0)((9,), None, torch.float32).abs().max() <= 2)
        True
    """
    return _Uniform(bound)


def orthonormal(shape: Shape, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """Matrices in the last two axes with orthonormal columns, or rows where there are fewer of those.

    Example:
        >>> q = orthonormal((3, 5, 2), None, torch.float64)
        >>> bool(torch.allclose(q.mT @ q, torch.eye(2, dtype=torch.float64).expand(3, 2, 2)))
        True
    """
    *lead, rows, columns = shape
    tall = (*lead, max(rows, columns), min(rows, columns))
    q: Tensor = torch.linalg.qr(torch.empty(tall, dtype=dtype, device="cpu").normal_(generator=generator))[0]
    return q if rows >= columns else q.mT


def identity(shape: Shape, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """Cores ``(r, n, r')`` whose every slice is the identity; draws nothing.

    Example:
        >>> identity((2, 3, 2), None, torch.float32)[:, 1]
        tensor([[1., 0.],
                [0., 1.]])
    """
    slices = torch.empty(shape[1], shape[0], shape[-1], dtype=dtype, device="cpu")
    return slices.copy_(torch.eye(shape[0], shape[-1])).movedim(0, 1)
