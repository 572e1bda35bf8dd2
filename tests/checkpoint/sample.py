"""Small LoRA folders to read, and the ways to damage them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
KEY = "base_model.model.h.{}.fc.lora_{}.weight"

Damage = Callable[[Path], None]


def lora_tensors(*, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two modules, h.0.fc and h.1.fc, of rank 2 from 5 to 3 features."""
    draw = torch.Generator().manual_seed(0)
    return {
        KEY.format(layer, side): torch.randn(shape, generator=draw).to(dtype)
        for layer in (0, 1)
        for side, shape in (("A", (2, 5)), ("B", (3, 2)))
    }


def lora_config(**changes: Any) -> dict[str, Any]:
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"], "bias": "none"}
    return {**plain, **changes}


def lora_folder(path: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    path.mkdir(parents=True)
    (path / CONFIG).write_text(json.dumps(lora_config(**changes)))
    save_file(lora_tensors(dtype=dtype), path / TENSORS)
    return path


def config(**changes: Any) -> Damage:
    """Change keys of the configuration; None deletes one."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / CONFIG).read_text())
        kept = {key: item for key, item in {**value, **changes}.items() if item is not None}
        (folder / CONFIG).write_text(json.dumps(kept))

    return damage


def tensors(**changes: Tensor | None) -> Damage:
    """Change tensors; names are keys with / for dots and without the prefix, None deletes one."""

    def damage(folder: Path) -> None:
        content = load_file(folder / TENSORS)
        for name, value in changes.items():
            key = "base_model.model." + name.replace("/", ".")
            content.pop(key, None)
            if value is not None:
                content[key] = value
        save_file(content, folder / TENSORS)

    return damage


def raw(name: str, content: bytes) -> Damage:
    """Replace a file by these bytes."""
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(name: str, size: int) -> Damage:
    """Keep the first bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for part in damages:
            part(folder)

    return damage
