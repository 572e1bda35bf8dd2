"""Lines that the default tests run: every folder of tests, and the examples in docstrings, under coverage.

Each folder is a run of its own, so that one that fails hides nothing of the others; a failing run is counted.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from subprocess import run as start
from tempfile import TemporaryDirectory
from typing import Any

from tests.reliability.campaign import Campaign, Tally

__all__ = ["CAMPAIGNS"]

HOME = Path(__file__).parents[2]
LEAST = 0.95


def run(cases: int) -> Tally:
    """All folders of tests; below a thousand lines those of ``contract`` alone, and its lines."""
    tally = Tally()
    rooms = sorted(path.name for path in (HOME / "tntune").iterdir() if (path / "__init__.py").is_file())
    rooms = rooms if cases >= 1000 else ["contract"]
    folders = [
        path for path in sorted((HOME / "tests").iterdir()) if path.is_dir() and any(path.glob("test_*.py"))
    ]
    single = [str(path) for path in sorted((HOME / "tests").glob("test_*.py"))]
    groups = [[str(path)] for path in folders] + [single] + [[f"tntune/{room}"] for room in rooms]
    if cases < 1000:
        groups = [["tests/contract"], ["tntune/contract"]]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        for number, group in enumerate(groups):
            code = _tested(place, number, group)
            if code not in (0, 5):  # 5: nothing of a folder is a default test
                tally.failed(f"{' '.join(group)}: pytest ended with {code}")
        report = _report(place)
    _count(tally, report, rooms)
    return tally


def _coverage(place: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "coverage", *arguments, f"--rcfile={place / 'rc'}"]


def _tested(place: Path, number: int, group: list[str]) -> int:
    """Run a group of tests; the exit code of pytest."""
    options = "[run]\nsource = tntune\nparallel = true\n"
    (place / "rc").write_text(f"{options}data_file = {place / 'data'}\n")
    command = [*_coverage(place, "run"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *group]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = start(command, cwd=HOME, env=environment, capture_output=True, text=True)
    last = (ran.stdout.strip().splitlines() or [""])[-1]
    sys.stderr.write(f"{' '.join(Path(each).name for each in group)}: {last}\n")
    return ran.returncode


def _report(place: Path) -> dict[str, Any]:
    """What coverage says of each file."""
    start(_coverage(place, "combine"), cwd=HOME, check=True, capture_output=True)
    command = [*_coverage(place, "json"), "-o", str(place / "report.json")]
    start(command, cwd=HOME, check=True, capture_output=True)
    files: dict[str, Any] = json.loads((place / "report.json").read_text())["files"]
    return files


def _count(tally: Tally, files: dict[str, Any], rooms: list[str]) -> None:
    """Lines that run and that do not; each room must have the least share."""
    run, all_lines = Counter[str](), Counter[str]()
    for path, found in files.items():
        parts = Path(path).parts
        room = parts[1] if len(parts) > 2 else "tntune"
        run[room] += found["summary"]["covered_lines"]
        all_lines[room] += found["summary"]["num_statements"]
    for room in rooms:
        for _ in range(run[room]):
            tally.passed("run")
        for _ in range(all_lines[room] - run[room]):
            tally.passed("not run")
        share = run[room] / max(1, all_lines[room])
        if share < LEAST:
            tally.failed(f"{room}: {share:.1%} of {all_lines[room]} lines")
    shares = ", ".join(f"{room} {run[room] / max(1, all_lines[room]):.1%}" for room in rooms)
    whole = sum(run[room] for room in rooms) / max(1, sum(all_lines[room] for room in rooms))
    tally.notes.append(f"{whole:.1%} in all: {shares}")


CAMPAIGNS = (
    Campaign(
        "coverage",
        "the default tests pass and run at least 95 % of the lines of every room of tntune",
        run,
        20_000,
        100,
        needs=("coverage",),
    ),
)
