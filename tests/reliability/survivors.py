"""Mutants that no test can notice, and why: what the campaign of mutants counts as explained."""

__all__ = ["EQUIVALENT"]

_TIME = "how the work is cut into pieces, which takes another time and gives the same value"

EQUIVALENT: dict[str, str] = {
    "tntune/maps/modes.py: small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0] -> "
    "small = [n for n in range(1, math.isqrt(total) + 2) if total % n == 0]": (
        "a divisor may come twice; the second is tried after the first has failed"
    ),
    "tntune/theory/readout.py: return wide if len(kept) == 1 else cores(round_tt(tt_tensor(wide)).value) -> "
    "return wide if len(kept) == 2 else cores(round_tt(tt_tensor(wide)).value)": (
        "the train of one term has rank 1 and rounding leaves it; that of two keeps ranks that only cost time"
    ),
    "tntune/tt/decompose.py: wide = rest.shape[1] > rest.shape[0] -> "
    "wide = rest.shape[1] > rest.shape[ 1]": "without the QR before it the SVD has the same left factor",
    "tntune/tt/decompose.py: while size < len(modes) - 1 and rank * prod(modes[: size + 1]) <= _GROUP_ROWS: -> "
    "while size < len(modes) - 1 and rank * prod(modes[: size - 1]) <= _GROUP_ROWS:": _TIME,
    "tntune/tt/modes.py: @lru_cache(maxsize=1024) -> def _balanced(n: int, order: int, limit: int) -> Modes:": (
        "the cache of a pure function"
    ),
}
"""By path, line before and line after."""
