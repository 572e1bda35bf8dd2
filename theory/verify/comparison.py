"""Does a TensorGuide have the better-conditioned tangent kernel? Equations 13 and 26 to 29, measured.

    python theory/verify/comparison.py                 # a minute
    python theory/verify/comparison.py --inputs 256    # the head at the size of the audit, many minutes

Two settings, several seeds each, float64, kernels from singular values of A. *Hidden*: an adapter on a layer
of 64 -> 64 features behind which tanh and a head of 4 outputs follow; 24 inputs. *Head*: 512 -> 2 features,
inputs with positive entries, the kernel of both logits, as in the published experiment. LoRA stands beside
TensorGuide once at about equal parameters (r = 2) and, in the hidden layer, once at equal width (r = 8).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from tntune.maps import (
    ACTIVATIONS,
    Concat,
    Joined,
    Latent,
    LatentTrain,
    LoRA,
    Site,
    TensorGuide,
    TTLoRA,
    WeightMap,
)
from tntune.theory import Ntk, SpectrumReport, layer_ntk

HIDDEN_SEEDS, HEAD_SEEDS = range(5), range(3)
PUBLISHED_SPREAD = 0.01  # of the published LoRA's two factors


@dataclass(frozen=True)
class Method:
    """An adapter of the comparison; ``published`` LoRA draws both factors from 0.01 randn."""

    name: str
    map: Callable[[int], WeightMap]
    scale: float = 1.0
    activation: str = "identity"
    spread: float | None = None

    def tensors(self, seed: int) -> tuple[WeightMap, dict[str, Tensor]]:
        """Params and fixed of this seed."""
        map, generator = self.map(seed), torch.Generator().manual_seed(seed)
        params, fixed = map.init(generator, dtype=torch.float64)
        if self.spread is not None:
            params = {
                name: self.spread * torch.randn(p.shape, generator=generator, dtype=torch.float64)
                for name, p in params.items()
            }
        return map, {**params, **fixed}


def head_guide(start: str) -> Callable[[int], WeightMap]:
    return lambda seed: TensorGuide(
        512, 2, 1024, Concat((16, 8, 257, 16)), (1, 2, 2, 1, 1), Latent("fixed", (1, 2, 2, 1), seed), start
    )


def head_tt_lora(start: str) -> Callable[[int], WeightMap]:
    def make(seed: int) -> WeightMap:
        down = LatentTrain((8, 8, 80), (1, 2, 2, 1), Latent("fixed", (8, 8, 8), 2 * seed))
        up = LatentTrain((10, 2), (1, 2, 1), Latent("fixed", (4, 5), 2 * seed + 1))
        return TTLoRA(512, 2, 10, down, up, start)

    return make


def hidden_guide(start: str) -> Callable[[int], WeightMap]:
    """Width 8: features 2 x 8 x 8 behind ranks up to 6."""
    layout = Joined("side f1 f2 w", (2, 8, 8, 8))
    return lambda seed: TensorGuide(64, 64, 8, layout, (1, 2, 4, 4, 1), start=start)


def hidden_default() -> Callable[[int], WeightMap]:
    """The default layout, both sides at the width: its zero start leaves a whole core with a gradient."""
    layout = Joined("f1 f2 (side w)", (8, 8, 2, 8))
    return lambda seed: TensorGuide(64, 64, 8, layout, (1, 4, 4, 1))


def hidden_tt_lora(start: str) -> Callable[[int], WeightMap]:
    return lambda seed: TTLoRA(
        64,
        64,
        8,
        LatentTrain((8, 8, 8), (1, 3, 3, 1)),
        LatentTrain((8, 8, 8), (1, 3, 3, 1)),
        start,
    )


def lora(d: int, q: int, width: int, start: str) -> Callable[[int], WeightMap]:
    return lambda seed: LoRA(d, q, width, start)


HEAD = (
    Method("LoRA, standard", lora(512, 2, 4, "zero")),
    Method("LoRA, published", lora(512, 2, 4, "random"), scale=8.0, spread=PUBLISHED_SPREAD),
    Method("LoRA r = 2, published", lora(512, 2, 2, "random"), scale=8.0, spread=PUBLISHED_SPREAD),
    Method("TT-LoRA, published", head_tt_lora("published")),
    Method("TensorGuide, published", head_guide("published"), scale=0.01),
    Method("TensorGuide, zero", head_guide("zero")),
    Method("TensorGuide, paper", head_guide("paper")),
    Method("TensorGuide, paper", head_guide("paper"), activation="relu"),
)

HIDDEN = (
    Method("LoRA r = 8, standard", lora(64, 64, 8, "zero")),
    Method("LoRA r = 8, random", lora(64, 64, 8, "random")),
    Method("LoRA r = 2, standard", lora(64, 64, 2, "zero")),
    Method("LoRA r = 2, random", lora(64, 64, 2, "random")),
    Method("TT-LoRA, zero", hidden_tt_lora("zero")),
    Method("TT-LoRA, paper", hidden_tt_lora("paper")),
    Method("TensorGuide, zero", hidden_guide("zero")),
    Method("TensorGuide, zero", hidden_guide("zero"), activation="relu"),
    Method("TensorGuide, zero, f1 f2 (side w)", hidden_default()),
    Method("TensorGuide, paper", hidden_guide("paper")),
    Method("TensorGuide, paper", hidden_guide("paper"), activation="relu"),
    Method("TensorGuide, published", hidden_guide("published")),
)


def head_report(method: Method, seed: int, inputs: int) -> SpectrumReport:
    """The kernel of the two logits on positive features, the same for every method."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(inputs, 512, dtype=torch.float64, generator=generator).abs()
    map, tensors = method.tensors(seed)
    site = Site(map, method.scale, method.activation)
    return spectrum(layer_ntk(site, tensors, x))


