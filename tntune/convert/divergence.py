"""Divergence: how far the predictions of a model with another adapter are from those with its LoRA."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tntune.convert.attach import attached, modules_of
from tntune.convert.calibrate import lora_factors
from tntune.convert.prediction import Batch, Predict, predict
from tntune.errors import SpecError
from tntune.maps.base import Factors

__all__ = ["Distance", "Divergence", "Teacher", "kl_divergence", "model_divergence", "squared_distance"]

Divergence: TypeAlias = Callable[[Mapping[str, Factors]], float]
"""From the factors of each layer, scale in up, to how far the model's output is off; least is best."""

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From right and other outputs ``(predictions, features)`` to the distance of each row; differentiable."""


def kl_divergence(right: Tensor, other: Tensor) -> Tensor:
    """``KL(softmax(right) ‖ softmax(other))`` of each row of logits.

    Example:
        >>> kl_divergence(torch.zeros(1, 2), torch.ones(1, 2)).tolist()
        [0.0]
    """
    reference, own = right.float().log_softmax(-1), other.float().log_softmax(-1)
    return (reference.exp() * (reference - own)).sum(-1)


def squared_distance(right: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of each row: for outputs that are no logits, such as embeddings.

    Example:
        >>> squared_distance(torch.zeros(1, 2), torch.ones(1, 2)).tolist()
        [1.0]
    """
    return (right.float() - other.float()).square().mean(-1)


class Teacher:
    """A model with its LoRA, whose predictions on some batches another adapter is to make.

    They are made when a batch is first used, and kept: memory is a row of logits for each prediction.

    Args:
        model: The base model, with trained heads in place, in evaluation mode.
        batches: What the model sees; kept.
        source: The LoRA folder.
        predict: From model and batch to logits ``(predictions, classes)``, or other outputs.
        distance: What is far: :func:`kl_divergence` for logits.

    Raises:
        SpecError: For no batch.
        TargetError: Where the model lacks a layer of the LoRA.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("0", torch.ones(2, 5), torch.eye(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     teacher = Teacher(nn.Sequential(nn.Linear(5, 3)), [torch.ones(8, 5)], Path(parent) / "lora")
        >>> same = {"0": Factors(torch.ones(2, 5), torch.eye(3, 2))}
        >>> len(teacher), teacher.divergence(same) == teacher.loss(0, same).item() < 1e-6
        (1, True)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        source: str | os.PathLike[str],
        *,
        predict: Predict = predict,
        distance: Distance = kl_divergence,
    ) -> None:
        self.model, self.predict, self.distance = model, predict, distance
        self.batches = list(batches)
        if not self.batches:
            raise SpecError("there is no batch to compare predictions on")
        self.lora = lora_factors(source)
        modules_of(model, self.lora)
        self._right: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def loss(self, index: int, factors: Mapping[str, Factors]) -> Tensor:
        """Mean distance over the predictions of one batch, differentiable in the factors."""
        right = self._predictions(index)
        with attached(self.model, factors):
            return self.distance(right, self.predict(self.model, self.batches[index])).mean()

    def divergence(self, factors: Mapping[str, Factors]) -> float:
        """Mean distance over all predictions; SpecError where there are none."""
        rights = [self._predictions(index) for index in range(len(self))]
        with torch.no_grad(), attached(self.model, factors):
            found = [
                float(self.distance(right, self.predict(self.model, batch)).double().sum())
                for right, batch in zip(rights, self.batches, strict=True)
            ]
        count = sum(len(right) for right in rights)
        if not count:
            raise SpecError(f"{len(self)} batches have no prediction to compare: is every token masked?")
        return math.fsum(found) / count

    def _predictions(self, index: int) -> Tensor:
        """What the model says on a batch with its LoRA."""
        if index not in self._right:
            with torch.inference_mode(False), torch.no_grad(), attached(self.model, self.lora):
                self._right[index] = self.predict(self.model, self.batches[index])
        return self._right[index]


def model_divergence(
    model: nn.Module,
    batches: Iterable[Batch],
    source: str | os.PathLike[str],
    *,
    predict: Predict = predict,
    distance: Distance = kl_divergence,
) -> Divergence:
    """``KL(model with the LoRA ‖ model with other factors)``, the mean over the predictions of these batches.

    :meth:`Teacher.divergence` of these arguments. Use batches that were not used to calibrate or distil.

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
    return Teacher(model, batches, source, predict=predict, distance=distance).divergence
