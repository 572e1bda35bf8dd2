"""FactorCache: generated factors, kept while nothing that they come from has changed."""

from collections.abc import Callable, Hashable, Sequence
from ctypes import string_at
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["FactorCache"]

Made = TypeVar("Made", bound=tuple[object, ...])


class FactorCache:
    """``factors(tensors, key, make)`` equals ``make()``, and calls it only where one of the tensors changed.

    Nothing is kept where a gradient is wanted, under ``torch.func``, while ``torch.compile`` traces, and for
    tensors that are no plain ones of torch. A change is noticed by identity, version and place of every
    tensor, which covers optimiser steps, ``load_state_dict``, moves, casts and any other in-place operation
    of torch. On the CPU the bytes are compared as well, so that writes through ``.data`` are noticed too;
    on an accelerator that would wait for the device, and such a write must be followed by :meth:`clear`.

    Copies and pickles of a cache are empty. Cost of a hit: one comparison of the tensors (they are small:
    cores, not factors).

    Example:
        >>> from tntune.maps.base import Factors
        >>> core, cache = nn.Parameter(torch.ones(2, 2)), FactorCache()
        >>> with torch.no_grad():
        ...     kept = [cache.factors([core], None, lambda: Factors(2 * core, 3 * core)) for _ in range(2)]
        >>> kept[0] is kept[1]
        True
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def factors(self, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` computes from ``tensors``, kept under a key: a site, or None for all of them."""
        if torch.compiler.is_compiling():
            return make()
        if _is_gradient_wanted(tensors):
            self.clear()  # what is trained changes, under some wrappers in ways that leave no trace
            return make()
        kept = self._kept  # another thread may clear it
        if kept is None or not kept.holds(tensors):
            if not all(map(_is_plain, tensors)):
                return make()
            kept = self._kept = _Kept(tensors)
        entries = kept.entries
        if key not in entries:
            entries[key] = make()
        made: Made = entries[key]
        return made

    def clear(self) -> None:
        """Forget everything."""
        self._kept = None

    def __deepcopy__(self, memo: object) -> "FactorCache":
        return FactorCache()

    def __reduce__(self) -> tuple[type["FactorCache"], tuple[()]]:
        return FactorCache, ()


class _Kept:
    """Entries by site, with the state of the tensors that they come from."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.entries: dict[Hashable, Any] = {}
        self._states = [(t, t._version, t.data_ptr(), _comparison(t)) for t in tensors]
        self._inference = torch.is_inference_mode_enabled()

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are as they were, and what is kept may be used in this mode."""
        if self._inference != torch.is_inference_mode_enabled():
            return False
        for tensor, (known, version, place, is_same) in zip(tensors, self._states, strict=True):
            if tensor is not known or tensor._version != version or tensor.data_ptr() != place:
                return False
            if is_same is not None and not is_same():
                return False
        return True


def _is_gradient_wanted(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_plain(tensor: Tensor) -> bool:
    """Whether this is a tensor of torch's own, outside of ``torch.func``, with a version to look at."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return type(tensor) in (Tensor, nn.Parameter) and not wrapped and not tensor.is_inference()


def _comparison(tensor: Tensor) -> Callable[[], bool] | None:
    """What compares the values with those of now, where that does not wait for a device.

    Bytes are several times faster than ``torch.equal`` for tensors as small as cores. They are read in place,
    while the tensor is known to be there: a view for numpy would keep FSDP from freeing the storage.
    """
    if tensor.device.type != "cpu" or not tensor.untyped_storage().size():  # or freed at present, by FSDP
        return None
    if not tensor.is_contiguous() or tensor.is_neg():
        return partial(torch.equal, tensor.detach().clone(), tensor.detach())
    place, size = tensor.data_ptr(), tensor.nbytes
    known = string_at(place, size)
    return lambda: string_at(place, size) == known
