"""Small models whose layers adapters go into."""

import torch
from torch import Tensor, nn

from tests.support.maps import tensors_of
from tntune.adapters import AdaptedLinear, FactorGenerator
from tntune.maps import WeightMap


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, as transformers' layer of that name."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Tower(nn.Module):
    """Token embeddings, blocks, and a head whose weight is the embedding's."""

    def __init__(self, blocks: int = 2, width: int = 6, tokens: int = 10) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, 8) for _ in range(blocks))
        self.mixer = Conv1D(width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.mixer(x))


def adapted(
    map: WeightMap,
    *,
    base: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    activation: str = "identity",
) -> AdaptedLinear:
    """A layer with standard normal params in a new base, or in the given one."""
    base = base or nn.Linear(map.in_features, map.out_features)
    generator = FactorGenerator(map, *tensors_of(map, dtype=dtype))
    return AdaptedLinear(base, generator, scale=scale, activation=activation)
