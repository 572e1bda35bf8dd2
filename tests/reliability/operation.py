"""The operations that write, on small adapters: what faults are put to."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.checkpoint import lora_files
from tests.convert.sample import lora_folder
from tests.convert.shared import shared_folder
from tntune.checkpoint import Calibration, save_calibration
from tntune.convert import (
    CollectionSettings,
    ConversionSettings,
    ResizeSettings,
    Target,
    convert_collection,
    convert_lora,
    export_lora,
    resize_lora,
    round_adapter,
)

__all__ = ["OPERATIONS", "Operation", "digest", "listing", "sources"]


@dataclass(frozen=True)
class Operation:
    """One way to make an output.

    Attributes:
        name: What it is called.
        source: Name of what it reads, below the folder of sources.
        output: Name of what it writes.
        run: ``(source, output, overwrite)``.
        command: The same by the command line, without source and output.
    """

    name: str
    source: str
    output: str
    run: Callable[[Path, Path, bool], object]
    command: tuple[str, ...] = ()


def _calibrated(source: Path, output: Path, overwrite: bool) -> None:
    """A calibration as a run would leave it, whose source is read to no end."""
    moment = torch.eye(40) * len(source.name)
    made = Calibration({"fc": moment}, {"fc": moment}, {"fc": "fc"})
    save_calibration(output, made, overwrite=overwrite)


_HALF = CollectionSettings(Target(params=0.5))

OPERATIONS = (
    Operation(
        "convert",
        "lora",
        "out",
        lambda source, output, overwrite: convert_lora(
            source, output, ConversionSettings(Target(max_rank=2)), overwrite=overwrite
        ),
        ("convert", "--max-rank", "2"),
    ),
    Operation(
        "round",
        "guide",
        "out",
        lambda source, output, overwrite: round_adapter(source, output, Target(0.6), overwrite=overwrite),
        ("round", "--params", "0.6"),
    ),
    Operation(
        "export",
        "guide",
        "out",
        lambda source, output, overwrite: export_lora(source, output, overwrite=overwrite),
        ("export",),
    ),
    Operation(
        "resize a folder",
        "lora",
        "out",
        lambda source, output, overwrite: resize_lora(
            source, output, ResizeSettings(rank=2), overwrite=overwrite
        ),
        ("resize", "--rank", "2"),
    ),
    Operation(
        "resize a file",
        "one.safetensors",
        "out.safetensors",
        lambda source, output, overwrite: resize_lora(
            source, output, ResizeSettings(rank=2), overwrite=overwrite
        ),
        ("resize", "--rank", "2"),
    ),
    Operation(
        "convert jointly",
        "shared",
        "out",
        lambda source, output, overwrite: convert_lora(
            source, output, ConversionSettings(Target(params=0.3), "joint"), overwrite=overwrite
        ),
        ("convert", "--params", "0.3", "--method", "joint"),
    ),
    Operation(
        "collect",
        "shared",
        "out",
        lambda source, output, overwrite: convert_collection(
            {"one": source, "two": source}, output, _HALF, overwrite=overwrite
        ),
    ),
    Operation("save a calibration", "one.safetensors", "out.safetensors", _calibrated),
)
"""Everything that writes an output of its own."""


def sources(root: Path) -> Path:
    """A folder with every source."""
    root.mkdir(parents=True)
    lora_folder(root / "lora", saved=True)
    shared_folder(root / "shared")
    convert_lora(root / "lora", root / "guide", ConversionSettings(Target(tolerance=0.05)))
    made = lora_files.tensors("kohya unet", lora_files.ALPHAS["one alpha"])
    lora_files.lora_file(root / "one.safetensors", made)
    return root


def digest(path: Path) -> str | None:
    """Of names and bytes of a file or folder; None where there is none."""
    if not path.exists():
        return None
    found = hashlib.sha256()
    for item in [path, *sorted(path.rglob("*"))]:
        found.update(os.fsencode(item.relative_to(path)) + b"\0")
        found.update(item.read_bytes() if item.is_file() else b"/")
    return found.hexdigest()


def listing(root: Path) -> set[str]:
    """Names of all that is in a folder, at any depth."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}
