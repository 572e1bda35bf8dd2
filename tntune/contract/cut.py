"""A product of two matrices, read as flat parts whose gradients are never put together."""

from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

__all__ = ["cut_product", "is_plain"]


def cut_product(left: Tensor, right: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """``flat[:at], flat[at:]`` of ``flat = (left @ right).flatten()``, without a copy, backward too.

    autograd's own backward of a cut first copies both gradients into one, as large as the product. Here the
    rows that lie in one part are used where they are; only a row that the cut goes through is put together.

    Args:
        left: ``(m, k)``.
        right: ``(k, n)``.
        at: Entries of the first part, in 0 .. m n.

    Returns:
        Two vectors that share one memory. Differentiable twice; under ``torch.func``, forward-mode
        differentiation and ``torch.compile`` the operations are torch's own.

    Example:
        >>> first, rest = cut_product(torch.ones(2, 4), torch.ones(4, 3), 4)
        >>> first.shape, rest.tolist()
        (torch.Size([4]), [4.0, 4.0])
    """
    if is_plain() and not torch.compiler.is_compiling():
        first, rest = _CutProduct.apply(left, right, at)  # type: ignore[no-untyped-call]
    else:
        first, rest = torch.tensor_split((left @ right).flatten(), (at,))
    return first, rest


def is_plain() -> bool:
    """Whether no transform of ``torch.func`` and no forward-mode differentiation looks on.

    Example:
        >>> is_plain()
        True
    """
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


class _CutProduct(torch.autograd.Function):
    """The product with a backward that reads both gradients in place."""

    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, right: Tensor, at: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(left, right)
        product = left * right if len(right) == 1 else left @ right  # an outer product is faster as such
        flat = product.flatten()
        return flat[:at], flat[at:]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors  # type: ignore[attr-defined]
        rows = _rows(grads[0], grads[1], right.shape[1])
        sizes = [len(part) for part in rows]
        own = torch.cat([part @ right.mT for part in rows])
        pairs = zip(left.split(sizes), rows, strict=True)
        return own, reduce(add, (part.mT @ grad for part, grad in pairs)), None


def _rows(first: Tensor, rest: Tensor, n: int) -> list[Tensor]:
    """The rows of a matrix with n columns that is cut into these parts; none of the blocks is empty."""
    whole = len(first) // n * n
    end = -(-len(first) // n) * n - len(first)
    blocks = (first[:whole], torch.cat([first[whole:], rest[:end]]), rest[end:])
    return [block.reshape(-1, n) for block in blocks if len(block)]
