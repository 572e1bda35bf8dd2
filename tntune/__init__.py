"""Tensor networks for LoRA-style adapters: convert, train, round, export and analyse them.

The verbs a script needs first are here; everything else is in the packages:
:mod:`tntune.tt` (trains), :mod:`tntune.maps`, :mod:`tntune.adapters`, :mod:`tntune.checkpoint`,
:mod:`tntune.convert`, :mod:`tntune.theory`.
"""

from tntune.adapters import AdapterSpec, adapt, load_adapters, save_adapters
from tntune.convert import (
    ConversionSettings,
    Target,
    compare_adapters,
    convert_lora,
    export_lora,
    round_adapter,
)
from tntune.maps import LoRA, TensorGuide, TTLoRA

__all__ = [
    "AdapterSpec",
    "ConversionSettings",
    "LoRA",
    "TTLoRA",
    "Target",
    "TensorGuide",
    "adapt",
    "compare_adapters",
    "convert_lora",
    "export_lora",
    "load_adapters",
    "round_adapter",
    "save_adapters",
]
