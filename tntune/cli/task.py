"""The options that say what an adapter is used for, and what they make."""

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from tntune.checkpoint.calibration import open_calibration
from tntune.cli.calibrate import call, load_judge
from tntune.convert.distill import Distillation
from tntune.convert.divergence import Teacher, model_divergence
from tntune.convert.score import model_score
from tntune.convert.task import Task
from tntune.errors import SpecError

__all__ = ["CalibrationFile", "Distill", "Model", "Train", "check_task", "make_task"]

CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration", help="File of tntune calibrate: errors are weighed as the model feels them."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="With --calibration: package.module:function returning (base model, held-out batches), on "
        "which the candidates are judged; a third part, from a model to a number, is reported as a score."
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        help="With --distill: package.module:function returning batches to train on, or (model, batches) "
        "as for tntune calibrate; no labels, and none of the held-out batches."
    ),
]
Distill = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        help="Train the best candidates, one that shares and one that does not where both are close, for at "
        "most so many steps to predict what the LoRA predicts; never to a worse divergence.",
    ),
]


def check_task(
    calibration: Path | None, *, model: str | None, train: str | None, distill: int | None
) -> None:
    """Raise SpecError for an option without those that it needs.

    Example:
        >>> check_task(None, model="mine:held_out", train=None, distill=None)
        Traceback (most recent call last):
        tntune.errors.SpecError: --model judges candidates that --calibration makes; give both
    """
    if calibration is None and model is not None:
        raise SpecError("--model judges candidates that --calibration makes; give both")
    if (train is None) != (distill is None):
        raise SpecError("--distill STEPS trains on the batches of --train; give both")
    if distill is not None and model is None:
        raise SpecError(
            "--distill is judged on the held-out batches of --model, with --calibration; give all"
        )


def make_task(
    source: Path, calibration: Path | None, *, model: str | None, train: str | None, distill: int | None
) -> Task | None:
    """What the options say of the adapter's use; None where they say nothing.

    Raises:
        SpecError: For an option without those that it needs, or a function that returns something else.

    Example:
        >>> make_task(Path("lora"), None, model=None, train=None, distill=None) is None
        True
    """
    check_task(calibration, model=model, train=train, distill=distill)
    if calibration is None:
        return None
    opened = open_calibration(calibration)
    if model is None:
        return Task(opened)
    base, batches, own_score = load_judge(model)
    divergence = model_divergence(base, batches, source)
    score = model_score(base, own_score, source) if own_score else None
    if train is None or distill is None:
        return Task(opened, divergence, score=score)
    teacher = Teacher(base, _training_batches(train), source)
    return Task(opened, divergence, Distillation(teacher, distill), score)


def _training_batches(name: str) -> list[Any]:
    """Batches of a function that returns them, alone or after a model."""
    made = call("--train", name)
    if isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module):
        made = made[1]
    try:
        return list(made)
    except TypeError as error:
        raise SpecError(f"--train {name}: must return batches, not {type(made).__name__}") from error
