"""Predictions: what a model says on a batch, as rows of logits."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from tntune.errors import SpecError

__all__ = ["Batch", "Predict", "predict", "token_mask"]

Batch: TypeAlias = Any
"""Keyword arguments of a model as a mapping, or its one argument."""

Predict: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""From a model and a batch to logits ``(predictions, classes)``."""


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Logits ``(predictions, classes)`` of a batch: one row for each sequence, or for each token that counts.

    A mapping is passed as keyword arguments, as the models of ``transformers`` take it; anything else as the
    one argument. The output's ``logits``, or the output itself, is taken; of one row for each token, those
    that the batch's ``attention_mask`` hides are left out.

    Raises:
        SpecError: Where the output is no tensor of logits.

    Example:
        >>> import torch
        >>> predict(nn.Linear(3, 4), torch.ones(2, 5, 3)).shape
        torch.Size([10, 4])
    """
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.is_floating_point():
        raise SpecError(f"the model returns {type(output).__name__}, not logits; give a function that does")
    mask = token_mask(batch)
    if mask is not None and logits.shape[:-1] == mask.shape:
        return logits[mask]
    return logits.reshape(-1, logits.shape[-1])


def token_mask(batch: Batch) -> Tensor | None:
    """Which tokens of a batch count, from its ``attention_mask``; None where it has none.

    Example:
        >>> import torch
        >>> token_mask({"attention_mask": torch.tensor([[1, 0]])})
        tensor([[ True, False]])
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return None if mask is None else mask.bool()
