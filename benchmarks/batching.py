"""What does one contraction for all layers of a shape save over one for each layer, and where does it cost?

    python benchmarks/batching.py

Trains of their own for equal layers, forward and backward into the cores, with a gradient for every matrix.
Alone: every layer generates its factors and goes backward at once, so that its memory stays in the cache.
Together: as in a pass of an adapted model. CPU time of one thread, medians of rounds in turn; beside them
the products that are launched, which is what counts on an accelerator. The first rows are GPT-2's small
shape, all four linear layers of every block; the others one shape each, from few entries a layer to many. The
last column is what the rule takes on a CPU.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from common.turns import duration, head, in_turn, ratio, row
from torch import Tensor

from tntune.adapters import FactorGenerator
from tntune.adapters.batch import Batch, is_batched
from tntune.maps import Geometry, build_map
from tntune.maps.chain import Chains, generated_entries

Shape = tuple[int, int]
GPT2: tuple[Shape, ...] = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
SINGLE = (
    ((768, 768), 16),
    ((768, 3072), 16),
    ((4096, 4096), 16),
    ((4096, 11008), 16),
    ((4096, 11008), 32),
)
"""Shapes and widths, from few entries a layer to many; the last is applied as products."""


class Always(Batch):
    """A batch that does not ask whether it pays, which is what is measured."""

    def _pays(self, device: torch.device) -> bool:
        return True


def alone(generators: Sequence[FactorGenerator], along: Sequence[Tensor]) -> None:
    """Every layer by itself."""
    for generator in generators:
        torch.autograd.backward(matrices([generator]), along)


def together(generators: Sequence[FactorGenerator], along: Sequence[Tensor]) -> None:
    """All layers of one shape by one contraction over stacked cores."""
    batch = Always(generators[0].map, generators)
    batch.begin()
    made = matrices(generators)
    batch.end()
    torch.autograd.backward(made, [*along] * len(generators))


def matrices(generators: Sequence[FactorGenerator]) -> list[Tensor]:
    """What the layers of these generators apply."""
    return [matrix for generator in generators for chain in generator(0, Chains) for matrix in chain]


def over_shapes(
    route: Callable[[Sequence[FactorGenerator], Sequence[Tensor]], None], groups: list[list[FactorGenerator]]
) -> Callable[[], None]:
    """One route for the layers of all shapes."""
    along = [[torch.randn_like(part) for part in matrices(group[:1])] for group in groups]

    def run() -> None:
        for group, parts in zip(groups, along, strict=True):
            route(group, parts)

    return run


def compare(what: str, shapes: Sequence[Shape], width: int, layers: int, rounds: int) -> None:
    """One row: so many layers of each shape."""
    maps = [build_map("tensorguide", Geometry(*shape, width), start="random") for shape in shapes]
    make = partial(FactorGenerator.fresh, generator=torch.Generator().manual_seed(0))
    groups = [[make(map) for _ in range(layers)] for map in maps]
    runs = {route.__name__: over_shapes(route, groups) for route in (alone, together)}
    times = in_turn(runs, rounds)
    over, quartiles = ratio(times, "alone", "together")
    own, one = (duration(sorted(times[name])[rounds // 2]) for name in runs)
    calls = sum(len(plan.steps) for map in maps for plan in map.plans)
    entries = max(map(generated_entries, maps))
    taken = {"together" if is_batched(map, torch.device("cpu")) else "alone" for map in maps}
    cells = (f"{entries:,}", own, one, f"{over:.2f}", quartiles, f"{calls * layers} / {calls}")
    row(what, width, layers * len(shapes), *cells, " and ".join(sorted(taken)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24, 48])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = ("alone / together", "quartiles", "products alone / together")
    head("shapes", "width", "sites", "entries of a site, at most", "alone", "together", *ratios, "on a CPU")
    for layers in options.layers:
        compare("GPT-2 small", GPT2, options.width, layers, options.rounds)
    for shape, width in SINGLE:
        compare(f"{shape[0]} -> {shape[1]}", [shape], width, 12, options.rounds)


if __name__ == "__main__":
    main()
