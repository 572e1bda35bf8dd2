"""Run: one training of one method on one task with one seed, and all that determines it."""

import json
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import torch

from tntune.errors import SpecError
from tntune.experiments.attach import attach, stored_bytes
from tntune.experiments.kernel import start_kernel
from tntune.experiments.loop import Progress, stream, train
from tntune.experiments.machine import environment, moved, seeded
from tntune.experiments.method import Method
from tntune.experiments.record import Record
from tntune.experiments.task import Task
from tntune.experiments.training import Training

__all__ = ["ROLES", "Assignment", "Run", "perform", "with_setting"]

ROLES = ("tuning", "final")
"""Why a run is made: to choose a setting by validation, or to be reported."""

_VERSION = 1  # changes where the same settings would give another result


@dataclass(frozen=True)
class Assignment:
    """Which task, of which experiment, and at which scale.

    Attributes:
        experiment: Name of the experiment.
        task: Name of the task.
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        options: Options of the task.

    Example:
        >>> Assignment("quantum-dot", "quantum-dot", "smoke", {}).scale
        'smoke'
    """

    experiment: str
    task: str
    scale: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: equal runs on equal data have equal keys, and give equal results on one machine.

    Attributes:
        assignment: The task.
        method: The contender, with its scale.
        budget: Parameters that its adapter may have; None where its size is given.
        training: The settings.
        seed: Of base model, start, order and dropout.
        role: ``"tuning"`` or ``"final"``; not part of the key.

    Example:
        >>> lora = Method.from_table({"label": "LoRA", "method": "lora"})
        >>> run = Run(Assignment("demo", "demo", "smoke", {}), lora, 100, Training(steps=5), seed=0)
        >>> run.key("0123") == replace(run, role="tuning").key("0123") != run.key("4567")
        True
    """

    assignment: Assignment
    method: Method
    budget: int | None
    training: Training
    seed: int
    role: str = "final"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise SpecError(f"role must be one of {', '.join(ROLES)}, not {self.role!r}")

    def key(self, data: str) -> str:
        """Sixteen hex digits of everything that determines the run, on data of this digest."""
        facts = {**self.to_json(), "data": data, "version": _VERSION}
        del facts["role"]
        text = json.dumps(facts, sort_keys=True)
        return sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The run as a record stores it."""
        return {
            **asdict(self.assignment),
            "method": self.method.to_table(),
            "budget": self.budget,
            "training": asdict(self.training),
            "seed": self.seed,
            "role": self.role,
        }


def perform(run: Run, task: Task, *, device: torch.device, progress: Progress | None = None) -> Record:
    """Train, choose by validation, test once; the record holds all of it.

    Args:
        run: What to do.
        task: Its task, made already: several runs share it.
        device: Where to train.
        progress: Called after every step.

    Raises:
        SpecError: Where the method does not fit the task or the budget.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> lora = Method.from_table({"label": "LoRA", "method": "lora"})
        >>> run = Run(Assignment("demo", "planes", "smoke", {}), lora, 200, Training(steps=5), seed=0)
        >>> record = perform(run, Planes(), device=torch.device("cpu"))
        >>> record.label, record.params
        ('LoRA', {'adapter': 192, 'head': 34})
    """
    started = time.perf_counter()
    with seeded(stream(run.seed, "model"), device):
        model = task.model(stream(run.seed, "model"))
    generator = torch.Generator().manual_seed(stream(run.seed, "start"))
    attached = attach(task, model, run.method, budget=run.budget, generator=generator)
    model.to(device)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kernel = start_kernel(task, model) if run.role == "final" and run.method.has_maps else None
    history = train(task, model, run.training, seed=run.seed, progress=progress)
    return Record(
        key=run.key(task.data.digest()),
        run=run.to_json(),
        data={"digest": task.data.digest(), "sizes": task.data.sizes},
        score=task.score,
        higher_is_better=task.higher_is_better,
        size=attached.size,
        params=attached.params,
        bytes=stored_bytes(model, before),
        validation=dict(history.scores)[history.best_step],
        test=task.evaluate(model, moved(task.data.test, device)),
        losses=history.losses,
        scores=history.scores,
        steps=history.steps,
        best_step=history.best_step,
        diverged=history.diverged,
        kernel=kernel,
        measured={
            "wall_seconds": round(time.perf_counter() - started, 3),
            "ms_per_step": round(history.ms_per_step, 4),
            "memory_bytes": history.memory_bytes,
        },
        environment=environment(device),
    )


def with_setting(run: Run, *, learning_rate: float, scale: float) -> Run:
    """The same run at another point of the grid.

    Example:
        >>> lora = Method.from_table({"label": "LoRA", "method": "lora"})
        >>> run = Run(Assignment("demo", "demo", "smoke", {}), lora, 100, Training(steps=5), seed=0)
        >>> with_setting(run, learning_rate=0.5, scale=2.0).training.learning_rate
        0.5
    """
    training = replace(run.training, learning_rate=learning_rate)
    return replace(run, method=replace(run.method, scale=scale), training=training)
