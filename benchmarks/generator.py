"""What does generating both factors from one train cost, beside torch.einsum of the same formula?

    python benchmarks/generator.py

The published network of the paper: 512 inputs, 2 outputs, width 1,024, modes 16 x 8 x 257 x 16, a fixed
latent, 526,336 entries. Theirs is the formula as the published layer runs it, one ``torch.einsum`` over all
cores per call. Beside it the time to fill as many numbers, below which nothing can go. CPU seconds of one
thread, in turn in one process; medians of rounds, with quartiles of the ratio.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles

import torch
from torch import Tensor

from tntune.adapters import FactorGenerator
from tntune.maps import Latent, TensorGuide

FORMULA = "aimb,bjnc,ckod,dlpe,ijkl->mnop"


def published(start: str) -> FactorGenerator:
    """The generator of the paper's Table 1."""
    latent = Latent("fixed", (1, 2, 2, 1))
    sizes = {"modes": (16, 8, 257, 16), "ranks": (1, 2, 2, 1, 1)}
    return FactorGenerator.fresh(
        TensorGuide.concat(512, 2, 1024, **sizes, latent=latent, start=start)
    ).train()


def seconds(run: Callable[[], object], repeats: int) -> float:
    """CPU seconds of a call, after one that pays for the memory that the other gave back."""
    run()
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def gradients(factors: Sequence[Tensor], cores: Sequence[Tensor], along: Sequence[Tensor]) -> object:
    """A backward from given gradients of both factors."""
    return torch.autograd.grad(factors, cores, along)


def row(
    what: str, ours: Callable[[], object], other: Callable[[], object], options: argparse.Namespace
) -> None:
    """Our time, the other's, and their ratio both ways."""
    ours(), other()
    pairs = [(seconds(ours, options.repeats), seconds(other, options.repeats)) for _ in range(options.rounds)]
    ratios = [theirs / own for own, theirs in pairs]
    low, _, high = quantiles(ratios, n=4)
    own, theirs = (median(pair[i] for pair in pairs) * 1e6 for i in (0, 1))
    ratio = median(ratios)
    cells = (
        what,
        f"{own:.0f} us",
        f"{theirs:.0f} us",
        f"{ratio:.2f}",
        f"{1 / ratio:.1f}",
        f"{low:.2f} to {high:.2f}",
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def compare(start: str, options: argparse.Namespace) -> None:
    """Three rows: forward, forward and backward, and forward beside the floor."""
    generator = published(start)
    cores = list(generator.parameters())
    inputs, outputs, width = generator.map.geometry
    entries = generator.map.train.num_entries
    along = [torch.randn_like(factor) for factor in generator()]

    def einsum() -> tuple[Tensor, Tensor]:
        """Both factors as the published layer reads them from the flat vector."""
        w = torch.einsum(FORMULA, *cores, generator.tt_latent).flatten()
        first, second = w.split([inputs * width, width * outputs])
        return first.view(1, inputs, width).mT, second.view(1, width, outputs).mT

    row(f"start {start}: forward, against einsum", generator, einsum, options)
    both = [lambda make=make: gradients(make(), cores, along) for make in (generator, einsum)]
    row(f"start {start}: forward and backward, against einsum", *both, options)
    row(
        f"start {start}: forward, against filling",
        generator,
        lambda: torch.empty(entries).fill_(1.0),
        options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | ours | other | other / ours | ours / other | quartiles of the former |")
    print("|---|---|---|---|---|---|")
    for start in ("published", "zero"):
        compare(start, options)


if __name__ == "__main__":
    main()
