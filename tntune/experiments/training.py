"""Training: the settings of one loop for all methods, and its optimisers and schedules."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from tntune.adapters.generator import FactorGenerator
from tntune.errors import SpecError
from tntune.experiments.task import Split
from tntune.maps.base import positive
from tntune.theory.precondition import ScaledAdamW, core_groups

__all__ = ["OPTIMIZERS", "SCHEDULES", "Training", "batches", "optimizers"]

SELECTIONS = ("best", "last")


@dataclass(frozen=True)
class Training:
    """How long, how fast and in which steps a model trains; the same for all methods of a fair comparison.

    Attributes:
        epochs: Passes over the training split, or
        steps: steps; one of the two.
        batch_size: Examples of a step; the last batch of an epoch may be smaller.
        optimizer: ``"adam"``, ``"adamw"``, or ``"scaled_adamw"``: preconditioned for trains, AdamW for the
            rest.
        learning_rate: At the peak.
        weight_decay: Decoupled for AdamW, L2 for Adam.
        schedule: ``"constant"``, ``"cosine"`` to 0, or ``"step"``: a tenth after two thirds of the steps.
        warmup: Share of the steps in which the rate rises from 0.
        evaluations: How often the validation split is scored, beside the start; evenly spaced.
        select: ``"best"``: the state of the best validation score is tested; ``"last"``: the last one.

    Raises:
        SpecError: For a name or number out of range.

    Example:
        >>> Training(epochs=15, batch_size=16).total_steps(1800)
        1695
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 16
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    evaluations: int = 10
    select: str = "best"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise SpecError(f"give epochs or steps, not epochs={self.epochs} and steps={self.steps}")
        positive("steps" if self.epochs is None else "epochs", self.steps or self.epochs)
        for name in ("batch_size", "evaluations"):
            positive(name, getattr(self, name))
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("select", SELECTIONS)):
            if getattr(self, name) not in known:
                raise SpecError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 <= self.warmup < 1):
            raise SpecError(
                f"learning_rate is above 0, weight_decay at least 0 and warmup in [0, 1), "
                f"not {self.learning_rate}, {self.weight_decay}, {self.warmup}"
            )

    def total_steps(self, examples: int) -> int:
        """Steps of the whole training, on so many examples."""
        return self.steps or (self.epochs or 0) * math.ceil(examples / self.batch_size)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 1, over the peak.

        Example:
            >>> [Training(steps=3, schedule="step").rate(k, 3) for k in (1, 2, 3)]
            [1.0, 1.0, 0.1]
        """
        done = (step - 1) / total
        if done < self.warmup:
            return step / (self.warmup * total + 1)
        return SCHEDULES[self.schedule]((done - self.warmup) / (1 - self.warmup))


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "step": lambda done: 1.0 if done < 2 / 3 else 0.1,
}
"""Learning rate over its peak, as a function of the share of the steps that are done."""


def batches(split: Split, batch_size: int, generator: torch.Generator) -> Iterator[Split]:
    """Batches of a split without end: every epoch a new order, drawn from ``generator``.

    Example:
        >>> split = {"x": torch.arange(5)}
        >>> found = batches(split, 3, torch.Generator().manual_seed(0))
        >>> epoch = [next(found)["x"], next(found)["x"]]
        >>> [len(x) for x in epoch], torch.cat(epoch).sort().values.tolist()
        ([3, 2], [0, 1, 2, 3, 4])
    """
    rows = len(next(iter(split.values())))
    for _ in count():
        order = torch.randperm(rows, generator=generator)
        for chosen in torch.split(order, batch_size):
            yield {name: tensor[chosen] for name, tensor in split.items()}


def optimizers(model: nn.Module, training: Training) -> list[Optimizer]:
    """The optimisers of all that trains in a model; each parameter is in one.

    Raises:
        UnsupportedError: Where ``"scaled_adamw"`` meets a map that is not made of trains.

    Example:
        >>> [len(each.param_groups[0]["params"]) for each in optimizers(nn.Linear(3, 2), Training(steps=1))]
        [2]
    """
    return OPTIMIZERS[training.optimizer](model, training)


def _adam(model: nn.Module, training: Training) -> list[Optimizer]:
    return [Adam(_trainable(model), lr=training.learning_rate, weight_decay=training.weight_decay)]


def _adamw(model: nn.Module, training: Training) -> list[Optimizer]:
    return [AdamW(_trainable(model), lr=training.learning_rate, weight_decay=training.weight_decay)]


def _scaled_adamw(model: nn.Module, training: Training) -> list[Optimizer]:
    """Preconditioned steps for the cores of all maps, AdamW for what else trains."""
    generators = [module for module in model.modules() if isinstance(module, FactorGenerator)]
    groups = [group for each in generators for group in core_groups(each.map, dict(each.named_parameters()))]
    cores = {id(core) for group in groups for core in group["params"]}
    others = [parameter for parameter in _trainable(model) if id(parameter) not in cores]
    lr, decay = training.learning_rate, training.weight_decay
    made: list[Optimizer] = [ScaledAdamW(groups, lr=lr, weight_decay=decay)] if groups else []
    return made + ([AdamW(others, lr=lr, weight_decay=decay)] if others else [])


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


OPTIMIZERS: Mapping[str, Callable[[nn.Module, Training], list[Optimizer]]] = {
    "adam": _adam,
    "adamw": _adamw,
    "scaled_adamw": _scaled_adamw,
}
"""Makes the optimisers of a model, by the name in settings."""
