"""T0, T1, T3, T3', T5, T6, E5, E8, E9: each statement beside the quantity, on draws of its own.

python theory/verify/jacobian.py
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tntune.maps import LoRA
from tntune.theory import (
    Bound,
    TrainJacobian,
    conditioning,
    function_error,
    kernel_interval,
    kernel_rank,
    preconditioning,
    risk_gap,
    truncation_error,
)
from tntune.tt import RankRule, dense, tt_tensor


def train(modes: tuple[int, ...], rank: int, seed: int, *, decay: float = 1.0) -> list[Tensor]:
    """Random cores of norm about 1 whose bonds have singular values that fall by this factor."""
    generator = torch.Generator().manual_seed(seed)
    ranks = (1, *RankRule(max_rank=rank).caps(modes), 1)
    made = []
    for left, mode, right in zip(ranks[:-1], modes, ranks[1:], strict=True):
        core = torch.randn(left, mode, right, dtype=torch.float64, generator=generator)
        made.append(core * decay ** torch.arange(right) / math.sqrt(left * mode))
    return made


def dense_jacobian(own: Sequence[Tensor]) -> Tensor:
    """J by reverse differentiation."""
    places = tuple(range(len(own)))
    columns = torch.func.jacrev(lambda *c: dense(tt_tensor(c)).flatten(), argnums=places)(*own)
    return torch.cat([column.flatten(1) for column in columns], dim=1)


def exactness() -> list[Bound]:
    """T0 against dense J, T0 against itself where none exists, and T1."""
    own = train((4,) * 6, 4, 0)
    J, ours = dense_jacobian(own), TrainJacobian.plain(own)
    gram = J.mT @ J
    gap = float((ours.gram() - gram).abs().max() / gram.abs().max())
    large = train((4,) * 20, 4, 1)
    huge = TrainJacobian.plain(large)
    C = huge.factor()
    other = float((C.mT @ C - huge.gram()).abs().max() / huge.gram().abs().max())
    values = torch.linalg.svdvals(C)
    rank = int((values > 1e-12 * values[0]).sum())
    dimension = huge.num_parameters - sum(len(core) ** 2 for core in large[1:])
    return [
        Bound("T0", "4^6: max gap of JᵀJ to autodiff", 1e-12, gap, ("float64",)),
        Bound("T0", "4^20 = 2^40: max gap of JᵀJ to CᵀC", 1e-12, other, ("float64",)),
        Bound("T1", "4^20 = 2^40: rank J = P - Σ r_k²", dimension, rank, ("minimal cores",), "equal"),
    ]


def gauges() -> list[Bound]:
    """T3 and T3' on well and ill conditioned cores."""
    found: list[Bound] = []
    for decay in (1.0, 0.1, 0.01):
        jacobian = TrainJacobian.plain(train((4, 4, 4, 4), 4, 2, decay=decay))
        found += conditioning(jacobian)
        found += preconditioning(jacobian)
    return found


def kernels() -> list[Bound]:
    """T5 with gradients without structure, and T6 with an up of rank 2 of 5."""
    generator = torch.Generator().manual_seed(3)
    J = dense_jacobian(train((4,) * 5, 3, 4))
    found: list[Bound] = []
    for samples in (16, 64, 256):
        found += kernel_interval(torch.randn(samples, len(J), dtype=torch.float64, generator=generator), J)
    shapes = ((5, 2), (2, 12), (12, 9))
    L, R, D = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    for samples in (2, 8, 20):
        x = torch.randn(samples, 9, dtype=torch.float64, generator=generator)
        columns = torch.func.jacrev(
            lambda L, R, D, x=x: (torch.relu(x @ D.mT) @ R.mT @ L.mT).flatten(), argnums=(0, 1, 2)
        )(L, R, D)
        A = torch.cat([column.flatten(1) for column in columns], dim=1)
        found.append(kernel_rank(A, samples=samples, up_rank=2))
    return found


def approximation() -> list[Bound]:
    """E5, E8 and E9; E9 at fixed ranks and growing width."""
    generator = torch.Generator().manual_seed(5)
    lora = LoRA(32, 8, 16, "random")
    one, other = (lora.factors(*lora.init(generator)) for _ in range(2))
    x = torch.randn(64, 32, generator=generator)
    outputs = [torch.relu(x @ down[0].mT) @ up[0].mT for down, up in (one, other)]
    labels = torch.randint(8, (64,), generator=generator)
    found = [risk_gap(outputs[0], outputs[1], labels), function_error(one, other, x, activation="relu")]
    for width in (8, 32, 128):
        target = torch.randn(2, 16, width, dtype=torch.float64, generator=generator) / math.sqrt(16)
        found.append(truncation_error(target, (1, 4)))
    return found


def table(bounds: Sequence[Bound]) -> None:
    """One row for each bound."""
    print("| label | statement | value | measured | slack | holds |\n|---|---|---|---|---|---|")
    for bound in bounds:
        sign = {"upper": "<=", "lower": ">=", "equal": "="}[bound.sense]
        statement = bound.statement.replace("|", "\\|")
        print(
            f"| {bound.label} | {statement} | {sign} {bound.value:.3g} | {bound.measured:.3g} "
            f"| {bound.slack:.3g} | {'yes' if bound.holds else 'NO'} |"
        )


if __name__ == "__main__":
    table([*exactness(), *gauges(), *kernels(), *approximation()])
