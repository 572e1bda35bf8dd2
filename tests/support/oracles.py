"""Dense oracles in numpy: slow, short and obviously right. Nothing here imports tntune."""

from collections.abc import Sequence

import numpy as np


def tensor_of(cores: Sequence[np.ndarray]) -> np.ndarray:
    """Every entry of a train as a product of core slices, one by one; cores (r, n, r')."""
    entries = np.zeros([core.shape[1] for core in cores], dtype=np.result_type(*cores))
    for index in np.ndindex(*entries.shape):
        product = np.eye(1)
        for core, i in zip(cores, index, strict=True):
            product = product @ core[:, i, :]
        entries[index] = product[0, 0]
    return entries


def matrix_of(cores: Sequence[np.ndarray]) -> np.ndarray:
    """Every entry of a TT-matrix as a product of core slices; cores (r, n_in, n_out, r')."""
    rows, columns = [core.shape[1] for core in cores], [core.shape[2] for core in cores]
    entries = np.zeros((int(np.prod(rows)), int(np.prod(columns))), dtype=np.result_type(*cores))
    for row, i in enumerate(np.ndindex(*rows)):
        for column, j in enumerate(np.ndindex(*columns)):
            product = np.eye(1)
            for core, a, b in zip(cores, i, j, strict=True):
                product = product @ core[:, a, b, :]
            entries[row, column] = product[0, 0]
    return entries


def spectra_of(tensor: np.ndarray) -> list[np.ndarray]:
    """Singular values of each unfolding, from the first bond to the last."""
    sizes = [int(np.prod(tensor.shape[:k])) for k in range(1, tensor.ndim)]
    return [np.linalg.svd(tensor.reshape(rows, -1), compute_uv=False) for rows in sizes]


def tail_of(spectrum: np.ndarray, rank: int) -> float:
    """Squared error of the best approximation of that rank."""
    return float(np.sum(np.abs(spectrum[rank:]) ** 2))


def parameters_of(ranks: Sequence[int], modes: Sequence[int]) -> int:
    """Core entries of a train, from its interior ranks."""
    left, right = [1, *ranks], [*ranks, 1]
    return sum(a * n * b for a, n, b in zip(left, modes, right, strict=True))


def is_admissible(ranks: Sequence[int], modes: Sequence[int]) -> bool:
    """Whether no rank exceeds what its neighbours and their modes can carry."""
    ends = [1, *ranks, 1]
    return all(
        ends[k + 1] <= ends[k] * n and ends[k] <= n * ends[k + 1]
        for k, n in enumerate(modes)
        if 0 < k < len(modes) - 1
    ) and (len(modes) == 1 or (ends[1] <= modes[0] and ends[-2] <= modes[-1]))


def damped_sines(size: int, noise: float) -> np.ndarray:
    """Five damped sines, a vector of TT-ranks up to 10, with white noise of that relative size."""
    t = np.arange(size) / size
    signal = sum(np.exp(-k * t) * np.sin(2 * np.pi * (3 + 7 * k) * t) for k in range(1, 6))
    white = np.random.default_rng(0).standard_normal(size)
    return signal + noise * white * np.linalg.norm(signal) / np.linalg.norm(white)
