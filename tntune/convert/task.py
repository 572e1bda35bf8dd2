"""Task: what is known of the use that an adapter is made for."""

from dataclasses import dataclass

from tntune.checkpoint.calibration import Calibration
from tntune.convert.distill import Distillation
from tntune.convert.divergence import Divergence
from tntune.convert.score import Score
from tntune.errors import SpecError

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What a conversion is weighed by, beside plain errors.

    Attributes:
        calibration: Makes the task norm, in which trains and weighted SVDs are fitted.
        divergence: Judges the candidates on held-out inputs (:func:`tntune.convert.model_divergence`);
            without it the task norm does.
        distillation: Trains the best candidates, judged by the divergence.
        score: Reported of the LoRA, the result and every truncated SVD (:func:`tntune.convert.model_score`).

    Raises:
        SpecError: For a distillation that nothing judges.

    Example:
        >>> import torch
        >>> Task(Calibration({"fc": torch.eye(3)}, {"fc": torch.eye(2)}, {"fc": "fc"})).divergence is None
        True
    """

    calibration: Calibration
    divergence: Divergence | None = None
    distillation: Distillation | None = None
    score: Score | None = None

    def __post_init__(self) -> None:
        if self.distillation is not None and self.divergence is None:
            raise SpecError("a distillation needs a divergence on held-out inputs, which judges it")
