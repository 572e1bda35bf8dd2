"""How fast is tt_svd beside tensorly and torchTT at equal error?

    python benchmarks/tt_svd.py                      # 2^20, seconds
    python benchmarks/tt_svd.py --size 20 22 24      # the table of the README, some minutes

Five damped sines with white noise, folded to modes of 4. torchTT gets the same tolerance; tensorly, which has
none, gets the ranks that ours chose. All run in turn in one process; times are medians. The floor is reading
the tensor once from memory.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import tensorly
import torch
import torchtt
from common.machine import FLOAT, Machine
from common.turns import duration, head
from tensorly.decomposition import tensor_train
from torch import Tensor

from tntune.tt import RankRule, cores, dense, tt_svd, tt_tensor

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
NOISE = 0.1  # white noise, as a share of the tolerance


def damped_sines(size: int, dtype: torch.dtype) -> Tensor:
    """The signal and its noise as a tensor of modes 4."""
    t = torch.arange(2**size, dtype=torch.float64) / 2**size
    signal = sum(torch.exp(-k * t) * torch.sin(2 * torch.pi * (3 + 7 * k) * t) for k in range(1, 6))
    white = torch.randn(t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = signal + white * (NOISE * TOLERANCE[dtype] * signal.norm() / white.norm())
    return noisy.to(dtype).reshape([4] * (size // 2))


def by_tensorly(tensor: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        return list(tensor_train(tensor, list(ranks)))


def measured(run: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    """Seconds of one call, and the cores it made."""
    start = time.perf_counter()
    made = run()
    return time.perf_counter() - start, made


def error(made: Sequence[Tensor], tensor: Tensor) -> float:
    approximation = dense(tt_tensor([core.double() for core in made]))
    return float((approximation - tensor).norm() / tensor.double().norm())


def compare(size: int, dtype: torch.dtype, repeats: int, machine: Machine) -> list[str]:
    """The rows of one size and dtype."""
    tensor, tolerance = damped_sines(size, dtype), TOLERANCE[dtype]
    ranks = tt_svd(tensor, RankRule(tolerance=tolerance)).ranks
    routes: dict[str, Callable[[], list[Tensor]]] = {
        "tntune": lambda: cores(tt_svd(tensor, RankRule(tolerance=tolerance)).value),
        "tensorly": lambda: by_tensorly(tensor, ranks),
        "torchTT": lambda: torchtt.TT(tensor, eps=tolerance).cores,
    }
    runs = [{name: measured(route) for name, route in routes.items()} for _ in range(repeats)]
    seconds = {name: median(run[name][0] for run in runs) for name in routes}
    floor = duration(machine.floor(0, tensor.numel() * tensor.itemsize / FLOAT))
    case = f"2^{size} {str(dtype).removeprefix('torch.')} | {tolerance:.0e}"
    return [
        f"| {case} | {name} | {seconds[name] * 1e3:.0f} ms | {seconds[name] / seconds['tntune']:.1f} "
        f"| {error(made, tensor):.1e} | {max(len(core) for core in made)} | {floor} |"
        for name, (_, made) in runs[-1].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[20], help="base-2 logarithms, even")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = Machine.measured()
    head("size", "tolerance", "library", "time", "ratio", "error", "rank", "floor")
    for size in options.size:
        for dtype in TOLERANCE:
            print("\n".join(compare(size, dtype, options.repeats, machine)), flush=True)


if __name__ == "__main__":
    main()
