"""Where does a layer gain by applying its factors as products through a bond, and where not?

    python benchmarks/factorised.py

One train for both factors in the default layout, features before widths. Products: only the two halves of the
train are generated, ``(x Rᵀ) Lᵀ`` is applied. Whole: down and up are generated once and applied. Adapter
alone, forward and backward, the factors made at every call as in training; CPU milliseconds of one thread,
medians of rounds in turn. The last column says what the layer does by itself, which depends on shapes alone.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from common.turns import head, in_turn, ratio, row
from torch import Tensor

from tntune.adapters import FactorGenerator
from tntune.adapters.linear import through
from tntune.maps import Geometry, build_map
from tntune.maps.chain import Chains, halves

TOKENS = (1, 64, 512)
WIDTHS = ((16, 4), (16, 8), (32, 8), (32, 16), (64, 8), (64, 16), (64, 32), (256, 16), (256, 64))


def steps(features: int, width: int, rank: int, tokens: int) -> dict[str, Callable[[], None]]:
    """Forward and backward both ways, on the same params."""
    map = build_map("tensorguide", Geometry(features, features, width), rank=rank, start="random")
    generator, x = FactorGenerator.fresh(map), torch.randn(tokens, features)
    products = halves(map)
    assert products is not None
    params = dict(generator.named_parameters())

    def step(chains: Callable[[], Chains]) -> None:
        down, up = chains()
        loss: Tensor = through(through(x, down), up).sum()
        loss.backward()

    return {
        "products": lambda: step(lambda: products(params, {})),
        "whole": lambda: step(lambda: Chains.of(map.factors(params, {}))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, nargs="+", default=[4096, 11008, 65536])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--entries", type=int, default=2**21, help="largest factor that is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns = [
        f"{name}, {tokens} tokens"
        for tokens in TOKENS
        for name in ("products / whole ms", "whole / products")
    ]
    head("features", "width", "rank", *columns, "a layer applies")
    for features in options.features:
        for width, rank in WIDTHS:
            if features * width > options.entries:
                continue
            cells = []
            for tokens in TOKENS:
                times = in_turn(steps(features, width, rank, tokens), options.rounds)
                own, whole = (1e3 * median(times[name]) for name in ("products", "whole"))
                cells += [f"{own:.2f} / {whole:.2f}", f"{ratio(times, 'whole', 'products')[0]:.2f}"]
            map = build_map("tensorguide", Geometry(features, features, width), rank=rank)
            row(features, width, rank, *cells, "products" if halves(map).pays else "whole factors")


if __name__ == "__main__":
    main()
