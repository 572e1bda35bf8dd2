"""The tangent kernel as a linear operator: for kernels, or gradients, too large to store."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from tntune.errors import SpecError
from tntune.theory.ntk_gradients import Function, ParameterFilter, function_of
from tntune.theory.ntk_output import Batch, OutputFunction

__all__ = ["ntk_operator"]


def ntk_operator(
    model: nn.Module,
    batch: Batch,
    output_fn: OutputFunction,
    *,
    params: ParameterFilter | None = None,
    dtype: torch.dtype | None = None,
    block_size: int = 64,
) -> LinearOperator:
    """The full kernel as a scipy operator: ``operator @ v == ntk(...).values @ v``, with no matrix anywhere.

    A product takes one backward over the batch and the transpose of one, in blocks; memory is P numbers and
    one block. Extreme eigenvalues by Lanczos from it: the largest are sound, the smallest only upper bounds.

    Args:
        model: Any module in eval mode.
        batch: As in :func:`ntk`.
        output_fn: As there.
        params: As there.
        dtype: As there.
        block_size: Samples at once.

    Raises:
        SpecError: For a block size below 1.
        TargetError, UnsupportedError, ModeError: As :func:`ntk`.

    Example:
        >>> from tntune.theory.ntk_output import logits
        >>> operator = ntk_operator(nn.Linear(3, 2).eval(), torch.ones(1, 3), logits)
        >>> (operator @ np.ones(2)).tolist()
        [4.0, 4.0]

    Statement: N4 in theory/ntk.md.
    """
    if block_size < 1:
        raise SpecError(f"block_size must be at least 1, not {block_size}")
    function = function_of(model, batch, output_fn, params=params, dtype=dtype)
    with torch.no_grad():
        example = function(function.params, function.part(slice(0, 1)))
    blocks = range(0, function.samples, block_size)
    parts = [slice(start, min(start + block_size, function.samples)) for start in blocks]
    size = function.samples * example.shape[1]

    def product(vector: NDArray[np.floating]) -> NDArray[np.floating]:
        weights = torch.as_tensor(np.asarray(vector).reshape(function.samples, -1)).to(example)
        tangent = _pull(function, parts, weights)
        pushed = [_push(function, part, tangent) for part in parts]
        return np.asarray(torch.cat(pushed).flatten().cpu())

    kind = np.dtype(str(example.dtype).removeprefix("torch."))
    return LinearOperator((size, size), matvec=product, rmatvec=product, dtype=kind)


def _pull(function: Function, parts: list[slice], weights: Tensor) -> dict[str, Tensor]:
    """``A.T @ weights`` by parameter."""
    total = {name: torch.zeros_like(value) for name, value in function.params.items()}
    for part in parts:
        pull = torch.func.vjp(_over(function, part), function.params)[1]
        (pulled,) = pull(weights[part])
        for name, value in pulled.items():
            total[name] += value
    return total


def _push(function: Function, part: slice, tangent: dict[str, Tensor]) -> Tensor:
    """``A @ tangent`` of these samples."""
    out, pull = torch.func.vjp(_over(function, part), function.params)[:2]
    push = torch.func.vjp(pull, torch.zeros_like(out))[1]  # the transpose of a transpose
    pushed: Tensor = push((tangent,))[0]
    return pushed


def _over(function: Function, part: slice) -> Callable[[dict[str, Tensor]], Tensor]:
    """The outputs of these samples as a function of the parameters."""
    tensors = function.part(part)
    return lambda params: function(params, tensors)
