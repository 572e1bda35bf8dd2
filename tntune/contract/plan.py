"""Contraction plans: opt_einsum finds the path once, when shapes are known; we run the pairwise steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import opt_einsum
from torch import Tensor

from tntune.errors import ModeError, SpecError

__all__ = ["Path", "Plan", "Step", "plan"]

Shape = tuple[int, ...]
Sizes = dict[str, int]
Path = Sequence[tuple[int, ...]]
"""Pairs of positions to contract, each in the list that the ones before left; results go to its end."""


@dataclass(frozen=True)
class Step:
    """One step of a plan: ``step(operands) == einsum(step.equation, *operands)``.

    It consists of sums, permutations and at most one matrix product.

    Attributes:
        equation: Equation of the one or two operands.
        positions: Where the operands stand in the working list; they are removed, the result is appended.
        sums: For each operand the axes of legs that nobody else has, summed first.
        orders: For each operand the permutation to (batch, rows, summed) or (batch, summed, columns); empty
            where the legs stand so.
        groups: For each of two operands those sizes; no batch size where no leg is a batch.
        shape: Sizes of the legs of the result, before ``permute``.
        permute: The permutation to the output of the equation; empty where the legs stand so.
        flops: One for each entry that is summed first, two for each product of entries.
        copies: Entries of the result, where its legs are not in the order of the equation.

    Example:
        >>> import torch
        >>> (step,) = plan("ab,bc->ac", (2, 3), (3, 4)).steps
        >>> step.flops, step([torch.ones(2, 3), torch.ones(3, 4)]).shape
        (48, torch.Size([2, 4]))
    """

    equation: str
    positions: tuple[int, ...]
    sums: tuple[tuple[int, ...], ...]
    orders: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    shape: Shape
    permute: tuple[int, ...]
    flops: int
    copies: int

    @property
    def cost(self) -> int:
        """Time in units of half a flop: an entry that is written or copied takes 16, a row or column 512.

        Fitted to products with few summed entries, as trains have them, on one core.
        """
        lines = sum(math.prod(group) // group[at] for group, at in zip(self.groups, (-1, -2), strict=False))
        return 2 * self.flops + 16 * (math.prod(self.shape) + self.copies) + 512 * lines

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run the step on its one or two operands, in O(``flops``)."""
        parts = [
            _permuted(tensor.sum(axes) if axes else tensor, order)
            for tensor, axes, order in zip(tensors, self.sums, self.orders, strict=True)
        ]
        if len(parts) == 2:
            left, right = (_reshaped(part, group) for part, group in zip(parts, self.groups, strict=True))
            parts = [_reshaped(left @ right, self.shape)]
        return _permuted(parts[0], self.permute)


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

    Example:
        >>> print(plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4)))
        ab,bc,cd->ad: 3,648 flops, largest intermediate 8 entries
          1. ab,bc->ac  3,600 flops
          2. ac,cd->ad  48 flops
    """

    equation: str
    shapes: tuple[Shape, ...]
    steps: tuple[Step, ...] = field(repr=False)

    @property
    def flops(self) -> int:
        """Multiplications and additions of all steps together."""
        return sum(step.flops for step in self.steps)

    @property
    def peak(self) -> int:
        """Entries of the largest intermediate or result."""
        return max(math.prod(step.shape) for step in self.steps)

    @property
    def cost(self) -> int:
        """What paths are compared by: the sum over the steps of :attr:`Step.cost`."""
        return sum(step.cost for step in self.steps)

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Contract ``tensors``; raises :class:`ModeError` where a shape is not the planned one."""
        found = tuple(tuple(tensor.shape) for tensor in tensors)
        if found != self.shapes:
            raise ModeError(f"plan {self.equation!r} was made for shapes {self.shapes}, not for {found}")
        work = list(tensors)
        for step in self.steps:
            operands = [work[position] for position in step.positions]
            work = [tensor for i, tensor in enumerate(work) if i not in step.positions]
            work.append(step(operands))
        return work[0]

    def __str__(self) -> str:
        """One line per step, with its equation and cost, after a line of totals."""
        head = f"{self.equation}: {self.flops:,} flops, largest intermediate {self.peak:,} entries"
        lines = [f"  {i}. {step.equation}  {step.flops:,} flops" for i, step in enumerate(self.steps, 1)]
        return "\n".join([head, *lines])


def plan(equation: str, *shapes: Sequence[int], optimize: str = "auto", paths: Sequence[Path] = ()) -> Plan:
    """A path for ``einsum(equation)`` at these shapes: ``plan(eq, *shapes)(*x) == einsum(eq, *x)``.

    opt_einsum searches the path here, once; a call of the plan never searches.

    Args:
        equation: Einsum equation with explicit output and single-character legs, such as ``"ab,bc->ac"``.
            No leg may repeat within one operand.
        *shapes: One shape per operand, no size below 1.
        optimize: Any path finder that opt_einsum knows by name (``"auto"``, ``"optimal"``, ``"dp"``, ...).
        paths: Further paths to weigh, as opt_einsum writes them. Of all, the one of least :attr:`Plan.cost`
            is taken: it may have more flops than the found one, and fewer copies.

    Returns:
        The plan, in the time of one path search (about a millisecond for ten operands), or at once where
        the same was asked for before.

    Raises:
        ModeError: Where operands, legs and sizes do not fit together.
        SpecError: Where opt_einsum knows no such path finder.

    Example:
        >>> import torch
        >>> chain = plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4))
        >>> x = [torch.ones(2, 300), torch.ones(300, 3), torch.ones(3, 4)]
        >>> bool((chain(*x) == 900).all())
        True

    Reference: Smith and Gray, opt_einsum, JOSS 3(26), 753 (2018).
    """
    try:
        opt_einsum.paths.get_path_fn(optimize)
    except KeyError as error:
        raise SpecError(f"opt_einsum has no path finder {optimize!r}; 'auto' always is one") from error
    own = tuple(tuple(int(size) for size in shape) for shape in shapes)
    return _search(equation, own, optimize, tuple(tuple(path) for path in paths))


