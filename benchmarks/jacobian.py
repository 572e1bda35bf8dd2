"""What does the exact JᵀJ of a train cost beside torch.func, and where no dense J fits into any memory?

    python benchmarks/jacobian.py

At 2^16 entries both run in turn in one process: ours by environments, and jacfwd with one product. Times
are medians of CPU seconds, so that other work on the machine does not count; memory is the peak of all
rows so far. The floor is writing the P² entries of JᵀJ once.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from common.machine import FLOAT, Machine
from common.memory import megabytes
from common.turns import duration, head
from torch import Tensor
from torch.func import jacfwd

from tntune.theory import SpectrumReport, TrainJacobian
from tntune.tt import RankRule, dense, tt_tensor


def train(modes: tuple[int, ...], rank: int) -> list[Tensor]:
    """Random cores of norm about 1."""
    generator = torch.Generator().manual_seed(0)
    ranks = (1, *RankRule(max_rank=rank).caps(modes), 1)
    shapes = zip(ranks[:-1], modes, ranks[1:], strict=True)
    return [torch.randn(s, dtype=torch.float64, generator=generator) / (s[0] * s[1]) ** 0.5 for s in shapes]


def by_torch(own: list[Tensor]) -> Tensor:
    """JᵀJ from the dense J."""
    places = tuple(range(len(own)))
    columns = jacfwd(lambda *c: dense(tt_tensor(c)).flatten(), argnums=places)(*own)
    J = torch.cat([column.flatten(1) for column in columns], dim=1)
    return J.mT @ J


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak() -> str:
    return f"{megabytes():.0f} MB"


def line(case: str, own: list[Tensor], what: str, elapsed: float, note: str, machine: Machine) -> None:
    count = sum(core.numel() for core in own)
    floor = duration(machine.floor(0, count**2 * own[0].itemsize / FLOAT))
    print(f"| {case} | {count} | {what} | {elapsed * 1e3:.0f} ms | {floor} | {note} | {peak()} |", flush=True)


def huge(modes: tuple[int, ...], rank: int, repeats: int, machine: Machine) -> None:
    """JᵀJ, its spectrum, and the singular values without squaring, at entries that nobody can hold."""
    own = train(modes, rank)
    jacobian = TrainJacobian.plain(own)
    case = f"2^40: {modes[0]}^{len(modes)}, r = {rank}"
    both = [
        (seconds(jacobian.gram), seconds(lambda: torch.linalg.eigvalsh(jacobian.gram())))
        for _ in range(repeats)
    ]
    line(case, own, "JᵀJ", median(first for first, _ in both), "", machine)
    dimension = jacobian.num_parameters - sum(len(core) ** 2 for core in own[1:])
    report = SpectrumReport.from_gram(jacobian.gram(), rank_bound=dimension)
    note = f"rank {report.rank} of {dimension}"
    line(case, own, "JᵀJ and its spectrum", median(second for _, second in both), note, machine)
    v = torch.ones(jacobian.num_parameters, dtype=torch.float64)
    line(case, own, "JᵀJ v", median(seconds(lambda: jacobian.matvec(v)) for _ in range(repeats)), "", machine)
    line(case, own, "C = QᵀJ", median(seconds(jacobian.factor) for _ in range(repeats)), "", machine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head("train", "P", "what", "time", "floor", "ratio, gap or rank", "peak so far")
    machine = Machine.measured()
    huge((4,) * 20, 6, options.repeats, machine)
    huge((16,) * 10, 4, options.repeats, machine)
    own = train((4,) * 8, 6)
    jacobian = TrainJacobian.plain(own)
    pairs = [(seconds(jacobian.gram), seconds(lambda: by_torch(own))) for _ in range(options.repeats)]
    ours, theirs = (median(pair[i] for pair in pairs) for i in (0, 1))
    gram, expected = jacobian.gram(), by_torch(own)
    gap = float((gram - expected).abs().max() / expected.abs().max())
    line("2^16: 4^8, r = 6", own, "JᵀJ", ours, f"gap {gap:.0e}", machine)
    line(
        "2^16: 4^8, r = 6",
        own,
        "torch.func.jacfwd and a product",
        theirs,
        f"{theirs / ours:.0f} times ours",
        machine,
    )


if __name__ == "__main__":
    main()
