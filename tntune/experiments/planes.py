"""A task of milliseconds: on which side of a plane is a point? To try settings on, and to show things."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.errors import SpecError
from tntune.experiments.task import Data, Split, Task

__all__ = ["Planes", "PlanesNetwork", "planes_task"]

_FEATURES, _WIDTH, _CLASSES = 12, 16, 2


class PlanesNetwork(nn.Module):
    """``head(x2)`` with ``x(k+1) = xk + relu(block k (xk))``: two blocks of one shape, dropout, and a head.

    Example:
        >>> PlanesNetwork(0.0)(torch.ones(3, 12)).shape
        torch.Size([3, 2])
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(_FEATURES, _WIDTH)
        self.norm = nn.BatchNorm1d(_WIDTH, affine=False)
        self.blocks = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Points ``(n, 12)`` to logits ``(n, 2)``."""
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = x + functional.relu(block(self.dropout(x)))
        logits: Tensor = self.head(x)
        return logits


class Planes(Task):
    """A random frozen network whose blocks are adapted and whose head trains; scored by accuracy.

    Args:
        dropout: Before each block.

    Example:
        >>> task = Planes()
        >>> task.data.sizes, sorted(task.evaluate(task.model(0), task.data.test))
        ({'train': 96, 'validation': 48, 'test': 64}, ['accuracy', 'loss'])
    """

    name = "planes"
    targets = ("blocks.0", "blocks.1")
    extras = ("head",)
    score = "accuracy"
    higher_is_better = True

    def __init__(self, dropout: float = 0.1) -> None:
        self.dropout = dropout
        self.data = Data(_points(96, 1), _points(48, 2), _points(64, 3))

    def model(self, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model = PlanesNetwork(self.dropout).requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        model.head.requires_grad_(True)
        return model

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["labels"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        training = model.training
        logits = model.eval()(split["x"])
        model.train(training)
        right = (logits.argmax(1) == split["labels"]).double().mean()
        return {"loss": float(functional.cross_entropy(logits, split["labels"])), "accuracy": float(right)}


def planes_task(scale: str, data: Path | None = None, *, dropout: float = 0.1) -> Planes:
    """The task, alike at every scale; it makes its own points.

    Args:
        scale: Any.
        data: None.
        dropout: Of the network.

    Raises:
        SpecError: For a folder of data, which there is none of.

    Example:
        >>> planes_task("smoke").name
        'planes'
    """
    if data is not None:
        raise SpecError(f"this task makes its own points and reads none from {data}")
    return Planes(dropout)


def _points(rows: int, seed: int) -> dict[str, Tensor]:
    """Normal points and the side of one plane, the same for all seeds, that each lies on."""
    plane = torch.randn(_FEATURES, generator=torch.Generator().manual_seed(0))
    x = torch.randn(rows, _FEATURES, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "labels": (x @ plane > 0).long()}
