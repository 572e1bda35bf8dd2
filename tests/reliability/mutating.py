"""Mutants of a copy of the tree: which there are, which tests run their line, and whether one of them fails.

    python tests/reliability/mutating.py CASES WORKERS    # within a copy, by tests/reliability/mutants.py

Writes a line of JSON for each mutant. The libraries are imported once; each mutant is tried in a fork of
this process, in which tntune is imported afresh, by the tests of its room that run the changed line, the
fastest first. Needs cosmic-ray, whose operators make the mutants, and coverage, which finds the tests.
"""

import ast
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Any

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOMS = ("tt", "maps", "convert", "theory")
OPERATORS = (
    *("AddNot", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not"),
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_Div"),
    *("ReplaceBinaryOperator_Div_Mul", "ReplaceBinaryOperator_FloorDiv_Mul"),
    *("ReplaceBinaryOperator_Mod_FloorDiv", "ReplaceBinaryOperator_Pow_Mul"),
    *("ReplaceBinaryOperator_BitAnd_BitOr", "ReplaceBinaryOperator_BitOr_BitAnd"),
    *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt"),
    *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt"),
    *("ReplaceComparisonOperator_Lt_Gt", "ReplaceComparisonOperator_Gt_Lt"),
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
)
"""Of cosmic-ray's operators those whose mutants are near to the code; the others die at once."""

LIBRARIES = (
    "tltorch",
    "opt_einsum",
    "scipy.optimize",
    "hypothesis",
    "safetensors.torch",
    "peft",
    "transformers",
)
PYTEST = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
DECLARED = (
    "tests/test_values.py",
    "tests/test_api_snapshot.py::test_public_names_are_those_of_the_snapshot",
)
"""Tests of what is read at import: classes, decorators and signatures."""
SECONDS = 40.0  # processor time of the tests that one mutant is tried by, as recorded
PATIENCE = 4.0  # a mutant may take that much longer than was recorded, and one such time more
MEMORY = 8 * 2**30  # bytes of address space beyond what the process starts with


@dataclass(frozen=True)
class Mutant:
    """One fault at one place."""

    path: str
    line: int
    column: int
    before: str
    operator: str
    occurrence: int

    @cached_property
    def name(self) -> str:
        """Drawn from what it is alone, so the same whatever else changes in the tree."""
        return hashlib.sha256(f"{self.path} {self.before} {self.column} {self.operator}".encode()).hexdigest()


def mutants(path: Path, module: str) -> Iterator[Mutant]:
    """One mutant for each place of a module that an operator can change, but where nothing is computed."""
    source = path.read_text()
    lines, skipped = source.splitlines(), _skipped(source)
    made = {operator: get_operator(f"core/{operator}")() for operator in OPERATORS}
    counts, places = dict.fromkeys(OPERATORS, 0), {}
    for node in ast_nodes(get_ast(source)):
        for operator in OPERATORS:
            for (line, column), _ in made[operator].mutation_positions(node):
                text = lines[line - 1]
                indent = len(text) - len(text.lstrip())
                mutant = Mutant(module, line, column - indent, text.strip(), operator, counts[operator])
                counts[operator] += 1
                if not any(first <= (line, column) < last for first, last in skipped):
                    places.setdefault((line, column), []).append(mutant)
    for rivals in places.values():
        yield min(rivals, key=lambda mutant: mutant.name)


def _skipped(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where annotations reach, and the ``strict`` of a zip, which only asserts."""
    parts = []
    for node in ast.walk(ast.parse(source)):
        parts += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        parts += [node.value] if isinstance(node, ast.keyword) and node.arg == "strict" else []
    return [
        ((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in parts if part
    ]


def drawn(tree: Path, cases: int) -> list[Mutant]:
    """That many mutants, as many of each room; the same in every run, and nearly so after a change."""
    chosen = []
    for number, room in enumerate(ROOMS):
        share = cases * (number + 1) // len(ROOMS) - cases * number // len(ROOMS)
        paths = sorted((tree / "tntune" / room).glob("*.py"))
        every = [each for path in paths for each in mutants(path, str(path.relative_to(tree)))]
        chosen += sorted(every, key=lambda mutant: mutant.name[::-1])[:share]
    return sorted(chosen, key=lambda mutant: mutant.name)


class Recorder:
    """A pytest plugin: which lines each test runs, how long it takes, and whether it passes."""

    def __init__(self, cover: coverage.Coverage) -> None:
        self.cover, self.seconds, self.failed = cover, {}, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.cover.switch_context(item.nodeid)
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


def record(room: str) -> None:
    """Write RECORD-ROOM.json: the tests of a room with their seconds, and those that run each line of it."""
    cover = coverage.Coverage(data_file=None, include=[f"tntune/{room}/*"])
    recorder = Recorder(cover)
    cover.start()
    pytest.main([*PYTEST, f"tests/{room}", f"tntune/{room}"], plugins=[recorder])
    cover.stop()
    data = cover.get_data()
    good = {test: spent for test, spent in recorder.seconds.items() if test not in recorder.failed}
    lines = {
        str(Path(path).relative_to(Path.cwd())): {
            line: [test for test in tests if test in good]
            for line, tests in data.contexts_by_lineno(path).items()
        }
        for path in data.measured_files()
    }
    Path(f"RECORD-{room}.json").write_text(json.dumps({"seconds": good, "lines": lines}))


class Tests:
    """The recorded tests of a room."""

    def __init__(self, tree: Path, room: str) -> None:
        found = json.loads((tree / f"RECORD-{room}.json").read_text())
        self.tree, self.seconds, self.lines = tree, found["seconds"], found["lines"]

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that run a mutant's line; where it runs at import, those around it, then all others."""
        known = {int(line): tests for line, tests in self.lines.get(mutant.path, {}).items()}
        for first, last in self._spans(mutant):
            tests = {test for line in range(first, last + 1) for test in known.get(line, ())}
            if tests and known.get(mutant.line):
                return self._affordable(self._fastest(tests))
            if tests:
                others = self._fastest(self.seconds.keys() - tests)
                return [*DECLARED, *self._affordable([*self._fastest(tests), *others])]
        return []

    def _fastest(self, tests: Iterable[str]) -> list[str]:
        return sorted(tests, key=lambda test: (self.seconds[test], test))

    def _spans(self, mutant: Mutant) -> list[tuple[int, int]]:
        """The lines themselves, then those of what is around them, up to the module."""
        tree = ast.parse((self.tree / mutant.path).read_text())
        spans = [(mutant.line, mutant.line)]
        for node in ast.walk(tree):
            first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", None) or 0
            if isinstance(node, ast.stmt) and first <= mutant.line <= last:
                spans.append((first, last))
        return [*sorted(spans, key=lambda span: span[1] - span[0]), (1, 10**6)]

    def _affordable(self, tests: Sequence[str]) -> list[str]:
        total, sums = 0.0, []
        for test in tests:
            sums.append(total := total + self.seconds[test])
        return list(tests[: max(1, bisect(sums, SECONDS))])


def forked(tree: Path, work: Callable[[], object], *, seconds: float, log: Path) -> int:
    """Do the work in a fork of this process that imports from the tree: its exit code, or minus a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        os.chdir(tree)
        sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.alarm(int(20 * seconds) + 60)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        code = int(work() or 0)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def tried(tree: Path, mutant: Mutant, tests: Tests) -> dict[str, Any]:
    """What the tests say of a mutant; the tree is as before afterwards."""
    path, chosen = tree / mutant.path, tests.of(mutant)
    source = path.read_text()
    changed = mutate_code(source, get_operator(f"core/{mutant.operator}")(), mutant.occurrence)
    limit = 30 + PATIENCE * sum(tests.seconds.get(test, 5.0) for test in chosen)
    log = tree / "mutant.log"

    def work() -> int:
        sys.dont_write_bytecode = True
        return int(pytest.main([*PYTEST, "-x", *chosen]))

    try:
        path.write_text(changed)
        Path(cache_from_source(str(path))).unlink(missing_ok=True)
        code = forked(tree, work, seconds=limit, log=log) if chosen else None
    finally:
        path.write_text(source)
    return {
        "path": mutant.path,
        "line": mutant.line,
        "before": mutant.before,
        "after": _difference(source, changed),
        "operator": mutant.operator,
        "tests": len(chosen),
        "end": _end(code),
        "log": log.read_text(errors="replace")[-400:] if code else "",
    }


def _difference(source: str, changed: str) -> str:
    """The first line that is another."""
    before, after = source.splitlines(), changed.splitlines()
    return next((new.strip() for old, new in zip(before, after, strict=False) if old != new), "")


def _end(code: int | None) -> str:
    """How a mutant ended, by the exit code of pytest."""
    if code is None:
        return "no test"
    if code in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        return "too long"
    return "survived" if code == 0 else "killed"


def main(cases: int, workers: int) -> None:
    """Record, draw and try, in this tree and in copies of it."""
    tree = Path(__file__).parents[2]
    for library in LIBRARIES:
        if find_spec(library.partition(".")[0]):
            importlib.import_module(library)
    for room in ROOMS:
        forked(tree, lambda room=room: record(room), seconds=1800, log=tree / f"record-{room}.log")
    recorded = {room: Tests(tree, room) for room in ROOMS}
    chosen = drawn(tree, cases)
    children = []
    for number in range(workers):
        own = Path(shutil.copytree(tree, f"{tree}-{number}"))
        children.append(os.fork())
        if not children[-1]:
            for mutant in chosen[number::workers]:
                line = json.dumps(tried(own, mutant, recorded[mutant.path.split("/")[1]])) + "\n"
                os.write(1, line.encode())
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
