"""Mutants that no test can notice, and why: what the campaign of mutants counts as explained."""

from typing import NamedTuple

__all__ = ["SURVIVORS", "Survivor"]

_PIECES = "into how many pieces the work is cut changes the time, not the value"


class Survivor(NamedTuple):
    """One mutant, by the line that it changes."""

    path: str
    before: str
    after: str
    why: str


SURVIVORS = (
    Survivor(
        "tntune/maps/modes.py",
        "small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]",
        "small = [n for n in range(1, math.isqrt(total) + 2) if total % n == 0]",
        "a divisor may come twice, and is tried again only where it has failed",
    ),
    Survivor(
        "tntune/theory/readout.py",
        "return wide if len(kept) == 1 else cores(round_tt(tt_tensor(wide)).value)",
        "return wide if len(kept) == 2 else cores(round_tt(tt_tensor(wide)).value)",
        "rounding leaves the one term as it is; two that are not rounded have ranks that only cost time",
    ),
    Survivor(
        "tntune/tt/decompose.py",
        "wide = rest.shape[1] > rest.shape[0]",
        "wide = rest.shape[1] > rest.shape[1]",
        "the SVD has the same left factor without the QR that makes it cheaper",
    ),
    Survivor(
        "tntune/tt/decompose.py",
        "while size < len(modes) - 1 and rank * prod(modes[: size + 1]) <= _GROUP_ROWS:",
        "while size < len(modes) - 1 and rank * prod(modes[: size - 1]) <= _GROUP_ROWS:",
        _PIECES,
    ),
    Survivor(
        "tntune/tt/modes.py",
        "@lru_cache(maxsize=1024)",
        "def _balanced(n: int, order: int, limit: int) -> Modes:",
        "a pure function without its cache",
    ),
)
