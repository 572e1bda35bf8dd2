"""Small networks with adapters: what kernels of whole models are tested on."""

import torch
from torch import Tensor, nn

from tntune.adapters import adapt
from tntune.maps import Site, build_map
from tntune.maps.layout import Geometry

WIDTH = 8
VOCABULARY = 11


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a layer norm and on a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        q, k, v = (part(inner).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (n, h, T, d)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.feed(self.second(x))


class Transformer(nn.Module):
    """A language model of two blocks, in the manner of GPT-2: ``(n, T)`` tokens to ``(n, T, V)`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(16, WIDTH)
        self.blocks = nn.Sequential(Block(WIDTH, 2), Block(WIDTH, 2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def seeded(module: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Every parameter drawn afresh, with a spread that keeps signals of order one."""
    generator = torch.Generator().manual_seed(seed)
    module.to(dtype)
    with torch.no_grad():
        for param in module.parameters():
            drawn = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.copy_(drawn / max(1, param.shape[-1]) ** 0.5)
    return module.eval()


def adapted_transformer(method: str = "tensorguide", *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The transformer with an adapter on q of the first and on v of the second block."""
    model = Transformer()
    map = build_map(method, Geometry(WIDTH, WIDTH, 2), start="random")
    sites = {
        "blocks.0.q": Site(map, scale=0.5),
        "blocks.1.v": Site(map, scale=2.0, activation="gelu"),
    }
    adapt(model, sites, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return seeded(model, 1, dtype)


def tokens(samples: int = 3, length: int = 5) -> dict[str, Tensor]:
    """Inputs, a mask with padding on the right, and labels of the next tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
