"""A map of one's own: CaRA's attention tensor, from its formula to an adapter, trained, kept and exported.

Run it with ``python examples/07_own_map.py``; it takes a second, and needs neither data nor a model.
"""

# %% The map, in under 50 lines. A final of JointMap is its fields, its network and its fit.

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor, nn

from tntune.adapters import adapt, load_adapters, save_adapters
from tntune.convert import compare_adapters, export_lora
from tntune.maps import Group, JointMap, Network, Node, Stack
from tntune.maps.fit import cp_als
from tntune.maps.network import CUT, orthonormal
from tntune.maps.stack import split_heads


def ones(shape: tuple[int, ...], generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """How the weights start."""
    return torch.ones(shape, dtype=dtype)


@dataclass(frozen=True)
class CaRA(JointMap):
    """``ΔW[s]^T[:, head h] = A_in diag(weight * A_site[s] * A_head[h]) A_dh``: a CP with weights.

    Reference: CaRA, ICML 2025 (its tensor of attention; the zero factor is that of the input).
    """

    kind: ClassVar[str] = "cara"

    stack: Stack
    rank: int
    heads: int

    def _network(self) -> Network:
        out = {"head": self.heads, "dh": split_heads(self.stack.out_features, self.heads)}
        return Network(
            {**self.stack.index, "in": self.stack.in_features, **out, CUT: self.rank},
            down={"tn_in": Node(("in", CUT), orthonormal)},
            up={
                "tn_site": Node(("layer", "proj", CUT), orthonormal),
                "tn_weight": Node((CUT,), ones),
                **{f"tn_{leg}": Node((leg, CUT), orthonormal) for leg in out},
            },
            in_legs=("in",),
            out_legs=("head", "dh"),
            silent="tn_in",
        )

    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        sites = target.flatten(0, 1)  # (sites, in, out)
        site, *others = cp_als(sites.reshape(*sites.shape[:2], self.heads, -1), self.rank)
        nodes = dict(zip(("tn_in", "tn_head", "tn_dh"), others, strict=True))
        shape = (*target.shape[:2], self.rank)
        return {**nodes, "tn_site": site.reshape(shape), "tn_weight": torch.ones_like(site[0])}


# %% A model that it goes into: three blocks with queries, keys and values.


class Block(nn.Module):
    """Attention over the batch, as small as can be."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(features, features) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).mT / x.shape[-1] ** 0.5, -1)
        return x + weights @ self.v(x)


def model(features: int = 32, layers: int = 3) -> nn.Sequential:
    """The same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(Block(features) for _ in range(layers)))


def group(features: int = 32, layers: int = 3) -> Group:
    """One CaRA for all nine projections."""
    cara = CaRA(Stack(features, features, layers=layers, projections=3), rank=8, heads=4)
    modules = tuple(f"{layer}.{role}" for layer in range(layers) for role in "qkv")
    return Group(cara, modules, (1.0,) * cara.sites)


# %% Everything else is there already.


def main(steps: int = 60) -> dict[str, float]:
    """Train it to imitate another model; say what it cost, and what came out of the export."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 32, generator=generator)
    base, adapted = model(), adapt(model(), {"attention": group()}, generator=generator)
    mixed = torch.randn(32, 32, generator=generator) / 32**0.5
    with torch.no_grad():
        wanted = base(x) + 0.3 * torch.tanh(x @ mixed)
        start = float((adapted(x) - base(x)).abs().max())
    params = [p for p in adapted.parameters() if p.requires_grad]
    figures = {"parameters": float(sum(p.numel() for p in params)), "change at the start": start}
    optimizer = torch.optim.Adam(params, lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (adapted(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    figures |= {"first loss": losses[0], "last loss": losses[-1]}
    with TemporaryDirectory() as parent:
        folder, lora = Path(parent) / "cara", Path(parent) / "lora"
        save_adapters(adapted, folder)
        figures["change by saving"] = float(
            (load_adapters(model(), folder)(x) - adapted(x)).abs().max().detach()
        )
        export_lora(folder, lora)
        figures["error of the LoRA"] = compare_adapters(folder, lora).relative_error
    return figures


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<22}{value:.3g}")
