"""Conversion: a trained LoRA to any map and back, with the error of every step measured."""

from tntune.convert.attach import attached
from tntune.convert.calibrate import calibrate
from tntune.convert.compare import Comparison, LayerComparison, compare_adapters
from tntune.convert.convert import convert_lora
from tntune.convert.distill import Distillation, DistillationReport
from tntune.convert.divergence import (
    Distance,
    Divergence,
    Teacher,
    kl_divergence,
    model_divergence,
    squared_distance,
)
from tntune.convert.export import ExportReport, export_lora
from tntune.convert.gauge import Balanced, balance, delta_distance, delta_norm
from tntune.convert.lift import lift
from tntune.convert.norm import Norm
from tntune.convert.report import CandidateReport, ConversionReport, LayerReport
from tntune.convert.resize import resize_lora
from tntune.convert.resize_report import ResizedLayer, ResizeReport
from tntune.convert.resize_settings import ResizeSettings
from tntune.convert.rounding import round_adapter
from tntune.convert.score import Score, model_score
from tntune.convert.settings import ConversionSettings
from tntune.convert.target import Target
from tntune.convert.task import Task

__all__ = [
    "Balanced",
    "CandidateReport",
    "Comparison",
    "ConversionReport",
    "ConversionSettings",
    "Distance",
    "Distillation",
    "DistillationReport",
    "Divergence",
    "ExportReport",
    "LayerComparison",
    "LayerReport",
    "Norm",
    "ResizeReport",
    "ResizeSettings",
    "ResizedLayer",
    "Score",
    "Target",
    "Task",
    "Teacher",
    "attached",
    "balance",
    "calibrate",
    "compare_adapters",
    "convert_lora",
    "delta_distance",
    "delta_norm",
    "export_lora",
    "kl_divergence",
    "lift",
    "model_divergence",
    "model_score",
    "resize_lora",
    "round_adapter",
    "squared_distance",
]
