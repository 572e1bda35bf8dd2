"""Exact mode sizes: for what cannot be padded, such as the width of an adapter."""

import math

__all__ = ["exact_modes"]


def exact_modes(total: int, order: int) -> tuple[int, ...]:
    """``order`` modes, largest first, with ``prod(modes) == total`` and none larger than it must be.

    Of all such products the lexicographically least is taken: its largest mode is as small as the divisors
    of ``total`` allow, then its second largest, and so on. A prime gives itself and ones.

    Example:
        >>> exact_modes(526336, 4), exact_modes(7, 2)
        ((257, 16, 16, 8), (7, 1))
    """
    found = _split(total, order, total)
    assert found is not None
    return found


def _split(total: int, order: int, limit: int) -> tuple[int, ...] | None:
    """The least product of ``order`` modes up to ``limit``; None where there is none."""
    if order == 1:
        return (total,) if total <= limit else None
    for largest in _divisors(total):
        if largest**order >= total and largest <= limit:
            rest = _split(total // largest, order - 1, largest)
            if rest is not None:
                return (largest, *rest)
    return None


def _divisors(total: int) -> list[int]:
    """All divisors, ascending."""
    small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
    return small + [total // n for n in reversed(small) if n * n != total]
