"""What a user gets: parts that are pinned and free, names as promised, types that reach their own file."""

import re
import subprocess
import sys
from difflib import ndiff
from pathlib import Path

from tests.api_snapshot import PAGE, snapshot
from tests.reliability.campaign import Campaign, Tally
from tests.reliability.supply import faults, parts

__all__ = ["CAMPAIGNS"]

HOME = Path(__file__).parents[2]
STRICT = ("--strict", "--config-file", "", "tests/consumer.py")


def run(cases: int) -> Tally:
    """Every part, every line of the public API, every module; ``cases`` says how many there are at least."""
    tally = Tally()
    for part in parts():
        tally.check(not (off := faults([part])), "; ".join(off), outcome="part, pinned and free")
    for line in ndiff(PAGE.read_text(encoding="utf-8").split("\n"), snapshot().split("\n")):
        if line[2:].strip() and not line.startswith("?"):
            tally.check(line.startswith("  "), line, outcome="line of the public API, as in the snapshot")
    _typed(tally, ())
    _typed(tally, STRICT)
    assert tally.cases >= cases, f"{tally.cases} cases are fewer than {cases}"
    return tally


def _typed(tally: Tally, options: tuple[str, ...]) -> None:
    """Each file that mypy checks strictly is a case: all of tntune, and a file of a user beside it."""
    ran = subprocess.run([sys.executable, "-m", "mypy", *options], capture_output=True, text=True, cwd=HOME)
    told = [line for line in ran.stdout.splitlines() if ": error:" in line]
    told = [line for line in told if not options or line.startswith(options[-1])]
    for line in told:
        tally.failed(line)
    checked = re.search(r"(?:no issues found in|checked) (\d+) source", ran.stdout)
    if checked is None:
        tally.failed(ran.stderr.strip() or "mypy says nothing")
    elif not told:
        for _ in range(int(checked[1])):
            tally.passed("file, type-checked strictly")


CAMPAIGNS = (
    Campaign(
        "supply",
        "what tntune brings along is pinned in `constraints.txt` and under a free licence, the public API is "
        "that of `tests/api_snapshot.txt`, and mypy --strict accepts tntune and a user's own file beside it",
        run,
        1000,
        1000,
        needs=("mypy",),
    ),
)
