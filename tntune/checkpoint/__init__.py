"""Adapter folders on disk: read with suspicion, one module at a time, and written all or nothing."""

from tntune.checkpoint.folder import open_adapter
from tntune.checkpoint.lora import LoraFolder, LoraSite, open_lora
from tntune.checkpoint.lora_writer import LoraEntry, write_lora
from tntune.checkpoint.tensorguide import TensorGuideFolder, open_tensorguide, write_tensorguide

__all__ = [
    "LoraEntry",
    "LoraFolder",
    "LoraSite",
    "TensorGuideFolder",
    "open_adapter",
    "open_lora",
    "open_tensorguide",
    "write_lora",
    "write_tensorguide",
]
