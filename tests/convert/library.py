"""Members that share their directions, and a library's ΔW read back from disk without tntune."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.convert.sample import lora_deltas, lora_folder

SIZES = {"h.0.q": (14, 14), "h.1.q": (14, 14), "h.2.q": (14, 14), "h.0.up": (14, 9), "h.1.up": (14, 9)}
RANK = 3


def member(
    path: Path, seed: int, *, span: int = 0, own: float = 0.0, without: str = "", **changes: Any
) -> Path:
    """A LoRA whose layers lie in a span that is drawn from one seed, up to a share of their own."""
    made = factors(seed, span=span, own=own, rank=changes.get("r", RANK))
    made.pop(without, None)
    targets = {"target_modules": ["q", "up"], "rank_pattern": {}, "r": RANK}
    return lora_folder(path, made=made, **{**targets, **changes})


def factors(seed: int, *, span: int, own: float, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) of each layer."""
    common, draw = torch.Generator().manual_seed(span), torch.Generator().manual_seed(1000 + seed)

    def randn(*shape: int, of: torch.Generator = draw) -> Tensor:
        return torch.randn(*shape, generator=of, dtype=torch.float64)

    spans = {
        shape: (randn(RANK, shape[0], of=common), randn(shape[1], RANK, of=common))
        for shape in dict.fromkeys(SIZES.values())
    }
    made = {}
    for name, shape in SIZES.items():
        inputs, outputs = spans[shape]
        down = randn(rank, RANK) @ inputs + own * randn(rank, shape[0])
        up = outputs @ randn(RANK, rank) + own * randn(shape[1], rank)
        made[name] = (down / 4, up / 4)
    return made


def library_deltas(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """ΔW of each module of each member: bases, coefficients and scales put together in numpy."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in config["members"]}
    for label, group in config["groups"].items():
        start = f"base_model.tensorguide_shared.{label}."
        own = {k.removeprefix(start): v.double().numpy() for k, v in tensors.items() if k.startswith(start)}
        inside, width = group["map"]["in_features"], group["map"]["width"]
        for i, (path, scale) in enumerate(zip(group["modules"], group["scales"], strict=True)):
            if group["map"]["kind"] == "lora":
                delta = own["lora_up"] @ own["lora_down"]
            else:
                bases = own["tt_core_0"][0]
                sides = own["tt_core_1"][..., 0].reshape(len(bases.T), -1, 2, width)[:, i]
                delta = bases[inside:] @ sides[:, 1] @ sides[:, 0].T @ bases[:inside].T
            name, _, module = path.partition("/")
            found[name][module] = scale * delta
    return found


def error_of(source: Path, found: dict[str, np.ndarray]) -> float:
    """Relative error of ΔW of a LoRA folder, dense in numpy."""
    exact = lora_deltas(source)
    lost = sum(np.linalg.norm(delta - found.get(name, 0.0)) ** 2 for name, delta in exact.items())
    return float(np.sqrt(lost / sum(np.linalg.norm(delta) ** 2 for delta in exact.values())))
