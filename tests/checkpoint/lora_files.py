"""Small single LoRA files in every style of names, and their ΔW from the raw tensors, without tntune."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPES = {"attn": ((4, 10), (6, 4)), "ff": ((3, 6), (12, 3)), "conv": ((4, 5, 3, 3), (8, 4, 1, 1))}
"""Shapes of down and up of three modules, the last a convolution."""

PLACES: dict[str, Callable[[str], tuple[str, str, str]]] = {
    "kohya unet": lambda m: _kohya(f"lora_unet_mid_block_0_{m}"),
    "kohya text": lambda m: _kohya(f"lora_te_text_model_layers_0_{m}"),
    "kohya text 2": lambda m: _kohya(f"lora_te2_text_model_layers_0_{m}"),
    "peft unet": lambda m: (f"unet.mid_block.0.{m}", ".lora_A.weight", ".lora_B.weight"),
    "peft transformer": lambda m: (f"transformer.blocks.0.{m}", ".lora_A.weight", ".lora_B.weight"),
    "unet": lambda m: (f"unet.mid_block.0.{m}", ".lora.down.weight", ".lora.up.weight"),
    "text": lambda m: (
        f"text_encoder.text_model.layers.0.{m}",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "processor": lambda m: (f"unet.mid.processor.to_{m}", "_lora.down.weight", "_lora.up.weight"),
}
"""Name and endings of a module's keys, by style."""

ALPHAS: dict[str, Mapping[str, float]] = {
    "no alpha": {},
    "one alpha": {"attn": 2.0, "ff": 2.0, "conv": 2.0},
    "alphas that differ": {"attn": 1.0, "ff": 7.0, "conv": 0.3},
}


def tensors(
    style: str, alphas: Mapping[str, float], *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of a file, alphas in the dtype of the factors."""
    draw = torch.Generator().manual_seed(0)
    made = {}
    for module, shapes in SHAPES.items():
        name, *endings = PLACES[style](module)
        for ending, shape in zip(endings, shapes, strict=True):
            made[name + ending] = torch.randn(shape, generator=draw).to(dtype)
        if module in alphas:
            made[f"{name}.alpha"] = torch.tensor(alphas[module], dtype=dtype)
    return made


def lora_file(path: Path, made: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file(dict(made), path, metadata={"format": "pt", **metadata})
    return path


def deltas(path: Path) -> dict[str, Tensor]:
    """ΔW of each module in float64, ``(out, in)`` or ``(out, in, *kernel)``."""
    raw = load_file(path)
    stated = json.loads(texts(path).get("lora_adapter_metadata", "{}"))
    found = {}
    for style in PLACES.values():
        for module, (shape, _) in SHAPES.items():
            name, down_ending, up_ending = style(module)
            if name + down_ending not in raw or name in found:
                continue
            down, up = raw[name + down_ending].double(), raw[name + up_ending].double()
            alpha = _stated(stated, name) or float(raw.get(f"{name}.alpha", down.shape[0]))
            equation = "orxy,rikl->oikl" if len(shape) == 4 else "or,ri->oi"
            found[name] = alpha / down.shape[0] * torch.einsum(equation, up, down)
    return found


def texts(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _stated(stated: Mapping[str, object], name: str) -> float | None:
    """Alpha by diffusers' metadata, whose patterns are plain module paths here."""
    component, _, module = name.partition(".")
    patterns = stated.get(f"{component}.alpha_pattern") or {}
    own = {
        key.lstrip("^").replace("\\", "").replace("(text_model.)?", "text_model."): v
        for key, v in patterns.items()
    }
    return own.get(module, stated.get(f"{component}.lora_alpha"))


def _kohya(name: str) -> tuple[str, str, str]:
    return name, ".lora_down.weight", ".lora_up.weight"
