"""Timing of several routes in turn, so that other work on the machine meets all of them alike."""

import time
from collections.abc import Callable, Mapping
from random import Random
from statistics import median, quantiles

Run = Callable[[], object]


def cpu_seconds(run: Run, repeats: int = 1) -> float:
    """CPU seconds of one call: other work on the machine does not count."""
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def wall_seconds(run: Run, repeats: int = 1) -> float:
    """Seconds of one call on the clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def in_turn(
    runs: Mapping[str, Run], rounds: int, *, clock: Callable[[Run], float] = cpu_seconds
) -> dict[str, list[float]]:
    """The times of every route over some rounds, after one call of each that is not counted.

    Every round has an order of its own, the same in every run: each meets the cache that another left.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    orders = Random(0)
    for _ in range(rounds):
        for name in orders.sample(list(runs), len(runs)):
            times[name].append(clock(runs[name]))
    return times


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> tuple[float, str]:
    """The median over rounds of one route's time over the reference's, and its quartiles in words."""
    ratios = [own / other for own, other in zip(times[name], times[reference], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return median(ratios), f"{low:.3f} to {high:.3f}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: ``duration(0.0021) == "2.1 ms"``."""
    size, unit = next((pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "us"))
    return f"{seconds / size:.3g} {unit}"


def row(*cells: object) -> None:
    """Print one row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def head(*cells: str) -> None:
    """Print the head of a Markdown table."""
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)
