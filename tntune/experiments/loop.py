"""train: the one loop that every method goes through, and what it leaves behind."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import median

import torch
from torch import Tensor, nn

from tntune.errors import NumericalError
from tntune.experiments.machine import memory_bytes, moved, seeded
from tntune.experiments.task import Task
from tntune.experiments.training import Training, batches, optimizers

__all__ = ["MAX_POINTS", "History", "Progress", "stream", "train"]

MAX_POINTS = 50
"""Points of a curve in a record."""

Progress = Callable[[int, int], None]
"""Called with ``(steps done, steps)``."""


@dataclass
class History:
    """What happened in a training.

    Attributes:
        losses: ``(step, mean training loss of the steps since the last point)``, at most 50 points.
        scores: ``(step, scores on validation)``, with step 0 first.
        best_step: The step whose state the model was left in.
        steps: Steps that were made.
        diverged: Whether a loss was not finite, which ended the training.
        ms_per_step: Median wall time of a step without evaluation.
        memory_bytes: The most memory seen at the end of a forward: resident on a CPU, allocated on a GPU.

    Example:
        >>> History().diverged
        False
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0
    diverged: bool = False
    ms_per_step: float = 0.0
    memory_bytes: int = 0


def stream(seed: int, use: str) -> int:
    """A seed for one use: independent of those for other uses and of other seeds.

    Example:
        >>> stream(0, "order") != stream(0, "start") != stream(1, "start")
        True
    """
    return int.from_bytes(sha256(f"{use}/{seed}".encode()).digest()[:6], "big")


def train(
    task: Task, model: nn.Module, training: Training, *, seed: int, progress: Progress | None = None
) -> History:
    """Train what trains of a model and leave it in the state that ``training.select`` names.

    The same task, model, settings and seed give the same state on one machine: the order of the batches and
    dropout have generators of their own, and torch's global one is afterwards as it was.

    Args:
        task: Gives data, loss and scores.
        model: With the method in it, on its device; trained in place.
        training: The settings.
        seed: Of order and dropout.
        progress: Called after every step.

    Returns:
        Curves, times and memory.

    Raises:
        NumericalError: Where a validation score of the start is not finite.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> task = Planes()
        >>> history = train(task, task.model(0), Training(steps=40, learning_rate=0.03), seed=0)
        >>> history.steps, history.losses[-1][1] < history.losses[0][1]
        (40, True)
    """
    course = _Course(task, model, training)
    generator = torch.Generator().manual_seed(stream(seed, "order"))
    endless = batches(task.data.train, training.batch_size, generator)
    course.evaluate(0)
    if course.history.diverged:
        raise NumericalError(f"{task.name}: a validation score is not finite before the first step")
    with seeded(stream(seed, "training"), course.device):
        for step in range(1, course.total + 1):
            course.step(step, moved(next(endless), course.device))
            if course.history.diverged:
                break
            if step in course.due:
                course.evaluate(step)
            if progress is not None:
                progress(step, course.total)
    return course.finish()


class _Course:
    """A training under way: optimisers, curves and the best state so far."""

    def __init__(self, task: Task, model: nn.Module, training: Training) -> None:
        self.task, self.model, self.training = task, model, training
        self.device = next(model.parameters()).device
        self.total = training.total_steps(task.data.sizes["train"])
        self.due = _spaced(self.total, training.evaluations)
        self.thinned = _spaced(self.total, MAX_POINTS)
        self.optimizers = optimizers(model, training)
        self.validation = moved(task.data.validation, self.device)
        self.history = History()
        self.best: dict[str, Tensor] = {}
        self.recent: list[float] = []
        self.times: list[float] = []

    def step(self, step: int, batch: dict[str, Tensor]) -> None:
        """One batch forwards and backwards."""
        started = time.perf_counter()
        self.model.train()
        rate = self.training.learning_rate * self.training.rate(step, self.total)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self.task.loss(self.model, batch)
        self.history.memory_bytes = max(self.history.memory_bytes, memory_bytes(self.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            self.history.diverged = True
            return
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        self.times.append(time.perf_counter() - started)
        self._note(step, value)

    def evaluate(self, step: int) -> None:
        """Score the validation split, and keep the state where it is the one to test."""
        scores = self.task.evaluate(self.model, self.validation)
        if not all(map(math.isfinite, scores.values())):
            self.history.diverged = True
            return
        previous = [earlier[self.task.score] for _, earlier in self.history.scores]
        self.history.scores.append((step, scores))
        sign = 1 if self.task.higher_is_better else -1
        better = all(sign * scores[self.task.score] > sign * value for value in previous)
        if better or self.training.select == "last":
            self.history.best_step = step
            self.best = copy.deepcopy(_state(self.model))

    def finish(self) -> History:
        """Restore the state to test."""
        current = _state(self.model)
        with torch.no_grad():
            for name, tensor in self.best.items():
                current[name].copy_(tensor)
        self.history.ms_per_step = 1000 * median(self.times) if self.times else 0.0
        return self.history

    def _note(self, step: int, loss: float) -> None:
        self.history.steps = step
        self.recent.append(loss)
        if step in self.thinned:
            mean = sum(self.recent) / len(self.recent)
            self.history.losses.append((step, float(f"{mean:.6g}")))  # a curve is looked at
            self.recent = []


def _state(model: nn.Module) -> dict[str, Tensor]:
    """All that training can change: parameters that train, and buffers."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def _spaced(total: int, points: int) -> set[int]:
    """At most so many evenly spaced steps, the last one among them."""
    count = min(points, total)
    return {total - k * total // count for k in range(count)}
