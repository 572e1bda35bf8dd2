"""Probe: the inputs and read-outs that a layer's kernel is taken on, the same for every adapter."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tntune.errors import CheckpointError, ModeError, SpecError

__all__ = ["Probe", "read_inputs"]


@dataclass(frozen=True)
class Probe:
    """Where kernels of single layers are taken: on n inputs, along C directions of the layer's outputs.

    Without inputs of your own they are standard normal, which no real layer sees. The read-outs are C
    orthonormal directions, drawn once for each output size: the kernel is n C x n C and not n Q x n Q.
    Everything is a function of the seed and the sizes; two adapters of one layer get the same.

    Attributes:
        samples: n, where inputs are drawn.
        outputs: C; a layer with fewer outputs is read whole.
        seed: Of both.
        inputs: Inputs ``(n, in_features)`` by module path, in place of drawn ones.

    Raises:
        SpecError: For sizes below 1 or a negative seed.

    Example:
        >>> Probe(samples=3).inputs_of("fc", 5).shape, Probe(outputs=2).readouts(4).shape
        (torch.Size([3, 5]), torch.Size([2, 4]))
    """

    samples: int = 32
    outputs: int = 4
    seed: int = 0
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.samples, self.outputs) < 1 or not 0 <= self.seed < 2**62:
            raise SpecError(
                f"a probe has at least one sample and one output and a seed of at least 0, "
                f"not {self.samples}, {self.outputs} and {self.seed}"
            )

    @property
    def words(self) -> str:
        """Where kernels are taken, in words."""
        inputs = "the given inputs" if self.inputs else f"{self.samples} standard normal inputs"
        return f"{inputs} (seed {self.seed}), read along {self.outputs} random directions of the outputs"

    def inputs_of(self, name: str, in_features: int) -> Tensor:
        """Inputs ``(n, in_features)`` of one layer, float64.

        Raises:
            ModeError: Where the given inputs have other sizes, or none are given for this layer.
        """
        if not self.inputs:
            return self._normal(self.samples, in_features, offset=0)
        if name not in self.inputs:
            raise ModeError(f"there are inputs for {len(self.inputs)} layers, but none for {name}")
        x = self.inputs[name]
        if x.ndim != 2 or x.shape[1] != in_features or not len(x):
            raise ModeError(f"{name}: inputs have shape (n, {in_features}), not {tuple(x.shape)}")
        return x.double()

    def readouts(self, out_features: int) -> Tensor:
        """Orthonormal rows ``(C, out_features)``, float64."""
        if self.outputs >= out_features:
            return torch.eye(out_features, dtype=torch.float64)
        q: Tensor = torch.linalg.qr(self._normal(out_features, self.outputs, offset=1)).Q
        return q.mT

    def labels(self, rows: int) -> Tensor:
        """Random labels of norm 1: what no adapter was made for."""
        y = self._normal(rows, 1, offset=2).flatten()
        unit: Tensor = y / y.norm()
        return unit

    def generator(self, offset: int) -> torch.Generator:
        """A generator of its own for each use."""
        return torch.Generator().manual_seed(self.seed + offset)

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "inputs": "given" if self.inputs else "standard normal",
            "samples": None if self.inputs else self.samples,
            "outputs": self.outputs,
            "seed": self.seed,
        }

    def _normal(self, *shape: int, offset: int) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=self.generator(offset), dtype=torch.float64)
        return drawn


def read_inputs(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Inputs by module path, as ``torch.save({path: x}, file)`` writes them; no code in the file is run.

    Raises:
        CheckpointError: Where the file cannot be read, or holds anything but float matrices by name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"fc": torch.ones(2, 3)}, Path(folder) / "inputs.pt")
        ...     read_inputs(Path(folder) / "inputs.pt")["fc"].shape
        torch.Size([2, 3])
    """
    try:
        found = torch.load(Path(file), map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{file}: not a file of tensors that torch.save wrote: {reason:.120}"
        ) from error
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{file}: must hold inputs (n, in_features) by module path")
    for name, x in found.items():
        if not (isinstance(name, str) and isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2):
            raise CheckpointError(f"{file}: {name!r:.80}: must be a float matrix (n, in_features)")
        if not bool(torch.isfinite(x).all()):
            raise CheckpointError(f"{file}: {name}: has entries that are NaN or infinite")
    return found