def hidden_report(method: Method, seed: int) -> SpectrumReport:
    """The kernel of four outputs behind the layer, by the chain rule through tanh and the head."""
    generator = torch.Generator().manual_seed(2000 + seed)
    x, base, head = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((24, 64), (64, 64), (4, 64))
    )
    map, tensors = method.tensors(seed)
    site = Site(map, method.scale, method.activation)
    down, up = (part[0] for part in site.factors(tensors))
    y = x @ base.mT / 8 + method.scale * ACTIVATIONS[method.activation].function(x @ down.mT) @ up.mT
    gradients = head / 8 * (1 - torch.tanh(y) ** 2)[:, None]  # (n, C, Q)
    return spectrum(layer_ntk(site, tensors, x, gradients=gradients))


def spectrum(kernel: Ntk) -> SpectrumReport:
    """Its spectrum; the rank is at most the number of parameters that have a gradient at all."""
    moving = int((kernel.factor() != 0).any(0).sum())
    return kernel.spectrum(rank_bound=moving)


def row(method: Method, reports: list[SpectrumReport]) -> str:
    free = [(r.lambda_min_plus or 0.0) * r.size / r.trace for r in reports]
    smallest = [r.lambda_min for r in reports]
    exact = [value for value in smallest if value is not None]
    shown = (
        spread(exact) if len(exact) == len(reports) else f"< {max(r.lambda_min_upper for r in reports):.0e}"
    )
    cells = [
        method.name,
        "linear" if method.activation == "identity" else method.activation,
        f"{method.map(0).num_parameters:,}",
        f"{median(r.rank for r in reports):g}",
        spread([r.lambda_max for r in reports]),
        shown,
        spread([r.lambda_min_plus or 0.0 for r in reports]),
        spread([r.cond_plus or 0.0 for r in reports]),
        " / ".join(
            f"{median(values):.3g}"
            for values in (
                [r.stable_rank for r in reports],
                [r.participation_rank for r in reports],
                [r.entropy_rank for r in reports],
            )
        ),
        spread(free),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Median, and in brackets the least and the largest of the seeds."""
    if max(values) == 0.0:
        return "0"
    return f"{median(values):.1e} [{min(values):.0e}, {max(values):.0e}]"


def table(
    title: str,
    methods: Sequence[Method],
    seeds: Sequence[int],
    report: Callable[[Method, int], SpectrumReport],
) -> None:
    size = report(methods[0], 0).size
    print(f"## {title}\n\nKernel {size} x {size}; median [least, largest] of {len(seeds)} seeds.\n")
    print("| method, start | σ | P | rank | λ_max | λ_min | λ_min⁺ | cond⁺ | ranks | λ_min⁺ / mean λ |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for method in methods:
        print(row(method, [report(method, seed) for seed in seeds]), flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=32, help="of the head")
    inputs = parser.parse_args().inputs
    print("Ranks: stable, participation, entropy. The last column is free of every scale.\n")
    table("Hidden layer, 64 -> 64", HIDDEN, HIDDEN_SEEDS, hidden_report)
    table("Head, 512 -> 2", HEAD, HEAD_SEEDS, lambda method, seed: head_report(method, seed, inputs))


if __name__ == "__main__":
    main()
