"""Task: data in three splits, a base model, and what counts as good."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tntune.errors import SpecError

__all__ = ["Data", "Split", "Task"]

Split = Mapping[str, Tensor]
"""Named tensors with one row for each example; a batch has the same names and fewer rows."""


@dataclass(frozen=True)
class Data:
    """Three disjoint splits: one to train on, one to tune and stop by, one that is looked at once.

    Attributes:
        train: Examples to train on.
        validation: Examples that choose.
        test: Examples that are reported.

    Raises:
        SpecError: Where tensors of one split differ in rows, or a split is empty.

    Example:
        >>> data = Data({"x": torch.ones(4, 2)}, {"x": torch.ones(2, 2)}, {"x": torch.ones(3, 2)})
        >>> data.sizes, len(data.digest())
        ({'train': 4, 'validation': 2, 'test': 3}, 16)
    """

    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name, split in self._splits().items():
            rows = {key: len(value) for key, value in split.items()}
            if len(set(rows.values())) != 1 or 0 in rows.values():
                raise SpecError(f"{name}: tensors of one split have one number of rows above 0, not {rows}")

    @property
    def sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {name: len(next(iter(split.values()))) for name, split in self._splits().items()}

    def digest(self) -> str:
        """Sixteen hex digits that change with any entry of any split."""
        digest = hashlib.sha256()
        for name, split in self._splits().items():
            for key, value in sorted(split.items()):
                digest.update(f"{name}/{key}/{tuple(value.shape)}/{value.dtype}".encode())
                digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


class Task(ABC):
    """What every method of a comparison gets alike: data, base model, loss and scores.

    Attributes:
        name: Such as ``"quantum-dot"``.
        data: The splits.
        targets: Paths of the linear layers that methods adapt.
        extras: Paths of modules that train under every method (a head, a first convolution); may be empty.
        score: Name of the score that chooses; one of those that :meth:`evaluate` returns.
        higher_is_better: Of that score.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> issubclass(Planes, Task), Planes.score
        (True, 'accuracy')
    """

    name: str
    data: Data
    targets: tuple[str, ...]
    extras: tuple[str, ...]
    score: str
    higher_is_better: bool

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A fresh base model: the same for the same seed, all its parameters frozen but those of extras."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        """The mean loss of a batch, to differentiate."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Scores of a model on a split, ``"loss"`` among them; the model is left in the mode it was in."""
