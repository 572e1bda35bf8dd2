"""Reports: what theory says of adapter folders, as values with a JSON form, tables and one-file pages."""

from tntune.report.analysis import AdapterAnalysis, LayerAnalysis, analyze_adapter
from tntune.report.compact import CompactJacobian, compact
from tntune.report.conditioning import LayerJacobian, layer_jacobian
from tntune.report.counted import CountedSpectrum
from tntune.report.descent import Descent, descend
from tntune.report.html import analysis_page
from tntune.report.html_kernels import kernel_page
from tntune.report.kernel import LayerKernel, LayerSpectrum, layer_kernel
from tntune.report.kernel_bounds import generalisation, kernel_bounds
from tntune.report.kernels import AdapterKernels, adapter_kernels
from tntune.report.layers import AdaptedLayer, adapted_layers
from tntune.report.methods import Contender, MethodComparison, compare_methods
from tntune.report.network import NetworkKernel, install_folder, network_plan
from tntune.report.page import write_page
from tntune.report.probe import Probe, read_inputs
from tntune.report.reference import reference_layers
from tntune.report.report import AnalysisReport, KernelReport
from tntune.report.sweep import sweep_page

__all__ = [
    "AdaptedLayer",
    "AdapterAnalysis",
    "AdapterKernels",
    "AnalysisReport",
    "CompactJacobian",
    "Contender",
    "CountedSpectrum",
    "Descent",
    "KernelReport",
    "LayerAnalysis",
    "LayerJacobian",
    "LayerKernel",
    "LayerSpectrum",
    "MethodComparison",
    "NetworkKernel",
    "Probe",
    "adapted_layers",
    "adapter_kernels",
    "analysis_page",
    "analyze_adapter",
    "compact",
    "compare_methods",
    "descend",
    "generalisation",
    "install_folder",
    "kernel_bounds",
    "kernel_page",
    "layer_jacobian",
    "layer_kernel",
    "network_plan",
    "read_inputs",
    "reference_layers",
    "sweep_page",
    "write_page",
]
