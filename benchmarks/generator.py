"""What does generating both factors from one train cost, beside torch.einsum of the same formula?

    python benchmarks/generator.py

The published network of the paper: 512 inputs, 2 outputs, width 1,024, modes 16 x 8 x 257 x 16, a fixed
latent, 526,336 entries. Theirs is the formula as the published layer runs it, one ``torch.einsum`` over all cores per
call. Beside it the time to fill as many numbers, below which nothing can go. CPU seconds of one thread, in
turn in one process; medians of rounds, with quartiles of the ratio.
"""

import argparse
import time
from collections.abc import Callable
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
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def backward(factors: tuple[Tensor, ...]) -> None:
    sum(factor.sum() for factor in factors).backward()


def row(
    what: str, ours: Callable[[], object], other: Callable[[], object], options: argparse.Namespace
) -> None:
    """Our time, the other's, and their ratio both ways."""
    ours(), other()
    pairs = [(seconds(ours, options.repeats), seconds(other, options.repeats)) for _ in range(options.rounds)]
    ratios = [theirs / own for own, theirs in pairs]
    low, _, high = quantiles(ratios, n=4)
    own, theirs = (median(pair[i] for pair in pairs) * 1e6 for i in (0, 1))
    print(
        f"| {what} | {own:.0f} us | {theirs:.0f} us | {median(ratios):.2f} | {1 / median(ratios):.1f} | {low:.2f} to {high:.2f} |",
        flush=True,
    )


def compare(start: str, options: argparse.Namespace) -> None:
    """Three rows: forward, forward and backward, and forward beside the floor."""
    generator = published(start)
    cores = [core.detach().clone().requires_grad_() for core in generator.parameters()]
    entries = generator.map.train.num_entries

    def einsum() -> Tensor:
        return torch.einsum(FORMULA, *cores, generator.tt_latent)

    row(f"start {start}: forward, against einsum", generator, einsum, options)
    both = (lambda: backward(generator()), lambda: backward((einsum(),)))
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
    print(
        "| what | ours | other | other / ours | ours / other | quartiles of the former |\n|---|---|---|---|---|---|"
    )
    for start in ("published", "zero"):
        compare(start, options)


if __name__ == "__main__":
    main()
