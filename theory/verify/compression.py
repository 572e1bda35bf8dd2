"""C1 to C3: why trains of single layers lose to truncated SVDs, and what layers share.

python theory/verify/compression.py
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tntune.checkpoint.lora import open_lora
from tntune.convert import ConversionSettings, Target, convert_lora
from tntune.convert.candidate import Layers
from tntune.convert.gauge import Balanced, balance, delta_distance
from tntune.convert.joint import JointProblem
from tntune.convert.joint_bounds import JointSpectra, joint_bounds, joint_spectra
from tntune.convert.norm import Norm
from tntune.convert.stream_problem import StreamState
from tntune.convert.truncation import svd_errors
from tntune.maps.base import Factors
from tntune.tt import RankRule, cores, dense, tt_svd

ADAPTER = Path(__file__).parents[2] / "examples" / "minilm_docstrings_r8"
SIZE, RANK = 256, 16
DECAYS = (0.0, 0.5, 1.0, 2.0)
SHARES = (0.5, 0.25, 0.05)


def flat(down: Tensor, up: Tensor) -> tuple[Tensor, Callable[[Tensor], Factors]]:
    """The paper's vector ``[vec W1; vec W2]`` in modes 16 x 16 x 16 x 2."""
    vector = torch.cat([down.mT.flatten(), up.mT.flatten()]).reshape(2, 16, 16, 16)

    def back(tensor: Tensor) -> Factors:
        one, two = tensor.reshape(2, -1)
        return Factors(one.reshape(SIZE, RANK).mT, two.reshape(RANK, SIZE).mT)

    return vector, back


def split(down: Tensor, up: Tensor) -> tuple[Tensor, Callable[[Tensor], Factors]]:
    """Feature modes 16 and 16, then side and width."""
    joined = torch.stack([down.mT, up], dim=1).reshape(16, 16, 2 * RANK)

    def back(tensor: Tensor) -> Factors:
        sides = tensor.reshape(SIZE, 2, RANK)
        return Factors(sides[:, 0].mT, sides[:, 1])

    return joined, back


def whole(down: Tensor, up: Tensor) -> tuple[Tensor, Callable[[Tensor], Factors]]:
    """One mode over inputs and outputs, one over the width."""
    return torch.cat([down.mT, up]), lambda matrix: Factors(matrix[:SIZE].mT, matrix[SIZE:])


def train_error(made: tuple[Tensor, Callable[[Tensor], Factors]], target: Factors, budget: float) -> float:
    """Relative error of ΔW by the largest TT-SVD within the budget."""
    tensor, back = made
    errors = [1.0]
    for rank in range(1, 2 * RANK + 1):
        train = tt_svd(tensor, RankRule(max_rank=rank)).value
        if sum(core.numel() for core in cores(train)) <= budget:
            scale = float(torch.linalg.vector_norm(target.up @ target.down))
            errors.append(delta_distance(back(dense(train)), target) / scale)
    return min(errors)


def layer(decay: float, generator: torch.Generator) -> Balanced:
    """A LoRA with random directions and singular values ``j ** -decay``."""
    draws = (torch.randn(SIZE, RANK, generator=generator, dtype=torch.float64) for _ in range(2))
    (right, _), (left, _) = (torch.linalg.qr(draw) for draw in draws)
    values = torch.arange(1, RANK + 1, dtype=torch.float64) ** -decay
    return balance(right.mT, left * values)


def one_layer() -> Iterator[str]:
    """Errors of SVD and of trains for one layer with random directions."""
    generator = torch.Generator().manual_seed(0)
    for decay in DECAYS:
        own = layer(decay, generator)
        factors = Factors(own.down, own.up)
        mix = torch.randn(RANK, RANK, generator=generator, dtype=torch.float64)
        mixed = (mix @ own.down, own.up @ torch.linalg.inv(mix))
        for share in SHARES[:2]:
            budget = share * 2 * SIZE * RANK
            kept = int(budget) // (2 * SIZE)
            svd = float(own.values[kept:].square().sum() / own.values.square().sum()) ** 0.5
            trains = (whole(*factors), split(*factors), flat(*factors), flat(*mixed))
            found = (train_error(each, factors, budget) for each in trains)
            columns = " | ".join(f"{error:.3f}" for error in (svd, *found))
            yield f"| {decay:g} | {share:.0%} | {columns} |"


def trained() -> Iterator[str]:
    """The same for the 36 layers of the example, each layout alone."""
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("io w", "f1 f2 (side w)", "side f1 f2 w"):
            errors = []
            for share in SHARES[:2]:
                settings = ConversionSettings(Target(params=share), layouts=(layout,))
                report = convert_lora(ADAPTER, Path(folder) / "made", settings, overwrite=True)
                errors += [report.relative_error, report.svd_relative_error]
            yield f"| `{layout}` | " + " | ".join(f"{error:.3f}" for error in errors) + " |"


def needed(squares: Tensor, share: float) -> int:
    """Directions that hold a share of the squared norm."""
    return int((squares.cumsum(0) < share * squares.sum()).sum()) + 1


