"""Generation: the factors of all sites, generated once for a forward pass of the whole model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tntune.maps.base import Factors

__all__ = ["Generation"]


class Generation:
    """``take(tensors, site)`` is that site of the factors that ``open`` was given, while they are valid.

    They are valid between ``open`` and ``close``, and after that for the recomputation of checkpointed layers
    in the backward, as long as the tensors are the same and unchanged; otherwise ``take`` gives None, and the
    site is generated alone. A site that was taken without gradient inside of a pass with gradient is in a
    reentrant checkpoint, whose backward goes through a graph of its own: it too is generated alone then.

    Copies and pickles are empty.

    Example:
        >>> core, generation = torch.ones(1, requires_grad=True), Generation()
        >>> generation.open([core], Factors(core * torch.ones(2, 3, 5), core * torch.ones(2, 4, 3)))
        >>> [tuple(factor.shape) for factor in generation.take([core], 1)]
        [(1, 3, 5), (1, 4, 3)]
        >>> generation.close()
        >>> generation.take([core], 1) is None
        True
    """

    def __init__(self) -> None:
        self._sites: tuple[Factors, ...] = ()
        self._tensors: tuple[tuple[Tensor, int], ...] = ()
        self._detached: set[int] = set()
        self._is_open = False

    def open(self, tensors: Sequence[Tensor], factors: Factors) -> None:
        """Begin a pass with the factors of all sites, made from these tensors."""
        parts = zip(*(factor.unbind() for factor in factors), strict=True)
        self._sites = tuple(Factors(down[None], up[None]) for down, up in parts)
        self._tensors = tuple((tensor, tensor._version) for tensor in tensors)
        self._detached, self._is_open = set(), True

    def close(self) -> None:
        """End the pass; factors with a gradient stay for a recomputation, others are forgotten."""
        self._is_open = False
        if not self._has_gradient or torch._C._are_functorch_transforms_active():
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def take(self, tensors: Sequence[Tensor], site: int) -> Factors | None:
        """The factors of a site, or None where they must be generated alone."""
        if not self._sites or not self._is_unchanged(tensors):
            return None
        if self._is_open:
            if self._has_gradient and not torch.is_grad_enabled():
                self._detached.add(site)
            return self._sites[site]
        is_recomputed = torch._C._current_graph_task_id() != -1
        return self._sites[site] if is_recomputed and site not in self._detached else None

    @property
    def _has_gradient(self) -> bool:
        return any(part.requires_grad for factors in self._sites[:1] for part in factors)

    def _is_unchanged(self, tensors: Sequence[Tensor]) -> bool:
        pairs = zip(tensors, self._tensors, strict=True)
        return all(own is known and own._version == version for own, (known, version) in pairs)

    def __deepcopy__(self, memo: object) -> "Generation":
        return Generation()

    def __reduce__(self) -> tuple[type["Generation"], tuple[()]]:
        return Generation, ()
