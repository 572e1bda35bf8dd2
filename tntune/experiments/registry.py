"""Tasks by name: those that come with tntune, and any function of your own."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tntune.errors import SpecError
from tntune.experiments.loading import attribute
from tntune.experiments.task import Task

__all__ = ["SCALES", "TASKS", "make_task"]

SCALES = ("smoke", "small", "paper")
"""How large an experiment is: minutes, an hour or two, or what the paper ran."""

TASKS: Mapping[str, str] = {
    "planes": "tntune.experiments.planes:planes_task",
    "quantum-dot": "tntune.experiments.quantum_dots.task:quantum_dot_task",
    "wikitext": "tntune.experiments.language:wikitext_task",
    "sentences": "tntune.experiments.sentences:sentences_task",
}
"""Where the function of each task is; it is loaded when the task is made, since tasks need extras."""


def make_task(name: str, scale: str, *, data: Path | None = None, options: Mapping[str, Any]) -> Task:
    """A task by its name, or by ``module:function`` of a function ``(scale, data, **options) -> Task``.

    Args:
        name: One of :data:`TASKS`, or a reference.
        scale: One of :data:`SCALES`.
        data: Folder with the task's data; without it the task makes its own.
        options: Keyword arguments of the function.

    Raises:
        SpecError: For an unknown name, scale or option.
        UnsupportedError: Where an extra is missing.

    Example:
        >>> make_task("planes", "smoke", options={"dropout": 0.0}).data.sizes
        {'train': 96, 'validation': 48, 'test': 64}
    """
    if name not in TASKS and ":" not in name:
        raise SpecError(f"task must be one of {', '.join(TASKS)}, or module:function, not {name!r}")
    if scale not in SCALES:
        raise SpecError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    factory = attribute(TASKS.get(name, name))
    try:
        inspect.signature(factory).bind(scale, data, **options)
    except TypeError as error:
        raise SpecError(f"{name}: {error}") from error
    task = factory(scale, data, **options)
    if not isinstance(task, Task):
        raise SpecError(f"{name} made a {type(task).__name__}, not a Task")
    return task
