"""A network of equal layers with a LoRA whose directions the layers share, and its folder on disk."""

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.convert.sample import lora_folder
from tntune.maps.base import Factors

SIZE, BLOCKS, RANK = 14, 5, 3
NAMES = [f"h.{block}.{role}" for block in range(BLOCKS) for role in ("q", "o")] + ["up"]


class Network(nn.Module):
    """Ten layers of one shape, of which two read the same activations, then one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        roles = ("q", "o")
        self.h = nn.ModuleList(
            nn.ModuleDict({role: nn.Linear(SIZE, SIZE) for role in roles}) for _ in range(BLOCKS)
        )
        self.up, self.head = nn.Linear(SIZE, 9), nn.Linear(9, 4)
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=draw) / SIZE**0.5

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for block in self.h:
            x = x + torch.tanh(block["q"](x)) * torch.sigmoid(block["o"](x))
        return self.head(torch.sin(self.up(x)))


def shared_factors(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) in float64 of layers that share their directions, with a little of their own."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    inputs, outputs = randn(RANK, SIZE), randn(SIZE, RANK)
    made = {}
    for name in NAMES:
        down = randn(RANK, RANK) @ inputs + 0.1 * randn(RANK, SIZE)
        up = outputs @ randn(RANK, RANK) + 0.1 * randn(SIZE, RANK)
        made[name] = (down / 8, up[: 9 if name == "up" else SIZE] / 8)
    return made


def shared_folder(path: Path, *, made: dict[str, tuple[Tensor, Tensor]] | None = None) -> Path:
    """The LoRA folder of these factors."""
    targets = ["q", "o", "up"]
    made = made or shared_factors()
    return lora_folder(path, made=made, target_modules=targets, r=RANK, rank_pattern={})


def of_one_shape(seed: int = 0) -> list[Factors]:
    """The factors of the ten equal layers."""
    return [Factors(*pair) for name, pair in shared_factors(seed).items() if name != "up"]


def batches(count: int = 4, seed: int = 3) -> list[Tensor]:
    """Inputs of the network, most of their variance in a few directions."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(9)) * 0.5 ** torch.arange(SIZE)
    return [torch.randn(32, SIZE, generator=draw) @ mix.T for _ in range(count)]
