"""FactorCache: generated factors, kept while nothing that they come from has changed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tntune.maps.base import Factors

__all__ = ["FactorCache"]

Stamp = tuple[int, int, torch.dtype, torch.device]


class FactorCache:
    """``factors(tensors, site, make)`` equals ``make()``, and calls it only where one of the tensors changed.

    Nothing is kept where a gradient is wanted, under ``torch.func``, while ``torch.compile`` traces, and for
    tensors that are no plain ones of torch. A change is noticed by place, version, dtype and device of every
    tensor, which covers optimiser steps, ``load_state_dict``, moves, casts and any other in-place operation
    of torch. On the CPU the values are compared as well, so that writes through ``.data`` are noticed too;
    on an accelerator that would wait for the device, and such a write must be followed by :meth:`clear`.

    Copies and pickles of a cache are empty. Cost of a hit: one comparison of the tensors (they are small:
    cores, not factors).

    Example:
        >>> core, cache = nn.Parameter(torch.ones(2, 2)), FactorCache()
        >>> with torch.no_grad():
        ...     kept = [cache.factors([core], None, lambda: Factors(2 * core, 3 * core)) for _ in range(2)]
        >>> kept[0] is kept[1]
        True
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def factors(self, tensors: Sequence[Tensor], site: int | None, make: Callable[[], Factors]) -> Factors:
        """The factors of a site, or of all sites for None, that ``make`` computes from ``tensors``."""
        if torch.compiler.is_compiling() or not _are_settled(tensors):
            return make()
        if self._kept is None or not self._kept.holds(tensors):
            self._kept = _Kept.of(tensors)
        entries = self._kept.entries
        if site not in entries:
            entries[site] = make()
        return entries[site]

    def clear(self) -> None:
        """Forget everything."""
        self._kept = None

    def __deepcopy__(self, memo: object) -> "FactorCache":
        return FactorCache()

    def __reduce__(self) -> tuple[type["FactorCache"], tuple[()]]:
        return FactorCache, ()


class _Kept(NamedTuple):
    """Entries by site, with the state of the tensors that they come from."""

    stamps: tuple[Stamp, ...]
    values: tuple[Tensor | None, ...]
    inference: bool
    entries: dict[int | None, Factors]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "_Kept":
        values = tuple(t.detach().clone() if t.device.type == "cpu" else None for t in tensors)
        return cls(tuple(map(_stamp, tensors)), values, torch.is_inference_mode_enabled(), {})

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are as they were, and what is kept may be used in this mode."""
        if self.inference != torch.is_inference_mode_enabled() or self.stamps != tuple(map(_stamp, tensors)):
            return False
        pairs = zip(self.values, tensors, strict=True)
        return all(value is None or torch.equal(value, tensor) for value, tensor in pairs)


def _are_settled(tensors: Sequence[Tensor]) -> bool:
    """Whether no gradient is wanted, and all are torch's own tensors with a version to look at."""
    wanted = torch.is_grad_enabled()
    return all(
        type(tensor) in (Tensor, nn.Parameter)
        and not (wanted and tensor.requires_grad)
        and not tensor.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def _stamp(tensor: Tensor) -> Stamp:
    return tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device
