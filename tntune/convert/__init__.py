"""Conversion: a trained LoRA to any map and back, with the error of every step measured."""

from tntune.convert.compare import Comparison, LayerComparison, compare_adapters
from tntune.convert.convert import convert_lora
from tntune.convert.export import ExportReport, export_lora
from tntune.convert.gauge import Balanced, balance, delta_distance, delta_norm
from tntune.convert.lift import lift
from tntune.convert.report import ConversionReport, LayerReport
from tntune.convert.rounding import round_adapter
from tntune.convert.settings import ConversionSettings
from tntune.convert.target import Target

__all__ = [
    "Balanced",
    "Comparison",
    "ConversionReport",
    "ConversionSettings",
    "ExportReport",
    "LayerComparison",
    "LayerReport",
    "Target",
    "balance",
    "compare_adapters",
    "convert_lora",
    "delta_distance",
    "delta_norm",
    "export_lora",
    "lift",
    "round_adapter",
]
