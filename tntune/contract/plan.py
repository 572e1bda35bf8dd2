"""Contraction plans: opt_einsum finds the path once, when shapes are known; we run the pairwise steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import opt_einsum
from torch import Tensor

from tntune.errors import ModeError

__all__ = ["Plan", "Step", "plan"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One step of a plan: ``result == einsum(equation, *operands)`` as sums, permutations and one product.

    Operands are the entries of the working list at ``positions``; the result is appended to its end.
    ``sums`` are the axes that are summed before the product, ``orders`` bring each operand to
    (batch, rows, summed) and (batch, summed, columns); ``groups`` are those sizes. ``shape`` and
    ``permute`` turn the product into the result.
    """

    equation: str
    positions: tuple[int, ...]
    sums: tuple[tuple[int, ...], ...]
    orders: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    shape: Shape
    permute: tuple[int, ...]
    flops: int

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run the step on its one or two operands, in O(``flops``)."""
        parts = [
            (tensor.sum(axes) if axes else tensor).permute(order)
            for tensor, axes, order in zip(tensors, self.sums, self.orders, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        left, right = (part.reshape(group) for part, group in zip(parts, self.groups, strict=True))
        return (left @ right).reshape(self.shape).permute(self.permute)


@dataclass(frozen=True)
class Plan:
    """A contraction whose path is fixed: ``plan(*tensors) == einsum(equation, *tensors)``.

    Made by :func:`plan`. A plan is a value: it compares, pickles, prints its costs, holds no tensors,
    and runs under ``torch.compile(fullgraph=True)``, ``vmap`` and ``jacrev``, since it consists of sums,
    permutations, reshapes and matrix products only.

    Attributes:
        equation: The einsum equation, with an explicit output.
        shapes: The shapes it was planned for; calls with other shapes raise.
        steps: The pairwise steps.
        flops: Multiplications and additions of all steps together.
        peak: Entries of the largest intermediate or result.
    """

    equation: str
    shapes: tuple[Shape, ...]
    steps: tuple[Step, ...] = field(repr=False)
    flops: int
    peak: int

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Contract ``tensors``; raises :class:`ModeError` where a shape is not the planned one."""
        found = tuple(tuple(tensor.shape) for tensor in tensors)
        if found != self.shapes:
            raise ModeError(f"plan {self.equation!r} was made for shapes {self.shapes}, not for {found}")
        work = list(tensors)
        for step in self.steps:
            operands = [work.pop(position) for position in step.positions]
            work.append(step(operands))
        return work[0]

    def __str__(self) -> str:
        """One line per step, with its equation and cost, after a line of totals."""
        head = f"{self.equation}: {self.flops:,} flops, largest intermediate {self.peak:,} entries"
        lines = [f"  {i}. {step.equation}  {step.flops:,} flops" for i, step in enumerate(self.steps, 1)]
        return "\n".join([head, *lines])


def plan(equation: str, *shapes: Sequence[int], optimize: str = "auto") -> Plan:
    """A path for ``einsum(equation)`` at these shapes: ``plan(eq, *shapes)(*x) == einsum(eq, *x)``.

    opt_einsum searches the path here, once; a call of the plan never searches.

    Args:
        equation: Einsum equation with explicit output and single-character legs, such as ``"ab,bc->ac"``.
            No leg may repeat within one operand.
        *shapes: One shape per operand.
        optimize: Any path finder that opt_einsum knows by name (``"auto"``, ``"optimal"``, ``"dp"``, ...).

    Returns:
        The plan, in the time of one path search (about a millisecond for ten operands).

    Raises:
        ModeError: Where operands, legs and sizes do not fit together.

    Example:
        >>> import torch
        >>> chain = plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4))
        >>> [step.equation for step in chain.steps]
        ['ab,bc->ac', 'ac,cd->ad']
        >>> x = [torch.ones(2, 300), torch.ones(300, 3), torch.ones(3, 4)]
        >>> bool((chain(*x) == 900).all())
        True

    Reference: Smith and Gray, opt_einsum, JOSS 3(26), 753 (2018).
    """
    sizes = _leg_sizes(equation, shapes)
    fixed = tuple(tuple(int(n) for n in shape) for shape in shapes)
    _, info = opt_einsum.contract_path(equation, *fixed, shapes=True, optimize=optimize)
    steps = tuple(_steps(info.contraction_list, sizes))
    return Plan(equation, fixed, steps, sum(s.flops for s in steps), max(math.prod(s.shape) for s in steps))


