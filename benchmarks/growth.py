"""How does the cost of a generated adapter grow, and does it grow as the counts say?

    python benchmarks/growth.py
    python benchmarks/growth.py --plot benchmarks/results/growth.png

Each row varies one size, the others fixed, and fits an exponent to CPU seconds by least squares in
logarithms, over the upper half of the sizes, where overheads no longer count. Generation is one forward and
backward of a per-layer train in the default layout; an applied adapter is its two products, forward and
backward, with the factors generated; layers have a train each; JᵀJ is the exact one of a train of modes 4. An
applied adapter grows faster than its flops once its input no longer fits into the cache: it is then bound by
memory, as a LoRA is.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from common.turns import Run, duration, head, in_turn, row
from matplotlib.figure import Figure

from tntune.adapters import FactorGenerator
from tntune.adapters.linear import through
from tntune.maps import Geometry, build_map
from tntune.maps.chain import Chains
from tntune.theory import TrainJacobian


@dataclass(frozen=True)
class Curve:
    """One size that grows.

    Attributes:
        what: What is timed.
        over: The size that grows.
        sizes: Its values.
        make: A run for one value.
        theory: The exponent that the counts say.
    """

    what: str
    over: str
    sizes: tuple[int, ...]
    make: Callable[[int], Run]
    theory: float


def generation(features: int = 4096, width: int = 16, rank: int = 8, layers: int = 1) -> Run:
    """Forward and backward of that many trains."""
    map = build_map("tensorguide", Geometry(features, features, width), rank=rank, start="random")
    generators = [FactorGenerator.fresh(map) for _ in range(layers)]
    along = [torch.randn_like(part) for part in generators[0]()]

    def run() -> None:
        for generator in generators:
            torch.autograd.backward(list(generator()), along)

    return run


def applied(tokens: int = 512, features: int = 4096, width: int = 16) -> Run:
    """Forward and backward of one adapter without a base."""
    map = build_map("tensorguide", Geometry(features, features, width), start="random")
    generator, x = FactorGenerator.fresh(map), torch.randn(tokens, features, requires_grad=True)

    def run() -> None:
        down, up = generator(0, Chains)
        through(through(x, down), up).sum().backward()

    return run


def gram(order: int) -> Run:
    """JᵀJ of a train of 4^order entries and ranks 6."""
    ranks = [1, 4, *[6] * (order - 3), 4, 1]
    drawn = torch.Generator().manual_seed(0)
    cores = [
        torch.randn(left, 4, right, dtype=torch.float64, generator=drawn) / (4 * left) ** 0.5
        for left, right in pairwise(ranks)
    ]
    return TrainJacobian.plain(cores).gram


CURVES = (
    Curve("generation", "features", (4096, 8192, 16384, 32768, 65536), lambda n: generation(features=n), 1),
    Curve("generation", "width", (32, 64, 128, 256, 512), lambda n: generation(width=n), 1),
    Curve("generation", "rank", (16, 32, 64, 128), lambda n: generation(width=64, rank=n), 1),
    Curve("generation", "layers", (4, 8, 16, 32), lambda n: generation(layers=n), 1),
    Curve("applied adapter", "tokens", (256, 512, 1024, 2048), lambda n: applied(tokens=n), 1),
    Curve("applied adapter", "features", (2048, 4096, 8192, 16384), lambda n: applied(features=n), 1),
    Curve("applied adapter", "width", (32, 64, 128, 256), lambda n: applied(width=n), 0),
    Curve("JᵀJ", "order, entries 4^order", (8, 12, 16, 20), gram, 2),
)
"""With a width far above the bond, products are applied: the cost then hardly grows with the width."""


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of the logarithms by least squares, over the upper half."""
    half = len(sizes) // 2
    x, y = ([math.log(value) for value in values[half - 1 :]] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def measured(curve: Curve, rounds: int) -> list[float]:
    """Seconds at each size, in turn."""
    runs = {str(size): curve.make(size) for size in curve.sizes}
    return [median(found) for found in in_turn(runs, rounds).values()]


def plot(found: list[tuple[Curve, list[float]]], file: Path) -> None:
    """All curves, relative to their first point, beside the exponents of the counts."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for curve, seconds in found:
        scale = [size / curve.sizes[0] for size in curve.sizes]
        line = axes.loglog(
            scale, [s / seconds[0] for s in seconds], "o-", label=f"{curve.what}: {curve.over}"
        )
        axes.loglog(scale, [x**curve.theory for x in scale], ":", color=line[0].get_color())
    axes.set_xlabel("size over the smallest")
    axes.set_ylabel("time over the first (dotted: what the counts say)")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path, help="draw the curves to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head("what", "grows", "from", "to", "time there", "exponent", "of the counts")
    found = [(curve, measured(curve, options.rounds)) for curve in CURVES]
    for curve, seconds in found:
        slope = exponent(list(curve.sizes), seconds)
        ends = f"{duration(seconds[0])} to {duration(seconds[-1])}"
        row(
            curve.what, curve.over, curve.sizes[0], curve.sizes[-1], ends, f"{slope:.2f}", f"{curve.theory:g}"
        )
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
