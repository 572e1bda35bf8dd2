"""Plain SVD truncation of many layers at one size: the baseline of every conversion."""

import heapq
from collections.abc import Mapping

from torch import Tensor

__all__ = ["even_ranks", "svd_errors", "svd_ranks"]


def svd_ranks(spectra: Mapping[str, Tensor], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks of truncated SVDs of many layers with at most ``budget`` parameters that leave least in total.

    Ranks go one by one to the layer whose next singular value brings most squared norm per parameter; since
    singular values fall, no other ranks of the same total size leave less, up to the last rank that fits.

    Args:
        spectra: Singular values of each layer's ΔW, falling.
        sizes: Parameters of one rank of each layer, ``in + out``.
        budget: Total number of parameters.

    Example:
        >>> import torch
        >>> svd_ranks({"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0])}, {"a": 5, "b": 5}, 10)
        {'a': 2, 'b': 0}
    """
    squares = {name: values.double().square().tolist() for name, values in spectra.items()}
    ranks = dict.fromkeys(squares, 0)
    queue = [(-values[0] / sizes[name], name) for name, values in squares.items() if values]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if sizes[name] > budget:
            continue
        budget -= sizes[name]
        ranks[name] += 1
        if ranks[name] < len(squares[name]):
            heapq.heappush(queue, (-squares[name][ranks[name]] / sizes[name], name))
    return ranks


def even_ranks(widths: Mapping[str, int], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """The same share of every layer's rank, rounded down; what is left over goes one rank a layer, in order.

    Example:
        >>> even_ranks({"a": 4, "b": 4}, {"a": 5, "b": 5}, 25)
        {'a': 3, 'b': 2}
    """
    share = min(1.0, budget / sum(widths[name] * sizes[name] for name in widths))
    ranks = {name: int(share * width + 1e-9) for name, width in widths.items()}
    left = budget - sum(rank * sizes[name] for name, rank in ranks.items())
    for name, rank in ranks.items():
        if rank < widths[name] and sizes[name] <= left:
            ranks[name], left = rank + 1, left - sizes[name]
    return ranks


def svd_errors(spectra: Mapping[str, Tensor], sizes: Mapping[str, int], budget: int) -> dict[str, float]:
    """Squared error that truncated SVDs leave in each layer, with at most ``budget`` parameters in total.

    The ranks are those of :func:`svd_ranks`, which takes the same arguments.

    Example:
        >>> import torch
        >>> svd_errors({"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0])}, {"a": 5, "b": 5}, 10)
        {'a': 0.0, 'b': 1.0}
    """
    ranks = svd_ranks(spectra, sizes, budget)
    return {
        name: sum(values.double().square()[ranks[name] :].tolist(), 0.0) for name, values in spectra.items()
    }
