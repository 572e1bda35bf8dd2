"""A task of a few milliseconds: two classes on the sides of a plane, and a small network to adapt."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.experiments.task import Data, Split, Task

FEATURES, HIDDEN, CLASSES = 12, 16, 2


def split(rows: int, seed: int) -> dict[str, Tensor]:
    """Points and the side that each lies on; the plane is the same for every seed."""
    plane = torch.randn(FEATURES, generator=torch.Generator().manual_seed(0))
    x = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "labels": (x @ plane > 0).long()}


class Network(nn.Module):
    """Two blocks of one shape and a head, with normalisation and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN, affine=False)
        self.blocks = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = x + functional.relu(block(self.dropout(x)))
        scores: Tensor = self.head(x)
        return scores


class Planes(Task):
    """Classification by accuracy."""

    name = "synthetic"
    targets = ("blocks.0", "blocks.1")
    extras = ("head",)
    score = "accuracy"
    higher_is_better = True

    def __init__(self, dropout: float = 0.1) -> None:
        self.dropout = dropout
        self.data = Data(split(96, 1), split(48, 2), split(64, 3))

    def model(self, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model = Network(self.dropout).requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        model.head.requires_grad_(True)
        return model

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        return functional.cross_entropy(model(batch["x"]), batch["labels"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        mode = model.training
        scores = model.eval()(split["x"])
        model.train(mode)
        loss = functional.cross_entropy(scores, split["labels"])
        right = (scores.argmax(1) == split["labels"]).double().mean()
        return {"loss": float(loss), "accuracy": float(right)}


def planes(scale: str, data: Path | None = None, *, dropout: float = 0.1) -> Planes:
    """The task, alike at every scale."""
    return Planes(dropout)
