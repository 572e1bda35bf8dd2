"""Mutants: small faults put into tt, maps, convert and theory, one at a time. Does a test notice?

They are made and tried in copies of the tree (``mutating.py``); this file counts them, and holds those that
survive against ``survivors.py``, which says of each why nothing can notice it.
"""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

from tests.reliability.campaign import Campaign, Tally
from tests.reliability.survivors import SURVIVORS

__all__ = ["CAMPAIGNS"]

HOME = Path(__file__).parents[2]
WORKERS = min(2, os.cpu_count() or 1)
_NOTICED = {"killed": "noticed by a failing test", "too long": "noticed by the time it takes"}
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "out")


def run(cases: int) -> Tally:
    """That many mutants, as many of each of the four rooms."""
    tally, seen, noticed = Tally(), Counter[str](), Counter[str]()
    with TemporaryDirectory() as folder:
        tree = Path(shutil.copytree(HOME, Path(folder) / "tree", ignore=_LEFT_OUT))
        command = [sys.executable, str(tree / "tests/reliability/mutating.py"), str(cases), str(WORKERS)]
        with Popen(command, cwd=tree, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=PIPE) as process:
            for line in process.stdout or ():
                result = json.loads(line)
                sys.stderr.write(f"{result['end']}: {result['path']}:{result['line']}: {result['after']}\n")
                room = result["path"].split("/")[1]
                seen[room] += 1
                noticed[room] += _count(tally, result)
        assert process.returncode == 0, f"mutating.py ended with {process.returncode}"
    rooms = ", ".join(f"{room} {noticed[room] / seen[room]:.1%}" for room in seen)
    score = sum(noticed.values()) / max(1, sum(seen.values()))
    tally.notes.append(f"score {score:.1%} of all mutants: {rooms}")
    return tally


def _count(tally: Tally, result: dict[str, str]) -> bool:
    """Count one mutant; whether the tests noticed it."""
    name = f"{result['path']}: {result['before']} -> {result['after']}"
    if result["end"] in _NOTICED:
        tally.passed(_NOTICED[result["end"]])
        return True
    if _place(result["path"], result["before"], result["after"]) in _EXPLAINED:
        tally.passed("survived, as explained")
    else:
        tally.failed(f"{name} ({result['operator']}, {result['tests']} tests: {result['end']})")
    return False


def _place(path: str, before: str, after: str) -> tuple[str, str, str]:
    """What a mutant is known by; operators leave spaces."""
    return path, "".join(before.split()), "".join(after.split())


_EXPLAINED = {_place(each.path, each.before, each.after) for each in SURVIVORS}

CAMPAIGNS = (
    Campaign(
        "mutants",
        "a small fault in the code of tt, maps, convert or theory (cosmic-ray's operators, drawn places) "
        "fails a test of that room, or is explained in `survivors.py`",
        run,
        260,
        4,
        (
            "36 of 260 faults were noticed by none of the tests that were tried: 27 are now, and of the "
            "other 9 `survivors.py` says why nothing can notice them",
        ),
        needs=("cosmic_ray", "coverage"),
    ),
)
