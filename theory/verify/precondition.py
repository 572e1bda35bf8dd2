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

MODES, RANK, STEPS, SEEDS = (5, 5, 5, 5), 3, 100, range(5)
FLOOR = 1e-16  # what is left of a difference of numbers of order 1

RATES = [10.0**e for e in (-3, -2.5, -2, -1.5, -1, -0.5, 0)]
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


def excess(make: Callable[[list[Tensor], float], Optimizer], goal: Tensor, seed: int, rate: float) -> float:
    """Squared relative error after training, less that of the TT-SVD of the same ranks."""
    own = [core.requires_grad_() for core in random_cores(seed, 1.0)]
    optimiser = make(own, rate)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = (dense(tt_tensor(own)) - goal).square().sum() / 2
        if not bool(loss < 1e3):
            return math.inf
        loss.backward()
        optimiser.step()
    best = dense(tt_tensor(cores(tt_svd(goal, RankRule(max_rank=RANK)).value)))
    reached = dense(tt_tensor([core.detach() for core in own]))
    return max(float((reached - goal).square().sum() - (best - goal).square().sum()), FLOOR)


def row(name: str, method: str) -> str:
    """The best learning rate by the mean logarithm over seeds, and the error there with its interval."""
    goals = {seed: target(name, seed) for seed in SEEDS}
    logs = {}
    for rate in RATES:
        found = [excess(OPTIMISERS[method], goals[seed], seed, rate) for seed in SEEDS]
        if all(math.isfinite(value) for value in found):
            logs[rate] = [math.log10(value) for value in found]
    rate = min(logs, key=lambda key: mean(logs[key]))
    half = 2.776 * stdev(logs[rate]) / math.sqrt(len(SEEDS))  # Student's t, 4 degrees of freedom
    return f"| {name} | {method} | {rate:.1e} | {mean(logs[rate]):.1f} ± {half:.1f} |"


def main() -> None:
    floor = round(math.log10(FLOOR))
    print(f"log10 of |X - Y|² / |Y|² above that of the TT-SVD of the same ranks, floor {floor}.")
    print(f"{STEPS} steps, {len(SEEDS)} seeds, 95 % interval of the mean.\n")
    print("| target | optimiser | best rate | log10 excess |\n|---|---|---|---|")
    for name in ("train", "ill-conditioned train", "train and noise", "ill-conditioned train and noise"):
        for method in OPTIMISERS:
            print(row(name, method), flush=True)


if __name__ == "__main__":
    main()
