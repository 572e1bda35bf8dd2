"""Score: how well a model does its task, with its LoRA and with what becomes of it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tntune.convert.attach import attached
from tntune.convert.calibrate import lora_factors
from tntune.maps.base import Factors

__all__ = ["Score", "model_score"]


@dataclass(frozen=True)
class Score:
    """A number such as accuracy or perplexity, reported and never used to choose.

    Attributes:
        before: With the LoRA.
        after: From other factors of each layer, scale in up, to the number with them.

    Example:
        >>> Score(0.97, lambda factors: float(len(factors))).after({})
        0.0
    """

    before: float
    after: Callable[[Mapping[str, Factors]], float]


def model_score(
    model: nn.Module, score: Callable[[nn.Module], float], source: str | os.PathLike[str]
) -> Score:
    """``score(model with the LoRA)``, and the same with any other factors; no tensor is changed.

    Args:
        model: The base model, with trained heads in place, in evaluation mode.
        score: From the model, as it computes then, to a number.
        source: The LoRA folder.

    Raises:
        TargetError: Where the model lacks a layer of the LoRA.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> model = nn.Sequential(nn.Linear(5, 3, bias=False))
        >>> _ = nn.init.zeros_(model[0].weight)
        >>> with TemporaryDirectory() as parent:
        ...     lora = Path(parent) / "lora"
        ...     write_lora(lora, [LoraEntry("0", torch.ones(1, 5), torch.ones(3, 1))], base_config={})
        ...     found = model_score(model, lambda own: own(torch.ones(1, 5)).sum().item(), lora)
        >>> found.before, found.after({"0": Factors(torch.ones(1, 5), 2 * torch.ones(3, 1))})
        (15.0, 30.0)
    """

    def after(factors: Mapping[str, Factors]) -> float:
        with torch.no_grad(), attached(model, factors):
            return float(score(model))

    return Score(after(lora_factors(source)), after)
