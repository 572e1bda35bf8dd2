"""Conversion: a trained LoRA to any map and back, with the error of every step measured."""

from tntune.convert.attach import attached
from tntune.convert.calibrate import calibrate, lora_factors
from tntune.convert.collection import CollectionSettings, convert_collection
from tntune.convert.collection_report import CollectionReport, MemberReport
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
from tntune.convert.enlarge import enlarge_library
from tntune.convert.export import ExportReport, export_lora, export_member
from tntune.convert.family import convert_family
from tntune.convert.family_settings import FAMILY_METHODS, FamilySettings
from tntune.convert.gauge import Balanced, balance, delta_distance, delta_norm
from tntune.convert.lift import lift
from tntune.convert.memory import conversion_memory, resize_memory
from tntune.convert.norm import Norm
from tntune.convert.report import CandidateReport, ConversionReport, LayerReport
from tntune.convert.resize import resize_lora
from tntune.convert.resize_report import ResizedLayer, ResizeReport
from tntune.convert.resize_settings import ResizeSettings
from tntune.convert.rounding import round_adapter
from tntune.convert.score import Score, model_score
from tntune.convert.settings import ConversionSettings
from tntune.convert.sweep import SweepPoint, SweepReport, sweep_lora
from tntune.convert.target import Target
from tntune.convert.task import Task

__all__ = [
    "FAMILY_METHODS",
    "Balanced",
    "CandidateReport",
    "CollectionReport",
    "CollectionSettings",
    "Comparison",
    "ConversionReport",
    "ConversionSettings",
    "Distance",
    "Distillation",
    "DistillationReport",
    "Divergence",
    "ExportReport",
    "FamilySettings",
    "LayerComparison",
    "LayerReport",
    "MemberReport",
    "Norm",
    "ResizeReport",
    "ResizeSettings",
    "ResizedLayer",
    "Score",
    "SweepPoint",
    "SweepReport",
    "Target",
    "Task",
    "Teacher",
    "attached",
    "balance",
    "calibrate",
    "compare_adapters",
    "conversion_memory",
    "convert_collection",
    "convert_family",
    "convert_lora",
    "delta_distance",
    "delta_norm",
    "enlarge_library",
    "export_lora",
    "export_member",
    "kl_divergence",
    "lift",
    "lora_factors",
    "model_divergence",
    "model_score",
    "resize_lora",
    "resize_memory",
    "round_adapter",
    "squared_distance",
    "sweep_lora",
]
