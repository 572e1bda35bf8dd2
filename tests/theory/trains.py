"""Draws of trains for the tests of theory: shapes, ranks, latents and entries."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain
from tntune.tt.decompose import tt_svd
from tntune.tt.gaussian import gaussian
from tntune.tt.rank_rule import RankRule
from tntune.tt.train import cores, dense


@dataclass(frozen=True)
class Case:
    """A train with standard normal cores, and the z that feeds it."""

    train: LatentTrain
    cores: tuple[Tensor, ...]
    latent: Tensor | None

    @property
    def wide(self) -> tuple[Tensor, ...]:
        """Cores with a latent leg, of size 1 where there is no latent."""
        return tuple(core if core.ndim == 4 else core[:, None] for core in self.cores)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The latent as 4-way weights with open legs of ones."""
        if self.latent is None:
            return tuple(core.new_ones(1, 1, core.shape[2], 1) for core in self.wide)
        parts = cores(tt_svd(self.latent).value)
        return tuple(
            part[:, :, None].expand(-1, -1, size, -1)
            for part, size in zip(parts, self.train.modes, strict=True)
        )

    def entries(self, *own: Tensor) -> Tensor:
        """w by one einsum, from the formula."""
        order = len(own)
        operands: list[object] = []
        for k, core in enumerate(own):
            operands += [core, [k, 20 + k, 30 + k, k + 1]]
        z = torch.ones((1,) * order, dtype=own[0].dtype) if self.latent is None else self.latent
        operands += [z, [20 + k for k in range(order)]]
        w: Tensor = torch.einsum(*operands, [30 + k for k in range(order)])
        return w.flatten()

    def jacobian(self) -> Tensor:
        """Dense J by reverse differentiation of the formula."""
        columns = torch.func.jacrev(self.entries, argnums=tuple(range(len(self.cores))))(*self.wide)
        return torch.cat([column.flatten(1) for column in columns], dim=1)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    latents: tuple[str, ...] = ("none", "generic", "product", "low"),
    minimal: bool = False,
) -> Case:
    """Trains of two to four cores; with ``minimal`` the ranks of w are what its modes admit."""
    order = draw(st.integers(2, 4))
    modes = tuple(draw(st.integers(1 + minimal, 5)) for _ in range(order))
    kind, seed = draw(st.sampled_from(latents)), draw(st.integers(0, 2**31))
    legs = tuple(draw(st.integers(1, 3)) for _ in range(order)) if kind != "none" else ()
    ranks = [1, *(draw(st.integers(1, 3)) for _ in range(order - 1)), 1]
    generator = torch.Generator().manual_seed(seed)
    z = latent(kind, legs, generator)
    if minimal:
        bonds = (1,) * (order + 1) if z is None else tt_svd(z).ranks
        ranks = _admitted(ranks, bonds, modes)
    train = LatentTrain(modes, tuple(ranks), Latent() if z is None else Latent("fixed", legs))
    own = tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in train.core_shapes)
    return Case(train, own, z)


def latent(kind: str, legs: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
    """z of a kind: normal entries, a product of vectors, or TT-ranks 2."""
    if kind == "none":
        return None
    if kind == "generic":
        return torch.randn(legs, dtype=torch.float64, generator=generator)
    rank = 1 if kind == "product" else 2
    return dense(gaussian(legs, rank, dtype=torch.float64, generator=generator))


def admits(ranks: tuple[int, ...], modes: tuple[int, ...]) -> bool:
    """Whether no rank exceeds what its neighbours and their modes carry."""
    chain = zip(ranks[:-1], modes, ranks[1:], strict=True)
    return all(right <= left * mode and left <= mode * right for left, mode, right in chain)


def plain(modes: tuple[int, ...], rank: int, *, seed: int = 0) -> list[Tensor]:
    """Cores of a train with these modes and the ranks they admit up to a cap, of norm about 1."""
    ranks = (1, *RankRule(max_rank=rank).caps(modes), 1)
    generator = torch.Generator().manual_seed(seed)
    shapes = zip(ranks[:-1], modes, ranks[1:], strict=True)
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator) / math.sqrt(shape[0] * shape[1])
        for shape in shapes
    ]


def spread(own: list[Tensor], decay: float) -> list[Tensor]:
    """The train with singular values of every bond pulled apart: slice i of each bond times decay ** i."""
    return [
        core * decay ** torch.arange(core.shape[-1], dtype=core.dtype) if k < len(own) - 1 else core
        for k, core in enumerate(own)
    ]


def _admitted(ranks: list[int], bonds: tuple[int, ...], modes: tuple[int, ...]) -> list[int]:
    """Ranks lowered until the modes admit them times the bonds of the latent; 1 at worst."""
    while not admits(tuple(r * b for r, b in zip(ranks, bonds, strict=True)), modes):
        if max(ranks) == 1:
            return ranks
        largest = max(range(len(ranks)), key=lambda k: ranks[k])
        ranks = [rank - (k == largest) for k, rank in enumerate(ranks)]
    return ranks
