"""The family of maps as a table shows it: names, formulas of their sizes, and facts found by running them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from tntune.adapters import AdapterSpec, adapt, adapted_layers, merge, save_adapters
from tntune.convert import compare_adapters, export_lora
from tntune.maps import CONSTRUCTIONS, Recipe, WeightMap
from tntune.maps.build_joint import HEAD_METHODS, TENSLORA

_TENSLORA = {
    method: f"TensLoRA {construction}{', CP' if form == 'cp' else ''}"
    for method, (construction, form) in TENSLORA.items()
}
SYSTEMS: Mapping[str, str] = {
    "lora": "LoRA",
    "tt_lora": "TT-LoRA (Qi et al.)",
    "loretta": "LoRETTA_rep",
    "delta_train": "TT-LoRA (Anjum et al.)",
    "tensorguide": "TensorGuide",
    "joint": "TensorGuide, shared",
    "lotr": "LoTR",
    "lorta": "LoRTA",
    "fact_tt": "FacT-TT",
    "fact_tucker": "FacT-TK",
    "metatt_4d": "MetaTT-4D",
    "metatt_5d": "MetaTT-5D",
    **_TENSLORA,
}
"""Names of the published systems, by our names of the methods."""

_SHARED = {"head": "H", "proj": "P", "layer": "L"}  # index modes of a TensLoRA and their sizes


def _tenslora(construction: str, form: str) -> str:
    """Copies of one tensor: index modes in full beside a core, or one rank for all."""
    tied = CONSTRUCTIONS[construction]
    copies = [_SHARED[mode] for mode in ("layer", "proj") if mode not in tied]
    wide = "D + d" if "head" in tied else "D + Q"
    sizes = [_SHARED[mode] for mode in tied]
    if form == "cp":
        return " ".join([*copies, "r", f"({' + '.join([wide, *sizes])})"])
    tensor = " + ".join([f"r ({wide})", *(f"{size}²" for size in sizes), f"{' '.join(sizes)} r²"])
    return " ".join([*copies, f"({tensor})"]) if copies else tensor


FORMULAS: Mapping[str, str] = {
    "lora": "L P r (D + Q)",
    "tt_lora": "L P (T(D, M) + T(M, Q))",
    "loretta": "L P (T(D M) + T(M Q))",
    "delta_train": "L P T(D, Q)",
    "tensorguide": "L P T(F, 2 M)",
    "joint": "T(L, P, F, 2 M)",
    "lotr": "r (D + Q) + L P r²",
    "lorta": "r (D + d + H + L + P)",
    "fact_tt": "r (D + Q) + L P r²",
    "fact_tucker": "r (D + Q) + L P r + r³",
    "metatt_4d": "r (D + Q) + (L + P) r²",
    "metatt_5d": "r (D + d) + (L + P + H) r²",
    **{method: _tenslora(*made) for method, made in TENSLORA.items()},
}
"""Parameters of L layers of P projections D -> Q; :data:`LEGEND` says what the letters are."""

LEGEND = (
    "L layers of P matrices from D to Q features, in H heads of d; F is the larger of D and Q; r the rank, "
    "M the width; T(a, b, ..) = Σ r_k-1 m_k r_k of a tensor train with these modes, cut into digits m_k; "
    "in a Tucker H, P and L have full ranks."
)


@dataclass(frozen=True)
class Facts:
    """What a method does, found by doing it on a small network.

    Attributes:
        tied: What shares a tensor: head, proj or layer where more of them take less than as many times the
            parameters, side where down and up are made of one.
        silent: The tensor that is zero at the start, so that ΔW is; or the part of one.
        merge_error: Largest relative change of outputs when the adapter is merged.
        export_error: Relative error of ΔW after export to LoRA.
        export_rank: The rank of that LoRA: ``"r"`` or ``"M"``.
    """

    tied: tuple[str, ...]
    silent: str
    merge_error: float
    export_error: float
    export_rank: str

    @classmethod
    def of(cls, method: str) -> "Facts":
        """Those of a method."""
        return cls(_tied(method), _silent(method), _merge_error(method), *_export(method))


_SIZE, _RANK, _WIDTH, _HEAD = 16, 3, 5, 4


class Network(nn.Module):
    """Two blocks of two matrices; small."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(_SIZE, _SIZE) for name in ("q", "v")}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["v"](torch.tanh(block["q"](x))))
        return x


