"""Plain SVD truncation of many layers at one size: the baseline of every conversion."""

import heapq
from collections.abc import Mapping

from torch import Tensor

__all__ = ["svd_errors"]


def svd_errors(spectra: Mapping[str, Tensor], sizes: Mapping[str, int], budget: int) -> dict[str, float]:
    """Squared error that truncated SVDs leave in each layer, with at most ``budget`` parameters in total.

    Ranks go one by one to the layer whose next singular value brings most squared norm per parameter; since
    singular values fall, no other ranks of the same total size leave less, up to the last rank that fits.

    Args:
        spectra: Singular values of each layer's ΔW, falling.
        sizes: Parameters of one rank of each layer, ``in + out``.
        budget: Total number of parameters.

    Example:
        >>> import torch
        >>> svd_errors({"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0])}, {"a": 5, "b": 5}, 10)
        {'a': 0.0, 'b': 1.0}
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
    return {name: sum(values[ranks[name] :], 0.0) for name, values in squares.items()}
