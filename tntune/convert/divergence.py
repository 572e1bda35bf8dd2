"""Divergence: how far the predictions of a model with another adapter are from those with its LoRA."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tntune.convert.attach import attached
from tntune.convert.calibrate import lora_factors
from tntune.convert.prediction import Batch, Predict, predict
from tntune.errors import SpecError
from tntune.maps.base import Factors

__all__ = ["Divergence", "model_divergence"]

Divergence: TypeAlias = Callable[[Mapping[str, Factors]], float]
"""From the factors of each layer, scale in up, to how far the model's output is off; least is best."""


def model_divergence(
    model: nn.Module,
    batches: Iterable[Batch],
    source: str | os.PathLike[str],
    *,
    predict: Predict = predict,
) -> Divergence:
    """``KL(model with the LoRA ‖ model with other factors)``, the mean over the predictions of these batches.

    The LoRA's predictions are made once and kept, a row of log-probabilities for each prediction. Use batches
    that were not used to calibrate.

    Args:
        model: The base model, with trained heads in place, in evaluation mode.
        batches: What the model sees; kept.
        source: The LoRA folder.
        predict: From model and batch to logits ``(predictions, classes)``.

    Raises:
        SpecError: For no batch.
        TargetError: Where the model lacks a layer of the LoRA.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> model = nn.Sequential(nn.Linear(5, 3))
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("0", torch.ones(2, 5), torch.eye(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     divergence = model_divergence(model, [torch.ones(8, 5)], Path(parent) / "lora")
        >>> same, other = (Factors(torch.ones(r, 5), torch.eye(3, r)) for r in (2, 1))
        >>> divergence({"0": same}) < 1e-6 < divergence({"0": other})
        True
    """
    kept = list(batches)
    if not kept:
        raise SpecError("there is no batch to compare predictions on")
    with attached(model, lora_factors(source)):
        references = [_log_chances(model, batch, predict) for batch in kept]

    def divergence(factors: Mapping[str, Factors]) -> float:
        total = 0.0
        with attached(model, factors):
            for batch, reference in zip(kept, references, strict=True):
                own = _log_chances(model, batch, predict)
                total += float((reference.exp() * (reference - own)).double().sum())
        return total / sum(reference.shape[0] for reference in references)

    return divergence


def _log_chances(model: nn.Module, batch: Batch, predict: Predict) -> Tensor:
    with torch.no_grad():
        return predict(model, batch).float().log_softmax(-1)
