"""Adapter folders on disk: read with suspicion, one module at a time, and written all or nothing."""

from tntune.checkpoint.calibration import Calibration, open_calibration, save_calibration
from tntune.checkpoint.folder import open_adapter
from tntune.checkpoint.library import LibraryFolder, LibraryMember, open_library
from tntune.checkpoint.library_writer import write_library
from tntune.checkpoint.lora import LoraFolder, LoraSite, open_lora
from tntune.checkpoint.lora_file import LoraFile, open_lora_file
from tntune.checkpoint.lora_file_writer import write_lora_file
from tntune.checkpoint.lora_writer import LoraEntry, write_lora
from tntune.checkpoint.tensorguide import TensorGuideFolder, open_tensorguide
from tntune.checkpoint.tensorguide_writer import write_groups, write_tensorguide

__all__ = [
    "Calibration",
    "LibraryFolder",
    "LibraryMember",
    "LoraEntry",
    "LoraFile",
    "LoraFolder",
    "LoraSite",
    "TensorGuideFolder",
    "open_adapter",
    "open_calibration",
    "open_library",
    "open_lora",
    "open_lora_file",
    "open_tensorguide",
    "save_calibration",
    "write_groups",
    "write_library",
    "write_lora",
    "write_lora_file",
    "write_tensorguide",
]
