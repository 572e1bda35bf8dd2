"""distill: a candidate's tensors, trained until the model says with them what it said with its LoRA."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from tntune.convert.candidate import Candidate
from tntune.convert.divergence import Divergence, Teacher
from tntune.convert.encode import stored
from tntune.convert.progress import Progress
from tntune.errors import NumericalError, SpecError

__all__ = ["Distillation", "DistillationReport", "distill"]

_RATE = 0.004
_EVERY = 10  # steps between judgements
_WARM = 10  # steps of rising rate after each new beginning
_RISE, _FALL = 1.15, 0.5  # of the rate after a stretch of steps that helped, or was taken back
_PATIENCE = 1.5  # times the least divergence: what is above is taken back, what is below may be noise
_FIRST, _SECOND = 0.9, 0.99  # decay of Adam's moments
_TINY = 1e-12


@dataclass(frozen=True)
class Distillation:
    """How the best candidates are trained.

    Attributes:
        teacher: The LoRA's predictions on batches to train on, others than those that judge.
        steps: At most so many, one batch each.
        rate: Relative step at first: no entry moves by more than about that share of its tensor's root mean
            square. It rises while the held-out divergence falls, and is halved where that leaps.
        seed: Of the order of the batches.

    Raises:
        SpecError: For fewer than one step, or a rate that is not above 0.

    Example:
        >>> Distillation.__dataclass_fields__["rate"].default
        0.004
    """

    teacher: Teacher
    steps: int
    rate: float = _RATE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"distillation takes at least 1 step, not {self.steps}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise SpecError(f"the rate of distillation must be a number above 0, not {self.rate}")


@dataclass(frozen=True)
class DistillationReport:
    """What became of a distillation.

    Attributes:
        steps: Steps taken.
        best_step: The step whose tensors were kept; 0 where none was better than the start.
        seed: Seed of the order of the batches.
        rate: Relative rate at first.
        last_rate: The same at the end, without the cosine.
        seconds: Time taken.
        before: Held-out divergence at the start.
        after: That of the tensors that were kept; never more.

    Example:
        >>> DistillationReport(120, 110, 0, 0.004, 0.005, 60.0, 0.3, 0.1).after
        0.1
    """

    steps: int
    best_step: int
    seed: int
    rate: float
    last_rate: float
    seconds: float
    before: float
    after: float

    def metadata(self) -> dict[str, float]:
        """What a checkpoint keeps: all but the time, so that the same seed makes the same folder."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}


@torch.inference_mode(False)
@torch.enable_grad()
def distill(
    candidate: Candidate,
    distillation: Distillation,
    judge: Divergence,
    *,
    progress: Progress | None = None,
) -> tuple[Candidate, DistillationReport]:
    """The best state of a training: ``judge(result.factors()) <= judge(candidate.factors())``.

    Adam on all tensors at once, its steps relative to the size of each tensor. Every ten steps the tensors
    are judged as they would be stored, and the best are kept. After a stretch that helped the rate rises a
    little; one that ends far above the best is taken back and the rate halved, so a rate that is too high
    costs steps and does no harm. Beside that the rate falls to zero along a cosine.

    Args:
        candidate: Of linear maps, as converted: trains, shared trains, or truncated SVDs.
        distillation: Teacher, steps, rate, seed.
        judge: From factors to the held-out divergence.
        progress: Called after every step.

    Returns:
        The candidate with its tensors trained, in their dtypes, and what happened; the candidate itself where
        no step helped.

    Example:
        >>> distill.__name__
        'distill'

    Reference: Kingma and Ba (2015); Hinton, Vinyals and Dean (2015) for what is imitated.
    """
    started = time.perf_counter()
    training = _Training(candidate)
    best, best_step, rate = training.state(), 0, distillation.rate
    before = least = judge(candidate.factors())
    order = _Order(len(distillation.teacher), distillation.seed)
    for step in range(1, distillation.steps + 1):
        loss = distillation.teacher.loss(order.next(), training.student.factors())
        training.step(loss, rate * _decay(step, distillation.steps))
        if step % _EVERY == 0 or step == distillation.steps:
            found = _judged(training, judge)
            if found < least:
                best, best_step, least = training.state(), step, found
                rate *= _RISE
            elif not found <= _PATIENCE * least:
                training = _Training(candidate) if not math.isfinite(found) else training
                training.restart(best)
                rate *= _FALL
        if progress:
            progress("distill", step, distillation.steps)
    training.restart(best)
    seconds = time.perf_counter() - started
    report = DistillationReport(
        distillation.steps,
        best_step,
        distillation.seed,
        distillation.rate,
        rate,
        seconds,
        before,
        least,
    )
    return (training.result() if best_step else candidate), report


def _judged(training: "_Training", judge: Divergence) -> float:
    """The divergence of the tensors as stored; infinite where they cannot be."""
    try:
        return judge(training.result().factors())
    except NumericalError:
        return math.inf


def _decay(step: int, steps: int) -> float:
    """From 1 to nearly 0."""
    return 0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps)


class _Order:
    """Batches in random order, all of them before one comes again."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)
        self.left: list[int] = []

    def next(self) -> int:
        """The next batch."""
        if not self.left:
            self.left = torch.randperm(self.count, generator=self.generator).tolist()
        return self.left.pop()


class _Training:
    """A candidate whose tensors are leaves, with Adam's moments."""

    def __init__(self, candidate: Candidate) -> None:
        self.start = candidate
        self.student = replace(
            candidate,
            pieces=tuple(
                (group, {name: _leaf(value, name in group.map.param_shapes) for name, value in own.items()})
                for group, own in candidate.pieces
            ),
        )
        self.leaves = [
            value for _, own in self.student.pieces for value in own.values() if value.requires_grad
        ]
        self.scales = [float(leaf.detach().square().mean().sqrt()) for leaf in self.leaves]
        self.squares = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.steps = 0
        self.restart(self.state())

    def state(self) -> list[Tensor]:
        """A copy of the leaves."""
        return [leaf.detach().clone() for leaf in self.leaves]

    def restart(self, state: Sequence[Tensor]) -> None:
        """Go on from a state, without momentum."""
        with torch.no_grad():
            for leaf, value in zip(self.leaves, state, strict=True):
                leaf.copy_(value)
        self.means = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.age = 0

    def step(self, loss: Tensor, rate: float) -> None:
        """One step of Adam, relative to each leaf's size."""
        gradients = _gradients(loss, self.leaves)
        self.age, self.steps = self.age + 1, self.steps + 1
        rate *= min(1.0, self.age / _WARM) / (1 - _FIRST**self.age)
        known = 1 - _SECOND**self.steps
        with torch.no_grad():
            for leaf, gradient, scale, mean, square in zip(
                self.leaves, gradients, self.scales, self.means, self.squares, strict=True
            ):
                mean.lerp_(gradient, 1 - _FIRST)
                square.lerp_(gradient.square(), 1 - _SECOND)
                leaf -= rate * scale * mean / ((square / known).sqrt() + _TINY)

    def result(self) -> Candidate:
        """The candidate as stored."""
        pieces = tuple(
            (group, {name: stored(own[name].detach(), old[name].dtype) for name in own})
            for (group, own), (_, old) in zip(self.student.pieces, self.start.pieces, strict=True)
        )
        return Candidate(f"{self.start.name}, distilled", pieces)


def _gradients(loss: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of each leaf; zero for one that the batch does not reach, as all may be."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def _leaf(value: Tensor, trained: bool) -> Tensor:
    """A copy of at least float32."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
    return wide.requires_grad_(trained)
