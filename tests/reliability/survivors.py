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
        "tntune/convert/distill.py",
        "elif not found <= _PATIENCE * least:",
        "elif not found < _PATIENCE * least:",
        "another only where a divergence is that multiple to the last bit",
    ),
    Survivor(
        "tntune/convert/stream_problem.py",
        "self._part(pair, 0), self._part(pair, 1), max(1, int(widths.max()))",
        "self._part(pair, 0), self._part(pair, 1), max(2, int(widths.max()))",
        "a column that no layer has, which the mask below it makes zero",
    ),
    Survivor(
        "tntune/convert/sweep.py",
        "baselines = contest.baselines(settings.target.budget(folder.params) or 0)",
        "baselines = contest.baselines(settings.target.budget(folder.params) or 1)",
        "a sweep takes no target without a budget; the 0 is for the type",
    ),
    Survivor(
        "tntune/maps/budget.py",
        "low, high = (middle + 1, high) if count(middle) < budget else (low, middle)",
        "low, high = (middle + 1, high) if count(middle) <= budget else (low, middle)",
        "a rank whose count is the budget is found from above as from below; counts grow",
    ),
    Survivor(
        "tntune/maps/modes.py",
        "small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]",
        "small = [n for n in range(1, math.isqrt(total) + 2) if total % n == 0]",
        "a divisor may come twice, and is tried again only where it has failed",
    ),
    Survivor(
        "tntune/theory/approximation.py",
        "if shapes[0] != shapes[1] or shapes[0][0][0] != 1:",
        "if shapes[0] != shapes[1] or shapes[0][1][0] != 1:",
        "down and up have as many sites",
    ),
    Survivor(
        "tntune/theory/ntk_rows.py",
        "if a.shape[:2] == block.shape[:2] and b.shape[:2] == block.shape[2:]:",
        "if a.shape[:2] == block.shape[:2] and b.shape[:3] == block.shape[2:]:",
        "the way for all other shapes adds the same product, in one pass more",
    ),
    Survivor(
        "tntune/theory/ntk_rows.py",
        "and r is not None",
        "and r is None",
        "the way for all other shapes has the same sum, at more cost",
    ),
    Survivor(
        "tntune/theory/readout.py",
        "return wide if len(kept) == 1 else cores(round_tt(tt_tensor(wide)).value)",
        "return wide if len(kept) == 2 else cores(round_tt(tt_tensor(wide)).value)",
        "rounding leaves the one term as it is; two that are not rounded have ranks that only cost time",
    ),
    Survivor(
        "tntune/tt/decompose.py",
        "if rule.max_params is not None and sum(core.numel() for core in cores) > rule.max_params:",
        "if rule.max_params is not None and sum(core.numel() for core in cores) >= rule.max_params:",
        "a train of just that size is given its own ranks again",
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
    Survivor(
        "tntune/tt/modes.py",
        "def _products(n: int, order: int, limit: int, *, exact: bool) -> Iterator[tuple[int, ...]]:",
        "def _products(n: int, order: int, limit: int, /, exact: bool) -> Iterator[tuple[int, ...]]:",
        "a mark of a private function that only forbids other ways to call it",
    ),
)
