"""Small trained-looking LoRA folders, and their ΔW read back from disk without tntune."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.tolerance import close

PREFIX = "base_model.model."
SHAPES = {"h.0.fc": (12, 20), "h.0.proj": (20, 12), "h.1.fc": (12, 20), "head": (12, 7)}  # in, out
RANKS = {"h.0.fc": 4, "h.0.proj": 3, "h.1.fc": 4, "head": 2}
ODD_GAINS = {"leaky_relu": 1.01}  # c of σ(x) − σ(−x) = c x where it is not 1
SCALES = {name: 8 / rank for name, rank in RANKS.items()}


def factors(seed: int = 0, *, decay: float = 0.6) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) of each site in float64, of falling importance, each site larger than the last."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for i, (name, (inside, outside)) in enumerate(SHAPES.items()):
        down = torch.randn(RANKS[name], inside, generator=draw, dtype=torch.float64)
        up = torch.randn(outside, RANKS[name], generator=draw, dtype=torch.float64)
        made[name] = (down, up * decay ** torch.arange(RANKS[name]) * (1 + i) / 10)
    return made


def lora_folder(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    made: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    saved: bool = False,
    **changes: Any,
) -> Path:
    """A folder as PEFT writes it, ranks by pattern, with a head saved whole where asked for."""
    made = factors() if made is None else made
    ranks = {name: down.shape[0] for name, (down, _) in made.items()}
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["fc", "proj", "head"],
        "rank_pattern": {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != 4},
        "modules_to_save": ["score"] if saved else None,
        **changes,
    }
    tensors = {
        f"{PREFIX}{name}.lora_{side}.weight": value.to(dtype).contiguous()
        for name, pair in made.items()
        for side, value in zip("AB", pair, strict=True)
    }
    if saved:
        tensors[f"{PREFIX}score.weight"] = torch.arange(21.0).reshape(3, 7).to(dtype)
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def lora_deltas(folder: Path) -> dict[str, np.ndarray]:
    """ΔW of each site of a LoRA folder made here or exported: alpha / r * B A, densely, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    deltas = {}
    for key, value in tensors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            up = tensors[key.replace("lora_A", "lora_B")].double().numpy()
            alphas = config.get("alpha_pattern") or {}
            alpha = next((v for k, v in alphas.items() if re.match(k + "$", name)), config["lora_alpha"])
            deltas[name] = alpha / value.shape[0] * up @ value.double().numpy()
    return deltas


def guided_deltas(folder: Path) -> dict[str, np.ndarray]:
    """ΔW of each site of a converted folder: cores contracted one by one, legs put in order, no tntune."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    deltas = {}
    for name, site in config["sites"].items():
        prefix = f"{PREFIX}{name}.tensorguide_gen."
        own = {
            key.removeprefix(prefix): value.double().numpy()
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        down, up = _factors(site["map"], own)
        if site["activation"] != "identity":  # an exact lift: half of it, times σ(x) − σ(−x) = c x
            half = down.shape[0] // 2
            assert np.array_equal(down[:half], -down[half:])
            assert np.array_equal(up[:, :half], -up[:, half:])
            down, up = down[:half], up[:, :half] * ODD_GAINS.get(site["activation"], 1.0)
        deltas[name] = site["scale"] * up @ down
    return deltas


def _factors(map: dict[str, Any], own: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if map["kind"] == "lora":
        return own["lora_down"], own["lora_up"]
    cores = [own[f"tt_core_{k}"] for k in range(len(own))]
    whole = cores[0]
    for core in cores[1:]:
        whole = np.tensordot(whole, core, axes=1)
    names = re.sub(r"[()]", " ", map["layout"]["pattern"]).split()
    whole = whole.reshape(map["layout"]["sizes"])
    order = sorted(range(len(names)), key=lambda i: _place(names[i]))
    whole = whole.transpose(order)
    width, inside, outside = map["width"], map["in_features"], map["out_features"]
    if "side" in names:
        both = whole.reshape(2, width, -1)
        return both[0, :, :inside], both[1, :, :outside].T
    both = whole.reshape(width, -1)
    return both[:, :inside], both[:, inside : inside + outside].T


def _place(leg: str) -> tuple[int, int]:
    family, digit = re.fullmatch(r"([a-z]+)(\d*)", leg).groups()
    return ["side", "w", "f", "io"].index(family), int(digit or 1)


def errors(source: Path, output: Path) -> tuple[float, dict[str, float]]:
    """Relative error of ΔW, in total and of each layer, dense in numpy."""
    exact, found = lora_deltas(source), guided_deltas(output)
    gaps = {name: np.linalg.norm(delta - found.get(name, 0)) for name, delta in exact.items()}
    norms = {name: np.linalg.norm(delta) for name, delta in exact.items()}
    total = np.sqrt(sum(gap**2 for gap in gaps.values()) / sum(norm**2 for norm in norms.values()))
    return float(total), {n: float(gaps[n] / norms[n]) if norms[n] else float(gaps[n]) for n in exact}


def same(a: float | Tensor, b: float | Tensor, *, factor: float = 1.0) -> bool:
    """Whether two numbers agree to the table's tolerance for float64, times a factor."""
    one, two = (torch.as_tensor(value, dtype=torch.float64).reshape(1) for value in (a, b))
    return close(one, two, factor=factor)


class Model(nn.Module):
    """A network with the modules that the folders adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(12, 20), "proj": nn.Linear(20, 12)})])
        self.h.append(nn.ModuleDict({"fc": nn.Linear(12, 20)}))
        self.head = nn.Linear(12, 7)
        draw = torch.Generator().manual_seed(1)
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=draw) / 4

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.h[0]["proj"](torch.tanh(self.h[0]["fc"](x)))
        return self.head(torch.sin(self.h[1]["fc"](x))[:, :12])


def inputs(count: int = 5) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(2))


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } | {str(path.relative_to(folder)): b"" for path in folder.rglob("*") if path.is_dir()}
