"""What would one batched contraction for all per-layer trains of a shape save over one for each layer?

    python benchmarks/batching.py

GPT-2's small shape, width 8, all four linear layers of every block adapted, each with a train of its own.
Alone: every layer generates its factors. Together: the cores of all layers of a shape are stacked, and one
contraction makes the factors of all. Forward and backward into the cores, CPU time of one thread, medians of
rounds in turn; beside them the products that are launched, which is what counts on an accelerator.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from common.turns import duration, head, in_turn, row
from torch import Tensor

from tntune.adapters import FactorGenerator
from tntune.maps import Factors, Geometry, build_map

SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))


def alone(generators: list[FactorGenerator], along: list[Tensor]) -> None:
    """Every layer by itself."""
    for generator in generators:
        torch.autograd.backward(list(generator()), along)


def together(generators: list[FactorGenerator], along: list[Tensor]) -> None:
    """All layers of one shape by one contraction over stacked cores."""
    map = generators[0].map
    stacked = {name: torch.stack([getattr(one, name) for one in generators]) for name in map.param_shapes}
    made: Factors = torch.func.vmap(lambda own: map.factors(own, {}))(stacked)
    torch.autograd.backward(list(made), [part.expand(len(generators), *part.shape) for part in along])


def over_shapes(
    route: Callable[[list[FactorGenerator], list[Tensor]], None], layers: int, width: int
) -> Callable[[], None]:
    """One route for the layers of all shapes."""
    maps = [build_map("tensorguide", Geometry(*shape, width), start="random") for shape in SHAPES]
    groups = [[FactorGenerator.fresh(map) for _ in range(layers)] for map in maps]
    along = [[torch.randn_like(part) for part in group[0]()] for group in groups]

    def run() -> None:
        for group, parts in zip(groups, along, strict=True):
            route(group, parts)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24, 48])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head("blocks", "sites", "alone", "together", "alone / together", "products alone", "together")
    for layers in options.layers:
        runs = {route.__name__: over_shapes(route, layers, options.width) for route in (alone, together)}
        times = {name: median(found) for name, found in in_turn(runs, options.rounds).items()}
        calls = sum(
            len(plan.steps)
            for shape in SHAPES
            for plan in build_map("tensorguide", Geometry(*shape, options.width)).plans
        )
        own, one = times["alone"], times["together"]
        row(
            layers,
            len(SHAPES) * layers,
            duration(own),
            duration(one),
            f"{own / one:.2f}",
            calls * layers,
            calls,
        )


if __name__ == "__main__":
    main()
