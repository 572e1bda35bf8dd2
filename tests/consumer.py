"""A user's own file, which must type-check strictly against the installed package."""

from pathlib import Path

import torch
from torch import nn

import tntune
from tntune import AdapterSpec, ConversionSettings, Target, adapt, convert_lora
from tntune.convert import compare_adapters, export_lora
from tntune.errors import TntuneError


def smaller(source: Path, output: Path) -> float:
    """Convert and say how far off the result is."""
    try:
        report = convert_lora(source, output, ConversionSettings(Target(params=0.5)))
    except TntuneError as error:
        raise SystemExit(str(error)) from error
    compared: float = compare_adapters(source, output).relative_error
    return max(compared, report.relative_error)


def exported(source: Path, output: Path) -> tuple[int, str]:
    """Export, and the size of the result."""
    report = export_lora(source, output, dtype=torch.float16)
    return report.bytes_after, tntune.__name__


def adapters(model: nn.Module) -> nn.Module:
    """The model with adapters."""
    return adapt(model, AdapterSpec(width=4), generator=torch.Generator().manual_seed(0))
