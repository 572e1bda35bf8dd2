"""Steps of a plan: sums, permutations and one matrix product each, known from the legs and their sizes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.contract.cut import cut_product

__all__ = ["Path", "Shape", "Sizes", "Step", "steps_along"]

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
        >>> from tntune.contract.plan import plan
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

        Fitted to products with few summed entries, as trains have them, on one core. In an outer product rows
        and columns take nothing.
        """
        summed = self.groups[0][-1] if self.groups else 1
        lines = 0
        if summed > 1:
            lines = sum(
                math.prod(group) // group[at] for group, at in zip(self.groups, (-1, -2), strict=True)
            )
        return 2 * self.flops + 16 * (math.prod(self.shape) + self.copies) + 512 * lines

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run the step on its one or two operands, in O(``flops``)."""
        parts = self._prepared(tensors)
        if len(parts) == 2:
            parts = [_reshaped(parts[0] @ parts[1], self.shape)]
        return _permuted(parts[0], self.permute)

    def cut(self, tensors: Sequence[Tensor], at: int) -> tuple[Tensor, Tensor]:
        """``flat[:at], flat[at:]`` of ``flat = self(tensors).flatten()``, a view each where that can be."""
        if len(tensors) == 2 and len(self.groups[0]) == 2 and not self.copies:
            left, right = self._prepared(tensors)
            return cut_product(left, right, at)
        first, rest = torch.tensor_split(self(tensors).flatten(), (at,))
        return first, rest

    def _prepared(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The operands, summed and permuted; of two each as its matrix or batch of matrices."""
        parts = [
            _permuted(_summed(tensor, axes), order)
            for tensor, axes, order in zip(tensors, self.sums, self.orders, strict=True)
        ]
        if len(parts) == 1:
            return parts
        return [_reshaped(part, group) for part, group in zip(parts, self.groups, strict=True)]


def steps_along(equation: str, path: Sequence[tuple[int, ...]], sizes: Sizes) -> Iterator[Step]:
    """The steps along a path; an intermediate keeps the order of legs that its product has by itself.

    Example:
        >>> path = ((0, 1), (0, 1))
        >>> [step.equation for step in steps_along("ab,bc,cd->ad", path, {"a": 2, "b": 3, "c": 4, "d": 5})]
        ['ab,bc->ac', 'ac,cd->ad']
    """
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


def _summed(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The sum over these axes; a view where each has one entry."""
    if all(tensor.shape[axis] == 1 for axis in axes):
        return tensor.squeeze(axes) if axes else tensor
    return tensor.sum(axes)


def _permuted(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The axes in this order; each view that is spared is a node less in a backward."""
    return tensor.permute(order) if order else tensor


def _reshaped(tensor: Tensor, shape: Shape) -> Tensor:
    return tensor if tensor.shape == shape else tensor.reshape(shape)
