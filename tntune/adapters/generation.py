"""Generation: what one generator finds ready, because a pass made it together with the rest."""

import weakref
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.adapters.slices import Record
from tntune.maps.chain import Chains

__all__ = ["Generation"]


class _Open(NamedTuple):
    """A pass that runs, known by its thread and by the backward inside of which it runs, if any."""

    place: tuple[int, int]
    sites: Sequence[Chains]


class _Made(NamedTuple):
    """What a pass made of these tensors: its record, weakly, and where in it the first site is."""

    tensors: tuple[tuple[Tensor, int], ...]
    record: "weakref.ref[Record]"
    first: int
    downs: int
    detached: set[int]


class Generation:
    """``take(own, site)`` is that site of what ``open`` was given, while it is valid.

    It is valid between ``open`` and ``close``, in the thread that opened, and after that for the
    recomputation of checkpointed layers in the backward, as long as the tensors are the same and unchanged;
    otherwise ``take`` gives None, and the site is generated alone. A site that was taken without gradient
    inside of a pass with gradient is in a reentrant checkpoint, whose backward goes through a graph of its
    own: it too is generated alone then. Nothing is held here after ``close``: the graph itself keeps what a
    recomputation needs, until a backward frees it.

    Copies and pickles are empty.

    Attributes:
        is_asked: Whether anything was taken, or asked for in vain, since the last ``open``.

    Example:
        >>> from tntune.adapters.slices import slices
        >>> core, generation, record = torch.ones(1, requires_grad=True), Generation(), Record()
        >>> made = slices(record, [core * torch.ones(2, 3, 5), core * torch.ones(2, 4, 3)])
        >>> generation.open([core], [Chains((down,), (up,)) for down, up in made], record)
        >>> [tuple(matrix.shape) for (matrix,) in generation.take(lambda: [core], 1)]
        [(3, 5), (4, 3)]
        >>> generation.close()
        >>> generation.take(lambda: [core], 1) is None
        True
    """

    def __init__(self) -> None:
        self.is_asked = True
        self._open: _Open | None = None
        self._made: list[_Made] = []

    def open(
        self, tensors: Sequence[Tensor], sites: Sequence[Chains], record: Record, first: int = 0
    ) -> None:
        """Begin a pass with all sites, made from these tensors: slices ``first ..`` of the record."""
        versions = tuple((tensor, tensor._version) for tensor in tensors)
        alive = [made for made in self._made if made.record() is not None]
        self._made = [_Made(versions, weakref.ref(record), first, len(sites[0].down), set()), *alive]
        self._open, self.is_asked = _Open(_place(), sites), False

    def close(self) -> None:
        """End the pass."""
        self._open = None

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def take(self, own: Callable[[], Sequence[Tensor]], site: int) -> Chains | None:
        """The matrices of a site, or None where they must be generated alone.

        ``own`` gives the present tensors, which are looked at only where something was made.
        """
        self.is_asked = True
        opened = self._open
        if opened is not None and opened.place == _place():
            return self._opened(opened, own(), site)
        if not self._made or torch._C._current_graph_task_id() == -1:
            return None
        tensors = own()
        return next((again for made in self._made if (again := _again(made, tensors, site))), None)

    def _opened(self, opened: _Open, tensors: Sequence[Tensor], site: int) -> Chains | None:
        """A site of the pass that runs."""
        made = self._made[0]
        if not _is_unchanged(made, tensors):
            return None
        if not torch.is_grad_enabled() and opened.sites[site].down[0].requires_grad:
            made.detached.add(site)
        return opened.sites[site]

    def __deepcopy__(self, memo: object) -> "Generation":
        return Generation()

    def __reduce__(self) -> tuple[type["Generation"], tuple[()]]:
        return Generation, ()


def _place() -> tuple[int, int]:
    """This thread, and the backward that runs in it: -1 for none."""
    return get_ident(), torch._C._current_graph_task_id()


def _again(made: _Made, tensors: Sequence[Tensor], site: int) -> Chains | None:
    """A site for a recomputation, where its graph still keeps it and its forward had a gradient."""
    record = made.record()
    if record is None or not record.stacks or site in made.detached or not _is_unchanged(made, tensors):
        return None
    parts = record.again(made.first + site)
    return Chains(tuple(parts[: made.downs]), tuple(parts[made.downs :]))


def _is_unchanged(made: _Made, tensors: Sequence[Tensor]) -> bool:
    pairs = zip(tensors, made.tensors, strict=True)
    return all(own is known and own._version == version for own, (known, version) in pairs)