def small_spec(method: str) -> AdapterSpec:
    """Rank 3 and, where a method has one of its own, width 5."""
    spec = AdapterSpec(method=method, head_dim=_HEAD if method in HEAD_METHODS else None)
    if method == "lora":
        return replace(spec, width=_RANK)
    has_width = method in ("joint", "tensorguide", "tt_lora", "loretta", "delta_train")
    return replace(spec, rank=_RANK, width=_WIDTH if has_width else None)


def _trained(method: str) -> nn.Module:
    """A network and an adapter of random entries."""
    generator = torch.Generator().manual_seed(0)
    model = adapt(Network().double(), small_spec(method), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def _count(recipe: Recipe, layers: int, projections: int) -> int:
    sizes = {f"h.{i}.p{k}": (_SIZE, _SIZE) for i in range(layers) for k in range(projections)}
    maps = [map for _, map in recipe.joint_maps(sizes).values()] if recipe.is_joint else []
    return sum(map.num_parameters for map in maps or recipe.layer_maps(sizes).values())


def _tied(method: str) -> tuple[str, ...]:
    recipe, base = small_spec(method), (4, 4)
    once = _count(recipe, *base)
    more = {"layer": _count(recipe, 8, 4), "proj": _count(recipe, 4, 8)}
    modes = [mode for mode, count in more.items() if count < 2 * once]
    heads = ["head"] if method in HEAD_METHODS else []
    return (*(["side"] if _ties_sides(_map(method)) else []), *heads, *reversed(modes))


def _map(method: str) -> WeightMap:
    _, layer = next(adapted_layers(adapt(Network(), small_spec(method))))
    return layer.generator.map


def _ties_sides(map: WeightMap) -> bool:
    """Whether one tensor has gradients from both factors."""
    params, fixed = map.init(torch.Generator().manual_seed(0))
    leaves = {name: torch.ones_like(tensor).requires_grad_() for name, tensor in params.items()}
    found = [
        torch.autograd.grad(part.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
        for part in map.factors(leaves, fixed)
    ]
    return any(a is not None and b is not None and a.any() and b.any() for a, b in zip(*found, strict=True))


def _silent(method: str) -> str:
    """The zeros of the start, where ΔW is zero by them and some gradient is not; "no" otherwise."""
    map = _map(method)
    params, fixed = map.init(torch.Generator().manual_seed(0))
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
    delta = map.delta(leaves, fixed)
    slopes = torch.autograd.grad(delta.sum(), list(leaves.values()))
    if delta.any() or not any(slope.any() for slope in slopes):
        return "no"
    zeros = {name: float((tensor == 0).double().mean()) for name, tensor in params.items()}
    whole = [name for name, share in zeros.items() if share == 1]
    return f"`{whole[0]}`" if whole else f"half of `{next(n for n, share in zeros.items() if share == 0.5)}`"


@torch.no_grad()
def _merge_error(method: str) -> float:
    model, x = _trained(method), torch.linspace(-1, 1, 5 * _SIZE, dtype=torch.float64).reshape(5, -1)
    before = model(x)
    merge(model)
    return float((model(x) - before).abs().max() / before.abs().max())


def _export(method: str) -> tuple[float, str]:
    map = _map(method)
    with TemporaryDirectory() as parent:
        guide, lora = Path(parent) / "guide", Path(parent) / "lora"
        save_adapters(_trained(method), guide)
        rank = export_lora(guide, lora).rank
        error = compare_adapters(guide, lora).relative_error
    names = {_RANK: "r", map.width: "M"} if method != "lora" and map.width != _RANK else {_RANK: "r"}
    return error, names[rank]
