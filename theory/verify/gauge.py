"""T1, T2: the spectrum of gauge-fixed J in closed form, and what the gauge does to that of the whole J.

python theory/verify/gauge.py
"""

import math

import torch
from torch import Tensor

from tntune.theory import TrainJacobian, gauge_fixed_spectrum
from tntune.tt import RankRule, cores, orthogonalize, tt_tensor


def train(modes: tuple[int, ...], rank: int, decay: float) -> list[Tensor]:
    """Random cores of norm about 1 whose bonds have singular values that fall by this factor."""
    generator = torch.Generator().manual_seed(0)
    ranks = (1, *RankRule(max_rank=rank).caps(modes), 1)
    made = []
    for left, mode, right in zip(ranks[:-1], modes, ranks[1:], strict=True):
        core = torch.randn(left, mode, right, dtype=torch.float64, generator=generator)
        made.append(core * decay ** torch.arange(right) / math.sqrt(left * mode))
    return made


def regauged(own: list[Tensor], strength: float) -> list[Tensor]:
    """The same train with random invertible matrices on its bonds, of condition about 10 ** strength."""
    generator = torch.Generator().manual_seed(1)
    made = list(own)
    for k in range(len(made) - 1):
        size = made[k].shape[-1]
        q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
        scales = 10.0 ** (strength * torch.rand(size, dtype=torch.float64, generator=generator))
        made[k] = torch.tensordot(made[k], q * scales, dims=1)
        made[k + 1] = torch.tensordot((q / scales).mT, made[k + 1], dims=1)
    return made


def fixed_values(own: list[Tensor]) -> Tensor:
    """Singular values of J on gauge-fixed steps of left-orthogonal cores, by projection of C = QᵀJ."""
    columns = torch.split(TrainJacobian.plain(own).factor(), [core.numel() for core in own], dim=1)
    kept = []
    for k, (block, core) in enumerate(zip(columns, own, strict=True)):
        flat = core.flatten(0, 1)
        free = torch.linalg.qr(flat, mode="complete").Q[:, flat.shape[1] :]
        steps = block.reshape(len(block), flat.shape[0], -1)
        kept.append((steps if k == len(own) - 1 else torch.einsum("dub,uf->dfb", steps, free)).flatten(1))
    return torch.linalg.svdvals(torch.cat(kept, dim=1))


def main() -> None:
    print("T2, left-orthogonal cores: closed form beside singular values of J on gauge-fixed steps.\n")
    print(
        "| train | decay | values | largest gap | δ | λ_min⁺(J Jᵀ) of all of J |\n|---|---|---|---|---|---|"
    )
    for modes, rank in (((4,) * 5, 4), ((4,) * 20, 3), ((16, 8, 16), 6)):
        for decay in (1.0, 0.1):
            x = tt_tensor(train(modes, rank, decay))
            own = cores(orthogonalize(x))
            closed = gauge_fixed_spectrum(x)
            gap = float((fixed_values(own)[: closed.dimension] - closed.expanded()).abs().max())
            whole = TrainJacobian.plain(own).singular_values()[closed.dimension - 1]
            name = f"{modes[0]}^{len(modes)}" if len(set(modes)) == 1 else "x".join(map(str, modes))
            smallest = float(whole) ** 2
            print(
                f"| {name} | {decay} | {closed.dimension} | {gap:.0e} | {closed.delta:.3g} | {smallest:.3g} |"
            )
    print("\nT1: the same train (4^5, r = 4) in other gauges: the rank stays, the condition does not.\n")
    print("| gauge | rank J | P - Σ r_k² | condition of J |\n|---|---|---|---|")
    own = train((4,) * 5, 4, 1.0)
    dimension = sum(core.numel() for core in own) - sum(len(core) ** 2 for core in own[1:])
    gauges = {"left-orthogonal": cores(orthogonalize(tt_tensor(own))), "as drawn": own}
    gauges |= {f"times up to 10^{k} on bonds": regauged(own, k) for k in (1.0, 2.0, 3.0)}
    for name, cast in gauges.items():
        values = TrainJacobian.plain(cast).singular_values()
        rank = int((values > 1e-13 * values[0]).sum())
        print(f"| {name} | {rank} | {dimension} | {float(values[0] / values[dimension - 1]):.3g} |")


if __name__ == "__main__":
    main()