@lru_cache(maxsize=4096)
def _search(
    equation: str, shapes: tuple[Shape, ...], optimize: str, paths: tuple[tuple[tuple[int, ...], ...], ...]
) -> Plan:
    """The plan, remembered: layers of one shape, and the candidates of a conversion, share it."""
    sizes = _leg_sizes(equation, shapes)
    found, _ = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    plans = [Plan(equation, shapes, tuple(_steps(equation, path, sizes))) for path in (found, *paths)]
    return min(plans, key=lambda plan: plan.cost)


def _leg_sizes(equation: str, shapes: tuple[Shape, ...]) -> Sizes:
    """The size of every leg, after checking that operands and output agree."""
    if equation.count("->") != 1:
        raise ModeError(f"equation {equation!r} needs exactly one '->'")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes):
        raise ModeError(
            f"equation {equation!r} has {len(terms)} operands, but {len(shapes)} shapes were given"
        )
    sizes: Sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape) or len(set(term)) != len(term) or min(shape, default=1) < 1:
            raise ModeError(f"operand {term!r} of {equation!r} does not fit the shape {shape}")
        for leg, size in zip(term, shape, strict=True):
            if sizes.setdefault(leg, size) != size:
                raise ModeError(f"leg {leg!r} of {equation!r} has size {sizes[leg]} and size {size}")
    if len(set(output)) != len(output) or not set(output) <= set(sizes):
        raise ModeError(f"output {output!r} of {equation!r} repeats a leg or has one that no operand has")
    return sizes


def _steps(equation: str, path: Sequence[tuple[int, ...]], sizes: Sizes) -> Iterator[Step]:
    """The steps along a path; an intermediate keeps the order of legs that its product has by itself."""
    inputs, output = equation.split("->")
    work = inputs.split(",")
    for chosen in path:
        positions = tuple(chosen)
        terms = [work[position] for position in positions]
        work = [term for i, term in enumerate(work) if i not in positions]
        result = _natural(terms, set("".join([output, *work]))) if work else output
        if len(terms) == 2 and not work and _is_order(_natural(terms[::-1], set(output)), output, sizes):
            positions, terms = positions[::-1], terms[::-1]  # the product comes out in the wanted order
        yield _step(terms, positions, result, sizes)
        work.append(result)


def _natural(terms: Sequence[str], wanted: set[str]) -> str:
    """The wanted legs of one or two operands in the order (batch, rows, columns)."""
    first, second = terms if len(terms) == 2 else (terms[0], "")
    batch = "".join(leg for leg in first if leg in second)
    legs = batch + _without(first, batch) + _without(second, batch)
    return "".join(leg for leg in legs if leg in wanted)


def _step(terms: Sequence[str], positions: tuple[int, ...], output: str, sizes: Sizes) -> Step:
    """``einsum(",".join(terms) -> output)`` as sums, permutations and one product."""
    first, second = terms if len(terms) == 2 else (terms[0], "")
    shared = "".join(leg for leg in first if leg in second)
    batch = "".join(leg for leg in shared if leg in output)
    summed = _without(shared, batch)
    rows = "".join(leg for leg in _without(first, shared) if leg in output)
    columns = "".join(leg for leg in _without(second, shared) if leg in output)
    b, m, k, n = (math.prod(sizes[leg] for leg in legs) for legs in (batch, rows, summed, columns))
    wanted = (batch + rows + summed, batch + summed + columns)[: len(terms)]
    groups = ((b, m, k), (b, k, n)) if batch else ((m, k), (k, n))
    sums = tuple(_axes(term, legs) for term, legs in zip(terms, wanted, strict=True))
    alone = sum(math.prod(sizes[leg] for leg in term) for term, axes in zip(terms, sums, strict=True) if axes)
    result = _natural(terms, set(output))
    return Step(
        f"{','.join(terms)}->{output}",
        positions,
        sums=sums,
        orders=tuple(_order(_kept(term, legs), legs) for term, legs in zip(terms, wanted, strict=True)),
        groups=groups if len(terms) == 2 else (),
        shape=tuple(sizes[leg] for leg in result),
        permute=_order(result, output),
        flops=alone + (2 * b * m * k * n if len(terms) == 2 else 0),
        copies=0 if _is_order(result, output, sizes) else b * m * n,
    )


def _is_order(legs: str, wanted: str, sizes: Sizes) -> bool:
    """Whether the legs stand in the wanted order, those of size 1 apart."""
    return [leg for leg in legs if sizes[leg] > 1] == [leg for leg in wanted if sizes[leg] > 1]


def _without(legs: str, others: str) -> str:
    return "".join(leg for leg in legs if leg not in others)


def _kept(term: str, wanted: str) -> str:
    return "".join(leg for leg in term if leg in wanted)


def _axes(term: str, kept: str) -> tuple[int, ...]:
    """Axes of legs that only this operand has: summed before the product."""
    return tuple(axis for axis, leg in enumerate(term) if leg not in kept)


def _order(legs: str, wanted: str) -> tuple[int, ...]:
    return () if legs == wanted else tuple(legs.index(leg) for leg in wanted)


def _permuted(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The axes in this order; each view that is spared is a node less in a backward."""
    return tensor.permute(order) if order else tensor


def _reshaped(tensor: Tensor, shape: Shape) -> Tensor:
    return tensor if tensor.shape == shape else tensor.reshape(shape)
