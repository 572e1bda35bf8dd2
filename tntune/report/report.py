"""What `tntune analyze` and `tntune ntk` found, as values with a JSON form."""

from dataclasses import dataclass
from typing import Any

from tntune.report.analysis import AdapterAnalysis
from tntune.report.kernels import AdapterKernels
from tntune.report.methods import MethodComparison
from tntune.report.network import NetworkKernel
from tntune.report.probe import Probe
from tntune.report.summary import versions

__all__ = ["AnalysisReport", "KernelReport"]


@dataclass(frozen=True, eq=False)
class AnalysisReport:
    """Adapters side by side, and one layer beside references of its size.

    Attributes:
        command: What made it.
        probe: What kernels were taken on.
        adapters: One analysis for each folder.
        methods: One layer of them, and fresh references.

    Example:
        >>> report = AnalysisReport("tntune analyze a", Probe(), (), MethodComparison("fc", (3, 4), 8, ()))
        >>> sorted(report.to_json())
        ['adapters', 'command', 'methods', 'probe', 'versions']
    """

    command: str
    probe: Probe
    adapters: tuple[AdapterAnalysis, ...]
    methods: MethodComparison

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; the same for the same folders, seed and versions."""
        return {
            "command": self.command,
            "versions": versions(),
            "probe": self.probe.to_json(),
            "adapters": [adapter.to_json() for adapter in self.adapters],
            "methods": self.methods.to_json(),
        }


@dataclass(frozen=True, eq=False)
class KernelReport:
    """Tangent kernels of adapters side by side: of every layer by itself, or of a whole model.

    Attributes:
        command: What made it.
        probe: What kernels of single layers were taken on; None where a model has its own batch.
        adapters: Kernels of single layers, one entry for each folder; empty with a model.
        networks: Kernels of the model with each folder in it; empty without one.

    Example:
        >>> sorted(KernelReport("tntune ntk a", Probe(), (), ()).to_json())
        ['adapters', 'command', 'networks', 'probe', 'versions']
    """

    command: str
    probe: Probe | None
    adapters: tuple[AdapterKernels, ...]
    networks: tuple[NetworkKernel, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; the same for the same folders, seed and versions."""
        return {
            "command": self.command,
            "versions": versions(),
            "probe": self.probe and self.probe.to_json(),
            "adapters": [adapter.to_json() for adapter in self.adapters],
            "networks": [network.to_json() for network in self.networks],
        }
