"""Campaign: one promise, tried on many drawn cases, with the failures counted."""

import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from random import Random

__all__ = ["Campaign", "Tally"]

_SHOWN = 12  # failures that a tally keeps in words


@dataclass
class Tally:
    """What a campaign has seen so far.

    Attributes:
        cases: Cases tried.
        outcomes: How often each kind of right end was reached.
        failures: Number of broken promises.
        shown: The first of them in words.
        notes: What is worth saying beside the counts.
    """

    cases: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    shown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def passed(self, outcome: str) -> None:
        self.cases += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def failed(self, what: str) -> None:
        self.cases += 1
        self.failures += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(what)

    def check(self, holds: bool, what: str, *, outcome: str = "right") -> None:
        """Count a case, by whether its promise holds."""
        if holds:
            self.passed(outcome)
        else:
            self.failed(what)

    def attempt(self, name: str, case: Callable[[], str | None]) -> None:
        """Count a case that returns its right end, or None for "right", and raises where it is broken."""
        try:
            self.passed(case() or "right")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.failed(f"{name}: {type(error).__name__}: {str(error)[:300]} ({where.name}:{where.lineno})")


@dataclass(frozen=True)
class Campaign:
    """A promise and how it is tried.

    Attributes:
        name: By which ``run.py`` knows it.
        promise: What holds in every case, in a sentence.
        run: Tries that many cases and returns their tally; the same seeds at every call.
        full: Cases of a full run.
        few: Cases of the slow tests.
        found: What the campaign has found and what was done about it, a line each.
        needs: Packages without which it cannot be run.
    """

    name: str
    promise: str
    run: Callable[[int], Tally]
    full: int
    few: int
    found: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Those of the needed packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def drawn(name: str, number: int) -> Random:
    """The generator of one case: ``drawn("reading", 17)`` is the same in every run and process."""
    return Random(f"{name} {number}")


def peak_memory() -> float:
    """Largest memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Processor seconds and MiB of each of many cases; reads as too much where one passes the limits."""

    def __init__(self, seconds: float, mebibytes: float) -> None:
        self.seconds, self.mebibytes = seconds, mebibytes
        self.began, self.held = time.process_time(), peak_memory()

    def excess(self) -> str | None:
        """What was too much since the last call, or None."""
        began, held = self.began, self.held
        self.began, self.held = time.process_time(), peak_memory()
        if self.began - began > self.seconds:
            return f"took {self.began - began:.1f} s"
        return f"took {self.held - held:.0f} MiB" if self.held - held > self.mebibytes else None
