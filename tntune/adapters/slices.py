"""Slices of stacked tensors, one for each layer, with the gradients that the layers would have alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tntune.errors import UnsupportedError

__all__ = ["Record", "slices", "stacked"]


class Record:
    """What was made in one go: kept by its own graph, so that it is there as long as a backward may need it.

    Attributes:
        stacks: The stacked tensors, detached; none once a backward has freed the graph.
        trains: Whether each of them has a gradient.
        used: Which of the slices along the first axis the last backward had a gradient for.

    Example:
        >>> record = Record()
        >>> [part.tolist() for part in slices(record, [torch.ones(2, 3)])[1]]
        [[1.0, 1.0, 1.0]]
        >>> record.again(1)[0].tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self) -> None:
        self.stacks: tuple[Tensor, ...] = ()
        self.trains: tuple[bool, ...] = ()
        self.used: tuple[bool, ...] = ()

    def again(self, index: int) -> list[Tensor]:
        """The slices at ``index`` for a recomputation in a backward, which reads values and no gradient.

        Raises:
            UnsupportedError: In a backward through what is returned.
        """
        parts = [stack[index] for stack in self.stacks]
        return [
            _Recomputed.apply(part.requires_grad_()) if trains else part  # type: ignore[no-untyped-call]
            for part, trains in zip(parts, self.trains, strict=True)
        ]


def stacked(record: Record, tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack(tensors)``, in whose backward a tensor has a gradient only where its slice was used.

    So an optimiser passes over the params of a layer that a pass skipped, as if it had been alone.

    Example:
        >>> record, params = Record(), [torch.ones(3, requires_grad=True) for _ in range(2)]
        >>> (first,), (_,) = slices(record, [2 * stacked(record, params)])
        >>> first.sum().backward()
        >>> params[0].grad, params[1].grad
        (tensor([2., 2., 2.]), None)
    """
    made: Tensor = _Stacked.apply(record, *tensors)  # type: ignore[no-untyped-call]
    return made


def slices(record: Record, stacks: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """``[stack[i] for stack in stacks]`` for every i, as views; the record keeps them for recomputations."""
    record.stacks = tuple(stack.detach() for stack in stacks)
    record.trains = tuple(stack.requires_grad for stack in stacks)
    flat: tuple[Tensor, ...] = _Sliced.apply(record, *stacks)  # type: ignore[no-untyped-call]
    count = len(stacks[0])
    return [flat[i::count] for i in range(count)]


class _Stacked(torch.autograd.Function):
    """A stack whose backward leaves out what no slice was used of."""

    @staticmethod
    def forward(ctx: Any, record: Record, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.record, ctx.count = record, len(tensors)
        return torch.stack(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            nothing: tuple[None, ...] = (None,) * (1 + ctx.count)
            return nothing
        used: tuple[bool, ...] = ctx.record.used
        parts = zip(grads[0].unbind(), used, strict=True)
        return None, *(part if is_used else None for part, is_used in parts)


class _Sliced(torch.autograd.Function):
    """Views along the first axis, whose backward says which of them were used."""

    @staticmethod
    def forward(ctx: Any, record: Record, *stacks: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.record, ctx.count = record, len(stacks[0])
        return tuple(part for stack in stacks for part in stack.unbind())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        groups = [grads[i : i + ctx.count] for i in range(0, len(grads), ctx.count)]
        ctx.record.used = tuple(
            any(part is not None for part in parts) for parts in zip(*groups, strict=True)
        )
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.record.stacks = ()
        return None, *map(_restacked, groups)


class _Recomputed(torch.autograd.Function):
    """The identity, without a backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        return part.view_as(part)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        raise UnsupportedError(
            "a layer that was called with a gradient in its forward is called again in a backward, and asked "
            "for gradients; call it without gradient in the forward, as reentrant checkpointing does"
        )


def _restacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The gradient of a stack, with zeros where a slice has none; None where no slice has one."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    nothing = torch.zeros_like(known) if any(part is None for part in parts) else known
    return torch.stack([nothing if part is None else part for part in parts])
