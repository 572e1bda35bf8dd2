"""Processes that die: an operation is killed at a drawn point, by the system's own SIGKILL.

A child is forked from a process that has imported all it needs, so a kill costs a tenth of a second. Two
thirds of the points are Python calls (counted by the profiler, so that every call before, within and after
the writing can be the last), drawn so that half of them lie in the writing; the rest are moments of the
clock, which reach into the libraries that write in one call.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch

from tests.reliability.campaign import Campaign, Tally, drawn
from tests.reliability.operation import OPERATIONS, Operation, digest, listing, sources

__all__ = ["CAMPAIGNS", "ended", "forked"]

_STRAY = re.compile(r"\.out(\.safetensors)?\.[0-9a-f]{8}\.(partial|old)(/.*)?|\.tmp\w{6}")
"""What a killed operation may leave: its hidden draft, that of safetensors, or the folder to be replaced."""


class _Point:
    """Counts calls, and ends the process at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.calls, self.writing = last, 0, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += 1
        if self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.writing and event == "call" and frame.f_code.co_name in ("new_folder", "new_file"):
            self.writing = self.calls


def forked(work: Callable[[], object]) -> int:
    """Start the work in a child; its process id. The child ends with 0, or 1 after an exception."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _counted(operation: Operation, source: Path, output: Path) -> _Point:
    """A whole run, its calls counted."""
    point = _Point()
    sys.setprofile(point)
    try:
        operation.run(source, output, False)
    finally:
        sys.setprofile(None)
    return point


def _killed_at_call(operation: Operation, source: Path, output: Path, overwrite: bool, last: int) -> int:
    def work() -> None:
        sys.setprofile(_Point(last))
        operation.run(source, output, overwrite)

    return ended(forked(work))


def _killed_at_time(operation: Operation, source: Path, output: Path, overwrite: bool, after: float) -> int:
    child = forked(lambda: operation.run(source, output, overwrite))
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return ended(child)


class _Run:
    """One operation with what is known of its whole runs."""

    def __init__(self, operation: Operation, root: Path) -> None:
        self.operation, self.root = operation, root
        self.source = sources(root / "in") / operation.source
        whole = root / "whole"
        whole.mkdir()
        operation.run(self.source, whole / operation.output, False)
        (whole / operation.output).rename(whole / "first")
        self.point = _counted(operation, self.source, whole / operation.output)
        began = time.perf_counter()
        (whole / operation.output).rename(whole / "second")
        operation.run(self.source, whole / operation.output, False)
        self.seconds = time.perf_counter() - began
        self.right, self.before = digest(whole / operation.output), digest(root / "in")

    def kill(self, draw: Random, number: int) -> str:
        """Kill one run, look at what is left, run again."""
        place = self.root / str(number)
        place.mkdir()
        output, overwrite = place / self.operation.output, draw.random() < 0.4
        old = None
        if overwrite:
            self.operation.run(self.source, output, False)
            self._age(output)
            old = digest(output)
        code = self._end(draw, output, overwrite)
        assert digest(self.root / "in") == self.before, "the input was changed"
        found = digest(output)
        assert found in (self.right, old, None), "the output is neither whole nor absent"
        strays = {path for path in listing(place) if not path.startswith(self.operation.output)}
        assert all(_STRAY.fullmatch(path) for path in strays), f"left behind: {sorted(strays)}"
        if overwrite and found is None:
            kept = [digest(place / path) for path in strays if path.endswith(".old")]
            assert old in kept, "the old output is gone and the new one not there"
        self.operation.run(self.source, output, True)
        assert digest(output) == self.right, "the output of the rerun is another"
        if code == 0:
            return "done before the kill"
        end = {self.right: "killed: output whole", None: "killed: output absent"}.get(
            found, "killed: old output"
        )
        return end + (", draft left" if strays else "")

    def _age(self, output: Path) -> None:
        """Make the output differ from what the operation writes."""
        part = output / "README.md" if output.is_dir() else output
        part.write_bytes((part.read_bytes() if part.exists() else b"") + b"old")

    def _end(self, draw: Random, output: Path, overwrite: bool) -> int:
        if draw.random() < 1 / 3:
            after = draw.uniform(0, 1.1 * self.seconds)
            return _killed_at_time(self.operation, self.source, output, overwrite, after)
        start = self.point.writing if draw.random() < 0.5 else 1
        last = draw.randint(start, self.point.calls)
        return _killed_at_call(self.operation, self.source, output, overwrite, last)


def run(cases: int) -> Tally:
    """Kills of every operation in turn."""
    tally = Tally()
    torch.set_num_threads(1)
    each = -(-cases // len(OPERATIONS))
    for operation in OPERATIONS:
        with TemporaryDirectory() as folder:
            one = _Run(operation, Path(folder))
            for number in range(each):
                draw = drawn(operation.name, number)
                tally.attempt(f"{operation.name} {number}", partial(one.kill, draw, number))
    left = sum(count for end, count in tally.outcomes.items() if end.endswith("draft left"))
    tally.notes.append(
        f"after {left} kills a hidden draft (`.NAME.XXXXXXXX.partial`, `.old` or `.tmpXXXXXX`) stays beside "
        "the output; no rerun minds it, and it may be removed"
    )
    return tally


CAMPAIGNS = (
    Campaign(
        "kills",
        "convert (by layers, jointly), round, export, resize, collect, save a calibration, killed (SIGKILL) "
        "at a drawn point: input untouched, output whole, as before, or absent, a rerun gives the same bytes",
        run,
        640,
        24,
        (
            "a single file's metadata was written in another order at every run: now sorted",
            "a draft of a calibration had one fixed name: now each run has its own",
        ),
    ),
)
