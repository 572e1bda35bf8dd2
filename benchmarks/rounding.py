"""How fast is round_tt beside torchTT at equal ranks and error?

    python benchmarks/rounding.py

Each train is a random one plus another of the same ranks and a tenth of the tolerance in norm, so that
rounding to the tolerance halves the ranks. Both run in turn in one process; times are medians. The floor is
the multiplications of one QR sweep at the peak of the machine, in float64 at half of it.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torchtt
from common.machine import Machine
from common.turns import duration

from tntune.tt import (
    RankRule,
    Train,
    add,
    cores,
    gaussian,
    norm,
    ranks,
    relative_error,
    round_tt,
    scale,
    tt_tensor,
)

CASES = {"4^20 r20->10": ((4,) * 20, 10), "32^5 r20->10": ((32,) * 5, 10), "16^6 r120->60": ((16,) * 6, 60)}
TOLERANCE = 1e-6


def redundant(modes: tuple[int, ...], rank: int) -> Train:
    """A train of twice the rank it needs."""
    generator = torch.Generator().manual_seed(0)
    x, y = (gaussian(modes, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    return add(x, scale(y, 0.1 * TOLERANCE * norm(x) / norm(y)))


def measured(run: Callable[[], Train]) -> tuple[float, Train]:
    """Seconds of one call, and the train it made."""
    start = time.perf_counter()
    made = run()
    return time.perf_counter() - start, made


def sweep(train: Train) -> int:
    """Flops of a QR of every left unfolding, two for each of its rows times its squared columns."""
    return sum(4 * core.shape[0] * core.shape[1] * core.shape[2] ** 2 for core in cores(train)[:-1])


def compare(name: str, repeats: int, machine: Machine) -> list[str]:
    """The rows of one case."""
    x = redundant(*CASES[name])
    theirs = torchtt.TT(cores(x))
    routes: dict[str, Callable[[], Train]] = {
        "tntune": lambda: round_tt(x, RankRule(tolerance=TOLERANCE)).value,
        "torchTT": lambda: tt_tensor(theirs.round(TOLERANCE).cores),
    }
    runs = [{route: measured(run) for route, run in routes.items()} for _ in range(repeats)]
    seconds = {route: median(run[route][0] for run in runs) for route in routes}
    floor = duration(machine.floor(2 * sweep(x), 0))
    return [
        f"| {name} | {route} | {seconds[route] * 1e3:.1f} ms | {seconds[route] / seconds['torchTT']:.2f} "
        f"| {float(relative_error(made, x)):.1e} | {max(ranks(made))} | {floor} |"
        for route, (_, made) in runs[-1].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = Machine.measured()
    print("| case | library | time | ratio | error | rank | floor |\n|---|---|---|---|---|---|---|")
    for name in options.case:
        print("\n".join(compare(name, options.repeats, machine)), flush=True)


if __name__ == "__main__":
    main()
