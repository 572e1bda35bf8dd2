"""Gradients of all outputs as sums of outer products, and their Gram matrix without forming them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.errors import ModeError, SpecError

__all__ = ["OUTPUTS", "Outer", "Rows", "factor", "gram", "outputs_of"]

OUTPUTS = ("full", "trace", "per_class")
"""``full``: (n C, n C), sample-major. ``trace``: (n, n), summed over outputs. ``per_class``: (C, n, n)."""

_BLOCK_ENTRIES = 2**19  # entries of one block of T: its few passes then stay in the cache
_BLOCKS = 5  # at least so many to a side, so that one triangle is not much more than half


@dataclass(frozen=True, eq=False)
class Outer:
    """One term of a gradient: row ``(i, c)`` is ``left[i, c] ⊗ right[i, c]``.

    Two such rows have the inner product ``(left · left') (right · right')``, so a Gram costs the sum of their
    sizes where the rows themselves would cost the product. An axis of size 1 does not depend on i or on c.

    Attributes:
        left: ``(n | 1, C | 1, p)``.
        right: ``(n | 1, C | 1, q)``; None where the row is ``left`` itself.

    Raises:
        ModeError: Where a part does not have three axes.

    Example:
        >>> Outer(torch.ones(4, 1, 5), torch.ones(4, 3, 2)).columns
        10
    """

    left: Tensor
    right: Tensor | None = None

    def __post_init__(self) -> None:
        for part in (self.left, self.right):
            if part is not None and part.ndim != 3:
                raise ModeError(f"rows have axes (sample, output, entry), not shape {tuple(part.shape)}")

    @property
    def columns(self) -> int:
        """Entries of one row."""
        return self.left.shape[2] * (1 if self.right is None else self.right.shape[2])


Rows = Mapping[str, Sequence[Outer]]
"""For each parameter the terms whose sum is its gradient."""


def gram(rows: Rows, output: str = "full") -> Tensor:
    """Kernel of the gradients: ``gram(rows) == factor(rows) @ factor(rows).T``, by blocks of one triangle.

    Args:
        rows: Terms of every parameter; each parameter adds its own Gram.
        output: One of :data:`OUTPUTS`; the others are sums and blocks of ``"full"``.

    Returns:
        ``(n C, n C)``, ``(n, n)`` or ``(C, n, n)`` in the dtype of the rows. O((n C)² (p + q)) for each pair
        of terms; beside the result, memory of one block.

    Raises:
        SpecError: For an unknown output.
        ModeError: Where the terms have different samples or outputs.

    Example:
        >>> x, v = torch.ones(2, 1, 3), torch.ones(2, 2, 5)
        >>> gram({"down": [Outer(x, v)]}, "trace").tolist()
        [[30.0, 30.0], [30.0, 30.0]]

    Statement: N1 in theory/ntk.md.
    """
    if output not in OUTPUTS:
        raise SpecError(f"output must be one of {', '.join(OUTPUTS)}, not {output!r}")
    samples, outputs = outputs_of(rows)
    if output == "full":
        return _full(rows, samples, outputs)
    example = next(iter(rows.values()))[0].left
    lead = () if output == "trace" else (outputs,)
    kernel = example.new_zeros(*lead, samples, samples)
    for terms in rows.values():
        for a, b in _pairs(terms):
            kernel += _traced(a, b, outputs) if output == "trace" else _by_class(a, b)
    return kernel


def factor(rows: Rows) -> Tensor:
    """The gradients themselves, A ``(n C, P)`` with T = A Aᵀ: each parameter's columns, in the rows' order.

    Example:
        >>> factor({"down": [Outer(torch.ones(2, 1, 3), torch.ones(2, 2, 5))]}).shape
        torch.Size([4, 15])
    """
    samples, outputs = outputs_of(rows)
    return torch.cat([_dense(terms, samples, outputs).flatten(0, 1) for terms in rows.values()], dim=1)


def outputs_of(rows: Rows) -> tuple[int, int]:
    """``(n, C)`` of the rows: the sizes of all axes that are not 1.

    Raises:
        ModeError: Where there are no terms, they have different samples or outputs, or some are plain rows.

    Example:
        >>> outputs_of({"up": [Outer(torch.ones(1, 3, 3), torch.ones(8, 1, 2))]})
        (8, 3)
    """
    parts = [part for terms in rows.values() for term in terms for part in (term.left, term.right)]
    shapes = [part.shape for part in parts if part is not None]
    if not shapes:
        raise ModeError("there are no gradients to make a kernel of")
    mixed = [name for name, terms in rows.items() if len({term.right is None for term in terms}) > 1]
    if mixed:
        raise ModeError(f"the terms of {mixed[0]} must be all outer products or all plain rows")
    samples, outputs = max(s[0] for s in shapes), max(s[1] for s in shapes)
    strange = [tuple(s[:2]) for s in shapes if s[0] not in (1, samples) or s[1] not in (1, outputs)]
    if strange:
        raise ModeError(f"rows of {samples} samples and {outputs} outputs do not fit rows of {strange[0]}")
    return samples, outputs


def _full(rows: Rows, samples: int, outputs: int) -> Tensor:
    """Every block (I, J) with J <= I, written to both triangles."""
    example = next(iter(rows.values()))[0].left
    kernel = example.new_empty(samples, outputs, samples, outputs)
    size = max(1, min(int(_BLOCK_ENTRIES**0.5) // outputs, -(-samples // _BLOCKS)))
    pairs = [pair for terms in rows.values() for pair in _pairs(terms)]
    plain = [(a.left, b.left) for a, b in pairs if a.right is None and b.right is None]
    products = [pair for pair in pairs if pair[0].right is not None or pair[1].right is not None]
    for first in _slices(samples, size):
        for second in _slices(first.stop, size):
            count = (first.stop - first.start, outputs, second.stop - second.start, outputs)
            block = example.new_zeros(count)
            for a, b in plain:
                _add_plain(block, _cut(a, first), _cut(b, second))
            for one, other in products:
                block.addcmul_(*_product(one, other, first, second))
            if first == second:  # matrix products are symmetric only up to rounding
                block = (block + block.permute(2, 3, 0, 1)) / 2
            kernel[first, :, second] = block
            kernel[second, :, first] = block.permute(2, 3, 0, 1)
    return kernel.reshape(samples * outputs, samples * outputs)


def _add_plain(block: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the inner products of explicit rows: one matrix product into the block."""
    if a.shape[:2] == block.shape[:2] and b.shape[:2] == block.shape[2:]:
        block.view(a.shape[0] * a.shape[1], -1).addmm_(a.flatten(0, 1), b.flatten(0, 1).mT)
    else:
        block += _inner(a, b)