def _leg_sizes(equation: str, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of every leg, after checking that operands and output agree."""
    if equation.count("->") != 1:
        raise ModeError(f"equation {equation!r} needs exactly one '->'")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes):
        raise ModeError(
            f"equation {equation!r} has {len(terms)} operands, but {len(shapes)} shapes were given"
        )
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape) or len(set(term)) != len(term):
            raise ModeError(f"operand {term!r} of {equation!r} does not fit the shape {tuple(shape)}")
        for leg, size in zip(term, shape, strict=True):
            if sizes.setdefault(leg, int(size)) != size:
                raise ModeError(f"leg {leg!r} of {equation!r} has size {sizes[leg]} and size {size}")
    if len(set(output)) != len(output) or not set(output) <= set(sizes):
        raise ModeError(f"output {output!r} of {equation!r} repeats a leg or has one that no operand has")
    return sizes


def _steps(contractions: Sequence[tuple[object, ...]], sizes: dict[str, int]) -> Iterator[Step]:
    """Our steps from opt_einsum's: positions are popped in the order in which it lists them."""
    for positions, _, equation, *_ in contractions:
        assert isinstance(positions, tuple)
        assert isinstance(equation, str)
        yield _step(equation, positions, sizes)


def _step(equation: str, positions: tuple[int, ...], sizes: dict[str, int]) -> Step:
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if len(terms) == 1:
        return _unary(equation, positions, terms[0], output, sizes)
    left, right = terms
    shared = [leg for leg in left if leg in right]
    batch = "".join(leg for leg in shared if leg in output)
    summed = "".join(leg for leg in shared if leg not in output)
    rows = "".join(leg for leg in left if leg in output and leg not in right)
    columns = "".join(leg for leg in right if leg in output and leg not in left)
    kept = (_keep(left, batch + rows + summed), _keep(right, batch + summed + columns))
    b, m, k, n = (math.prod(sizes[leg] for leg in legs) for legs in (batch, rows, summed, columns))
    result = batch + rows + columns
    return Step(
        equation,
        positions,
        sums=(_dropped(left, kept[0]), _dropped(right, kept[1])),
        orders=(_order(kept[0], batch + rows + summed), _order(kept[1], batch + summed + columns)),
        groups=((b, m, k), (b, k, n)) if batch else ((m, k), (k, n)),
        shape=tuple(sizes[leg] for leg in result),
        permute=_order(result, output),
        flops=2 * b * m * k * n,
    )


def _unary(equation: str, positions: tuple[int, ...], term: str, output: str, sizes: dict[str, int]) -> Step:
    kept = _keep(term, output)
    return Step(
        equation,
        positions,
        sums=(_dropped(term, kept),),
        orders=(_order(kept, output),),
        groups=(),
        shape=tuple(sizes[leg] for leg in output),
        permute=(),
        flops=math.prod(sizes[leg] for leg in term),
    )


def _keep(term: str, wanted: str) -> str:
    return "".join(leg for leg in term if leg in wanted)


def _dropped(term: str, kept: str) -> tuple[int, ...]:
    """Axes of legs that only this operand has: summed before the product."""
    return tuple(axis for axis, leg in enumerate(term) if leg not in kept)


def _order(legs: str, wanted: str) -> tuple[int, ...]:
    return tuple(legs.index(leg) for leg in wanted)
