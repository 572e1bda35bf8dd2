"""The published diagrams: arrays of numbers in a folder of the user's."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tntune.errors import CheckpointError

__all__ = ["IMAGES", "LABELS", "NOISELESS", "load_published"]

IMAGES = "csds.npy"
NOISELESS = "csds_noiseless.npy"
LABELS = "labels.npy"


def load_published(folder: Path, *, noiseless: bool = False) -> tuple[Tensor, Tensor]:
    """The published 50 x 50 diagrams in their order, and whether each shows one dot or two.

    Nothing is unpickled. Diagrams are scaled to mean 0 and variance 1 each, as the generated ones are.

    Args:
        folder: Holds ``labels.npy``, and ``csds.npy`` or ``csds_noiseless.npy``.
        noiseless: Read the diagrams without noise.

    Returns:
        Diagrams (n, 1, 50, 50) in float32, and labels (n,) in int64: 0 for the lower of the two labels of the
        file, 1 for the higher.

    Raises:
        CheckpointError: Naming the file, and what is wrong with it: missing, no array of numbers, another
            shape, values that are not finite, a constant diagram, other than two labels.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     np.save(folder / "csds.npy", np.random.default_rng(0).normal(size=(3, 50, 50)))
        ...     np.save(folder / "labels.npy", np.array([1, 2, 2]))
        ...     images, labels = load_published(folder)
        >>> images.shape, labels.tolist()
        (torch.Size([3, 1, 50, 50]), [0, 1, 1])
    """
    path = folder / (NOISELESS if noiseless else IMAGES)
    raw, labels = _read(path), _read(folder / LABELS)
    count = len(labels) if labels.ndim else 0
    if raw.shape not in {(count, 50, 50), (count, 1, 50, 50)} or not count:
        raise CheckpointError(f"{path}: must hold {count} diagrams of 50 x 50, one a label, not {raw.shape}")
    return _scaled(path, raw), _two(folder / LABELS, labels)


def _read(path: Path) -> NDArray[np.generic]:
    """An array of numbers or truth values."""
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: no array of numbers in NumPy's format: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise CheckpointError(f"{path}: must hold real numbers, not {getattr(array, 'dtype', 'an archive')}")
    return array


def _scaled(path: Path, raw: NDArray[np.generic]) -> Tensor:
    """Diagrams of mean 0 and variance 1."""
    images = torch.from_numpy(raw.astype(np.float64)).reshape(len(raw), 1, 50, 50)
    spread = images.std(dim=(2, 3), keepdim=True)
    if not bool(torch.isfinite(images).all()):
        raise CheckpointError(f"{path}: holds values that are not finite")
    if not bool((spread > 0).all()):
        raise CheckpointError(f"{path}: diagram {int(spread.flatten().argmin())} is constant")
    return ((images - images.mean(dim=(2, 3), keepdim=True)) / spread).float()


def _two(path: Path, labels: NDArray[np.generic]) -> Tensor:
    """0 for the lower label, 1 for the higher."""
    values, places = np.unique(labels.reshape(len(labels), -1), return_inverse=True)
    if len(values) != 2 or places.size != len(labels):
        raise CheckpointError(
            f"{path}: must hold one of two labels a diagram, not {labels.shape} of {len(values)}"
        )
    return torch.from_numpy(places.reshape(-1)).long()