def twin(own: Balanced, generator: torch.Generator) -> Balanced:
    """A layer of the same singular values in random directions."""
    sizes = (own.down.shape[1], own.up.shape[0])
    draws = (torch.randn(n, len(own.values), generator=generator, dtype=torch.float64) for n in sizes)
    (right, _), (left, _) = (torch.linalg.qr(draw) for draw in draws)
    return balance(right.mT, left * own.values)


def best_bound(spectra: JointSpectra, size: int, budget: float) -> float:
    """The least lower bound that the budget buys."""
    count = len(spectra.layers)
    bounds = [1.0]
    for width in range(1, 9):
        rank = int(budget) // (size + 2 * count * width)
        if rank >= width:
            bounds.append(joint_bounds(spectra, rank, width).lower)
    return min(bounds)


def shared(layers: Layers) -> Iterator[str]:
    """What the layers of each shape have in common, and what no joint train can undercut."""
    generator = torch.Generator().manual_seed(0)
    for names in layers.groups():
        own = [layers.balanced[name] for name in names]
        spectra = joint_spectra(own)
        others = joint_spectra([twin(each, generator) for each in own])
        size = layers.size(names[0])
        total = sum(len(each.values) for each in own)
        counts = [needed(each, 0.9) for s in (spectra, others) for each in (s.inputs, s.outputs)]
        errors = []
        for share in SHARES[1:]:
            budget = share * total * size
            values = {name: layers.balanced[name].values for name in names}
            lost = svd_errors(values, dict.fromkeys(names, size), int(budget))
            norm = math.fsum(each.norm**2 for each in own)
            errors += [(sum(lost.values()) / norm) ** 0.5, best_bound(spectra, size, budget)]
        outside, inside = layers.shape(names[0])
        columns = " | ".join([*map(str, counts), *(f"{error:.3f}" for error in errors)])
        yield f"| {inside} to {outside} | {len(names)} | {total} | {columns} |"


def cut(basis: Tensor, bond: int) -> Tensor:
    """The features of a basis ``(n, r)`` as modes 16 and n / 16 with this bond between them."""
    left, values, right = torch.linalg.svd(basis.reshape(16, -1), full_matrices=False)
    return ((left[:, :bond] * values[:bond]) @ right[:bond]).reshape(basis.shape)


def factored_error(problem: JointProblem, rank: int, width: int) -> tuple[float, float]:
    """Error of a train with whole feature modes, and the least of factored ones of at most its size.

    Factored, bases of more columns cost the same; for each the best coefficients are taken.
    """
    count, features = len(problem.problem.squares), sum(problem.problem.features.values())
    budget = rank * (features + 2 * count * width)
    errors = [1.0]
    for more in (1.0, 1.5, 2.0, 3.0):
        larger = round(more * rank)
        bond = (budget - 2 * count * larger * width) // (2 * 16 + features // 16 * larger)
        if bond < 1:
            continue
        train = problem.fit(larger, width, sweeps=3).train
        bases = {"inputs": cut(train.inputs, bond), "outputs": cut(train.outputs, bond)}
        errors.append(StreamState(problem.problem, bases, [width] * count).error)
    return problem.fit(rank, width, sweeps=3).history[-1] ** 0.5, min(errors) ** 0.5


def factored(layers: Layers) -> Iterator[str]:
    """Whole and factored feature modes of one train over the square layers, at equal size."""
    names = layers.groups()[0]
    norms = layers.norms(Norm())
    problem = JointProblem([layers.factors(name) for name in names], [norms[name] for name in names])
    for rank, width in ((8, 4), (16, 4), (32, 6), (64, 8)):
        whole, apart = factored_error(problem, rank, width)
        yield f"| {rank} | {width} | {whole:.3f} | {apart:.3f} |"


def main() -> None:
    print(f"C1 and the gauge: one layer, {SIZE} to {SIZE}, rank {RANK}, random directions, singular values")
    print("`j^-decay`; relative error of ΔW at equal parameters:\n")
    print("| decay | share | SVD | `io w` | `f1 f2 (side w)` | flat, balanced | flat, another basis |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(one_layer()))
    print("\nThe example adapter, layer by layer, one layout at a time:\n")
    print("| layout | 50 % | SVD | 25 % | SVD |\n|---|---|---|---|---|")
    print("\n".join(trained()))
    print("\nC2 and C3: the same adapter, all layers of a shape together. Directions that hold 90 % of the")
    print("squared norm, here and with the same singular values in random directions; then the error of")
    print("SVD and what no joint train of the same size can undercut, in the Frobenius norm:\n")
    print("| shape | layers | all | inputs | outputs | inputs, random | outputs, random |", end="")
    print(" SVD, 25 % | bound, 25 % | SVD, 5 % | bound, 5 % |")
    print("|---" * 11 + "|")
    layers = Layers.load(open_lora(ADAPTER))
    print("\n".join(shared(layers)))
    print(
        "\nFeature modes whole, or factored into 16 and 24, in one train over the 24 square layers: relative"
    )
    print("error of a fit, and the least of factored ones with more columns and at most its size:\n")
    print("| rank | width | whole | factored |\n|---|---|---|---|")
    print("\n".join(factored(layers)))


if __name__ == "__main__":
    main()
