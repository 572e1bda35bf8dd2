"""Tiny modules for PEFT to adapt. Import only after ``pytest.importorskip("peft")``."""

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Block(nn.Module):
    """Two linear layers, the second stored as (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 10)
        self.proj = Conv1D(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(torch.tanh(self.fc(x)))


class Tower(nn.Module):
    """Modules whose paths are suffixes of one another: ``fc``, ``h.0.fc``, ``h.0.fc`` inside ``deep``."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 6)
        self.fc = nn.Linear(6, 6)
        self.h = nn.ModuleList([Block(), Block()])
        self.deep = nn.ModuleDict({"h": nn.ModuleList([Block()])})
        self.score = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.emb(x))
        for block in (*self.h, *self.deep["h"]):
            x = block(x)
        return self.score(x)


def tower(*, dtype: torch.dtype = torch.float32) -> Tower:
    """The same tower at each call."""
    draw = torch.Generator().manual_seed(1)
    model = Tower()
    for value in model.parameters():
        value.data = torch.randn(value.shape, generator=draw) / 3
    return model.to(dtype)


def stir(model: nn.Module) -> None:
    """Fill all adapter weights, so that no update is zero."""
    draw = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=draw).to(value.dtype)


def deltas(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """PEFT's own update of every adapted linear layer, as (out, in), by its path in the base model."""
    for name, module in model.base_model.model.named_modules():
        if getattr(module, "lora_A", None):
            delta = module.get_delta_weight("default")
            yield name, delta.T if module.fan_in_fan_out else delta
