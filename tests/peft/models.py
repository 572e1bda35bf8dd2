"""Small models for PEFT to adapt, with adapters that do something."""

from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig

MARKS = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning"),  # PEFT's own
]
VARIANTS = {"per layer": TensorGuideConfig, "shared": SharedTensorGuideConfig}
TARGETS = ["c_attn", "c_fc"]
TOKENS = torch.arange(10).reshape(2, 5)


class Tower(nn.Module):
    """A linear layer, blocks of a linear and a transposed layer, and a head."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(6, 10), "down": Conv1D(6, 10)}) for _ in range(blocks)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return self.head(x)


def tower(dtype: torch.dtype = torch.float32) -> Tower:
    """The same tower at each call."""
    return _drawn(Tower, dtype)


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    """Five inputs of the tower."""
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def gpt2(dtype: torch.dtype = torch.float32, *, tied: bool = True) -> GPT2LMHeadModel:
    """The same decoder of two blocks at each call, without dropout."""
    config = GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=12,
        n_layer=2,
        n_head=2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=tied,
    )
    return _drawn(lambda: GPT2LMHeadModel(config), dtype).eval()


def adapted(base: nn.Module, config: TensorGuideConfig, **options: Any) -> PeftModel:
    """The model with the adapter, whose start is the same at each call; in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(base, config, **options).eval()


def decoder(variant: str, *, dtype: torch.dtype = torch.float32, **fields: Any) -> PeftModel:
    """The decoder with random adapters on the layers that start a block's two halves."""
    chosen = {"r": 4, "ranks": 3, "alpha": 8, "target_modules": TARGETS, "init_weights": False, **fields}
    return adapted(gpt2(dtype), VARIANTS[variant](**chosen))


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """What the decoder says, without a gradient."""
    with torch.no_grad():
        return model(input_ids=tokens).logits


def cores(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _drawn(make: Any, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(dtype)
