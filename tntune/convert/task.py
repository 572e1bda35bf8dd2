"""Task: what is known of the use that an adapter is made for."""

from dataclasses import dataclass

from tntune.checkpoint.calibration import Calibration
from tntune.convert.divergence import Divergence

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What a conversion is weighed by, beside plain errors.

    Attributes:
        calibration: Makes the task norm, in which trains and weighted SVDs are fitted.
        divergence: Judges the candidates on held-out inputs (:func:`tntune.convert.model_divergence`);
            without it the task norm does.

    Example:
        >>> import torch
        >>> Task(Calibration({"fc": torch.eye(3)}, {"fc": torch.eye(2)}, {"fc": "fc"})).divergence is None
        True
    """

    calibration: Calibration
    divergence: Divergence | None = None
