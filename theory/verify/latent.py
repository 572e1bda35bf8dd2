"""T4: the nullity of J with a latent by formula and by count, and the published network.

python theory/verify/latent.py
"""

import random
from collections import Counter

import torch
from torch import Tensor

from tntune.errors import RankError
from tntune.maps import Latent, LatentTrain, TensorGuide
from tntune.theory import TrainJacobian, conditioning, map_jacobian, nullity
from tntune.tt import cores, dense, gaussian, tt_svd

DRAWS = 200


def latent(kind: str, legs: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The latent of a kind: normal entries, a product of vectors, or TT-ranks 2."""
    if kind == "generic":
        return torch.randn(legs, dtype=torch.float64, generator=generator)
    return dense(gaussian(legs, 1 if kind == "product" else 2, dtype=torch.float64, generator=generator))


def jacobian(train: LatentTrain, z: Tensor, generator: torch.Generator) -> TrainJacobian:
    """J at standard normal cores."""
    own = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in train.core_shapes]
    parts = zip(cores(tt_svd(z).value), train.modes, strict=True)
    return TrainJacobian(tuple(own), tuple(part[:, :, None].expand(-1, -1, m, -1) for part, m in parts))


def counts(kind: str) -> Counter[str]:
    """How often the formula equals the count, misses it, or does not apply."""
    shapes, found = random.Random(0), Counter[str]()
    for seed in range(DRAWS):
        order = shapes.choice([2, 3, 4])
        legs = tuple(shapes.choice([1, 2, 2, 3]) for _ in range(order))
        modes = tuple(shapes.choice([2, 3, 4, 5, 6, 8]) for _ in range(order))
        ranks = (1, *(shapes.choice([1, 2, 3]) for _ in range(order - 1)), 1)
        train = LatentTrain(modes, ranks, Latent("fixed", legs))
        generator = torch.Generator().manual_seed(seed)
        z = latent(kind, legs, generator)
        try:
            formula = nullity(train, z).total
        except RankError:
            found["not minimal"] += 1
            continue
        values = jacobian(train, z, generator).singular_values()
        counted = train.num_parameters - int((values > 1e-11 * values[0]).sum())
        found["equal" if formula == counted else "below" if formula < counted else "ABOVE"] += 1
    return found


def main() -> None:
    print(f"T4, {DRAWS} draws of shapes, ranks, latent legs and cores for each kind of z:\n")
    print("| latent | formula = count | formula < count | formula > count | not minimal |")
    print("|---|---|---|---|---|")
    for kind in ("generic", "product", "low rank"):
        found = counts(kind)
        columns = (found[name] for name in ("equal", "below", "ABOVE", "not minimal"))
        print(f"| {kind} | " + " | ".join(map(str, columns)) + " |")
    z = Latent("fixed", (1, 2, 2, 1))
    sizes = {"modes": (16, 8, 257, 16), "ranks": (1, 2, 2, 1, 1)}
    guide = TensorGuide.concat(512, 2, 1024, **sizes, latent=z, start="published")  # type: ignore[arg-type]
    params, fixed = guide.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    found = nullity(guide.train)
    exact = map_jacobian(guide, params, fixed)
    spectrum = exact.spectrum()
    bounds = conditioning(exact.blocks[0])
    print("\nThe published network, modes 16x8x257x16, ranks (1, 2, 2, 1, 1), latent (1, 2, 2, 1):\n")
    print("| quantity | value |\n|---|---|")
    print(f"| parameters | {guide.num_parameters} |")
    print(f"| Σ r_k² | {sum(rank**2 for rank in guide.ranks[1:-1])} |")
    causes = f"{found.modes} + {found.bonds} + {found.symmetries}, at least {found.excess}"
    print(f"| nullity by formula | {found.total} ({causes}) |")
    print(f"| nullity counted | {exact.num_parameters - spectrum.rank} |")
    print(f"| rank J | {spectrum.rank} |")
    print(f"| condition of J on its range | {spectrum.cond_plus**0.5:.3g} |")
    print(f"| λ_max(J Jᵀ), bound above | {spectrum.lambda_max:.3g} <= {bounds[2].value:.3g} |")


if __name__ == "__main__":
    main()
