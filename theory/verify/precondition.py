"""Does the preconditioner T3' train faster? All try the same learning rates, and the best of each counts.

python theory/verify/precondition.py
"""

import math
from collections.abc import Callable
from statistics import mean, stdev

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from tntune.theory import ScaledAdamW, ScaledGD
from tntune.tt import RankRule, cores, dense, tt_svd, tt_tensor

MODES, RANK, STEPS, SEEDS = (4, 4, 4, 4), 3, 60, range(5)
T_QUANTILE = 2.776  # Student's t, 95 %, 4 degrees of freedom

RATES = [10.0**e for e in (-2.5, -2, -1.5, -1, -0.5, 0)]
OPTIMISERS: dict[str, Callable[[list[Tensor], float], Optimizer]] = {
    "SGD": lambda own, lr: SGD(own, lr=lr),
    "ScaledGD": lambda own, lr: ScaledGD([{"params": own}], lr=lr),
    "AdamW": lambda own, lr: AdamW(own, lr=lr, weight_decay=0.0),
    "ScaledAdamW": lambda own, lr: ScaledAdamW([{"params": own}], lr=lr),
}


def random_cores(seed: int, decay: float) -> list[Tensor]:
    """Cores of norm about 1 whose bonds have singular values that fall by this factor."""
    generator = torch.Generator().manual_seed(seed)
    ranks = (1, *RankRule(max_rank=RANK).caps(MODES), 1)
    made = []
    for left, mode, right in zip(ranks[:-1], MODES, ranks[1:], strict=True):
        core = torch.randn(left, mode, right, dtype=torch.float64, generator=generator)
        made.append(core * decay ** torch.arange(right) / math.sqrt(left * mode))
    return made


def target(name: str, seed: int) -> Tensor:
    """A train of our own ranks, well or ill conditioned, or such a train and white noise of equal size."""
    decay = 0.1 if "ill" in name else 1.0
    made = dense(tt_tensor(random_cores(1000 + seed, decay)))
    made = made / made.norm()
    if "noise" in name:
        white = torch.randn(
            made.shape, dtype=made.dtype, generator=torch.Generator().manual_seed(2000 + seed)
        )
        made = (made + white / white.norm()) / math.sqrt(2)
    return made


def error(make: Callable[[list[Tensor], float], Optimizer], goal: Tensor, seed: int, rate: float) -> float:
    """Squared relative error after training; infinite where it diverged."""
    own = [core.requires_grad_() for core in random_cores(seed, 1.0)]
    optimiser = make(own, rate)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = (dense(tt_tensor(own)) - goal).square().sum() / 2
        if not bool(loss < 1e3):
            return math.inf
        loss.backward()
        optimiser.step()
    return distance([core.detach() for core in own], goal)


def distance(own: list[Tensor], goal: Tensor) -> float:
    """``|X - Y|² / |Y|²``, at least the rounding of the difference."""
    return max(float((dense(tt_tensor(own)) - goal).square().sum() / goal.square().sum()), 1e-30)


def spread(values: list[float]) -> str:
    """Geometric mean over seeds with the 95 % interval of Student's t."""
    logs = [math.log10(value) for value in values]
    half = T_QUANTILE * stdev(logs) / math.sqrt(len(logs))
    low, middle, high = (10 ** (mean(logs) + side * half) for side in (-1, 0, 1))
    return f"{middle:.2g} | {low:.2g} .. {high:.2g}"


def rows(name: str) -> None:
    """Every optimiser at its own best rate, and the TT-SVD of the same ranks."""
    goals = {seed: target(name, seed) for seed in SEEDS}
    for method, make in OPTIMISERS.items():
        found = {rate: [error(make, goals[seed], seed, rate) for seed in SEEDS] for rate in RATES}
        kept = {rate: values for rate, values in found.items() if all(map(math.isfinite, values))}
        rate = min(kept, key=lambda key: mean(map(math.log, kept[key])))
        print(f"| {name} | {method} | {rate:.0e} | {spread(kept[rate])} |", flush=True)
    best = [distance(cores(tt_svd(goal, RankRule(max_rank=RANK)).value), goal) for goal in goals.values()]
    print(f"| {name} | TT-SVD, no training | | {spread(best)} |", flush=True)


def main() -> None:
    print(
        f"Error `|X - Y|² / |Y|²` after {STEPS} steps: geometric mean of {len(SEEDS)} seeds, 95 % interval.\n"
    )
    print("| target | optimiser | best rate | error | interval |\n|---|---|---|---|---|")
    for name in ("train", "ill-conditioned train", "train and noise", "ill-conditioned train and noise"):
        rows(name)


if __name__ == "__main__":
    main()
