"""Bound: an inequality as a value, never without its assumptions and the quantity it bounds, measured."""

import json
import math
from dataclasses import asdict, dataclass

from tntune.errors import SpecError

__all__ = ["ROUNDING", "Bound"]

ROUNDING = 1e-9
"""Relative rounding that an inequality forgives: an identity computed twice may miss by this much."""

_SENSES = ("upper", "lower", "equal")


@dataclass(frozen=True)
class Bound:
    """An inequality evaluated: ``holds`` is ``measured <= value`` (``>=`` for a lower bound), up to rounding.

    Attributes:
        label: Row of the ledger in ``theory/README.md``: ``"T3"``, ``"E9"``.
        statement: The inequality in words and symbols.
        value: The bound; ``inf`` for an upper and 0 for a lower bound that say nothing.
        measured: The quantity itself, computed another way or observed.
        assumptions: What the statement needs, one sentence each; at least one.
        sense: ``"upper"``: measured <= value. ``"lower"``: measured >= value. ``"equal"``: both.
        rounding: Relative rounding that ``holds`` forgives.

    Raises:
        SpecError: Without assumptions, or for a sense that does not exist.

    Example:
        >>> bound = Bound("T6", "rank T <= 12", 12, 9, ("rank of up is 4",))
        >>> bound.holds, bound.slack
        (True, 1.3333333333333333)
    """

    label: str
    statement: str
    value: float
    measured: float
    assumptions: tuple[str, ...]
    sense: str = "upper"
    rounding: float = ROUNDING

    def __post_init__(self) -> None:
        if self.sense not in _SENSES:
            raise SpecError(f"the sense of a bound is one of {', '.join(_SENSES)}, not {self.sense!r}")
        if isinstance(self.assumptions, str) or not self.assumptions:
            raise SpecError(f"bound {self.label} needs a tuple of assumptions, not {self.assumptions!r}")
        object.__setattr__(self, "assumptions", tuple(self.assumptions))

    @property
    def holds(self) -> bool:
        """Whether the measured quantity keeps the bound; never where one of both is not a number."""
        if math.isnan(self.value) or math.isnan(self.measured):
            return False
        if self.value == self.measured:
            return True
        excess = self.measured - self.value
        allowed = self.rounding * max(abs(self.value), abs(self.measured))
        allowed = allowed if math.isfinite(allowed) else 0.0
        above, below = excess <= allowed, excess >= -allowed
        return {"upper": above, "lower": below, "equal": above and below}[self.sense]

    @property
    def slack(self) -> float:
        """How far the bound is off: a ratio of at least 1 where it holds, ``inf`` where it says nothing."""
        larger, smaller = self.value, self.measured
        if self.sense == "lower":
            larger, smaller = smaller, larger
        if larger == smaller:
            return 1.0
        return larger / smaller if smaller else math.inf

    def to_json(self) -> str:
        """All fields with ``holds`` and ``slack``, as JSON; infinities are the string ``"inf"``.

        Example:
            >>> '"holds": true' in Bound("T6", "rank T <= 12", 12, 9, ("rank of up is 4",)).to_json()
            True
        """
        values = {**asdict(self), "holds": self.holds, "slack": self.slack}
        return json.dumps({name: _plain(value) for name, value in values.items()})


def _plain(value: object) -> object:
    """JSON has no infinity and no NaN: both become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