def _product(a: Outer, b: Outer, first: slice, second: slice) -> tuple[Tensor, Tensor]:
    """The two Grams ``(i | 1, c | 1, j | 1, d | 1)`` whose product is the Gram of a pair of terms."""
    assert a.right is not None  # outputs_of saw that a parameter's terms are alike
    assert b.right is not None
    return (
        _inner(_cut(a.left, first), _cut(b.left, second)),
        _inner(_cut(a.right, first), _cut(b.right, second)),
    )


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``(i, c, j, d)``: inner products of all rows of a with all rows of b."""
    return (a.flatten(0, 1) @ b.flatten(0, 1).mT).view(*a.shape[:2], *b.shape[:2])


def _by_class(a: Outer, b: Outer) -> Tensor:
    """``(C | 1, n, n)``: the blocks with equal outputs of a pair of terms."""
    inner = _class_inner(a.left, b.left)
    if a.right is None and b.right is None:
        return inner
    assert a.right is not None  # outputs_of saw that
    assert b.right is not None
    return inner * _class_inner(a.right, b.right)


def _traced(a: Outer, b: Outer, outputs: int) -> Tensor:
    """``(n, n)``: the sum of those blocks; two matrix products where one side is free of the output."""
    sides = [(a.left, b.left), (a.right, b.right)]
    for (p, q), (r, s) in (sides, sides[::-1]):
        if (
            p is not None
            and q is not None
            and r is not None
            and s is not None
            and p.shape[1] == q.shape[1] == 1
        ):
            return (p[:, 0] @ q[:, 0].mT) * (_flat(r, outputs) @ _flat(s, outputs).mT)
    if a.right is None and b.right is None:
        return _flat(a.left, outputs) @ _flat(b.left, outputs).mT
    return _by_class(a, b).expand(outputs, -1, -1).sum(0)


def _flat(rows: Tensor, outputs: int) -> Tensor:
    """``(n | 1, C entries)``: the rows of all outputs behind one another."""
    return rows.expand(-1, outputs, -1).flatten(1)


def _class_inner(a: Tensor, b: Tensor) -> Tensor:
    """``(C | 1, n | 1, n | 1)``: inner products of rows of equal output."""
    return a.transpose(0, 1) @ b.permute(1, 2, 0)


def _dense(terms: Sequence[Outer], samples: int, outputs: int) -> Tensor:
    """``(n, C, p q)``: the rows of one parameter."""
    total = None
    for term in terms:
        row = term.left
        if term.right is not None:
            row = (term.left.unsqueeze(3) * term.right.unsqueeze(2)).flatten(2)
        row = row.expand(samples, outputs, -1)
        total = row if total is None else total + row
    assert total is not None  # outputs_of saw a term
    return total


def _pairs(terms: Sequence[Outer]) -> Iterator[tuple[Outer, Outer]]:
    return ((a, b) for a in terms for b in terms)


def _cut(rows: Tensor, samples: slice) -> Tensor:
    """These samples of rows that depend on the sample; all of rows that do not."""
    return rows if rows.shape[0] == 1 else rows[samples]


def _slices(stop: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, stop)) for start in range(0, stop, size))
