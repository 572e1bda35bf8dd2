"""Mode sizes for any number of features: balanced factors, with as little padding as balance allows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from tntune.errors import ModeError

__all__ = ["Modes", "auto_modes"]

_LARGEST = 16  # largest mode unless the caller says otherwise
_NEGLIGIBLE = 1000  # a padding of at most n / 1000 is not worth a less balanced product
_WORTH_A_MODE = 100  # one above n / 100 is worth one more mode


@dataclass(frozen=True)
class Modes:
    """Mode sizes of n features: ``prod(sizes) == n + padding``.

    Example:
        >>> Modes((8, 8, 12), 0).sizes
        (8, 8, 12)
    """

    sizes: tuple[int, ...]
    padding: int


def auto_modes(n: int, *, order: int | None = None, max_mode: int | None = None) -> Modes:
    """Balanced mode sizes of any n >= 1, primes too: ``prod(sizes) == n + padding``.

    A product is balanced where no mode exceeds twice the smallest c with ``c**order >= n``, nor ``max_mode``.
    If n itself has balanced factors, those with the smallest largest mode are taken and nothing is padded.
    Otherwise n is padded: to the most balanced product with at most n / 1000 added entries or, where there is
    none, to the nearest balanced product. Padded entries are sliced away; a train need not generate them.

    Args:
        n: Number of features.
        order: Number of modes. By default the fewest that keep every mode within ``max_mode``, or one more
            where that avoids a padding above n / 100.
        max_mode: Largest mode; 16 where neither this nor ``order`` is given.

    Returns:
        Sizes in non-decreasing order, and the padding. Deterministic; milliseconds for n up to 1e9.

    Raises:
        ModeError: Where n or order is below 1, max_mode is below 2, or ``max_mode**order < n``.

    Example:
        >>> auto_modes(768), auto_modes(257)
        (Modes(sizes=(8, 8, 12), padding=0), Modes(sizes=(4, 5, 13), padding=3))
        >>> auto_modes(11008, order=3)
        Modes(sizes=(16, 16, 43), padding=0)
    """
    if n < 1 or (order is not None and order < 1) or (max_mode is not None and max_mode < 2):
        raise ModeError(
            f"needed: n >= 1, order >= 1, max_mode >= 2; got n={n}, order={order}, max_mode={max_mode}"
        )
    if order is None:
        largest = max_mode or _LARGEST
        fewest = next(d for d in range(1, n.bit_length() + 1) if largest**d >= n)
        choices = [auto_modes(n, order=d, max_mode=largest) for d in (fewest, fewest + 1)]
        return min(choices, key=lambda modes: max(modes.padding, n // _WORTH_A_MODE))
    root = _root(n, order)
    if max_mode is not None and max_mode < root:
        raise ModeError(
            f"{order} modes of at most {max_mode} make {max_mode**order}, below n={n}; allow {root}"
        )
    return _balanced(n, order, min(2 * root, max_mode or 2 * root))


@lru_cache(maxsize=1024)
def _balanced(n: int, order: int, limit: int) -> Modes:
    """The balanced product for n, exact where there is one."""
    best = next(_products(n, order, limit, exact=True), ())
    if not best:
        for sizes in _products(n, order, limit, exact=False):
            if not best or prod(sizes) < prod(best):
                best = sizes
            if prod(best) - n <= n // _NEGLIGIBLE:
                break
    return Modes(best, prod(best) - n)


def _products(n: int, order: int, limit: int, *, exact: bool) -> Iterator[tuple[int, ...]]:
    """Non-decreasing sizes with a product of n (or just above it), by rising largest size."""
    if order == 1:
        if n <= limit:
            yield (n,)
        return
    for largest in range(_root(n, order), limit + 1):
        if exact and n % largest:
            continue
        for rest in _products(-(-n // largest), order - 1, largest, exact=exact):
            yield (*rest, largest)


def _root(n: int, order: int) -> int:
    """Smallest c with c**order >= n."""
    c = max(1, int(n ** (1 / order)) - 1)
    while c**order < n:
        c += 1
    return c
