"""Plug-ins: what goes on top of any map, its layers, its ranks or its training.

Sources are named in each docstring; what a source does not fully specify is named for what it is.
"""

from tntune.maps.gated import Gated
from tntune.maps.norm_bounded import NormBounded
from tntune.plugins.auto_ranks import AutoRanks, auto_ranks
from tntune.plugins.basis import Basis, basis_change, transported
from tntune.plugins.branch import Branch, branches
from tntune.plugins.decorrelation import ProjectedFeatures, decorrelation
from tntune.plugins.dimension import growth_sizes, intrinsic_dimension
from tntune.plugins.elementwise import ElementwiseLinear, ResidualSine, Sine, transform_deltas
from tntune.plugins.gate_pruner import GatePruner, direction_variance
from tntune.plugins.gated import gated_sites, narrowed
from tntune.plugins.gates import double_threshold, prune_gates, shrink_gates, soft_threshold
from tntune.plugins.magnitude import MagnitudeLinear, decompose_weights
from tntune.plugins.prune_bonds import BranchChange, RankReport, prune_bonds
from tntune.plugins.restart import MergeAndRestart, restart
from tntune.plugins.schedule import by_block, linear_sizes, scheduled_sites

__all__ = [
    "AutoRanks",
    "Basis",
    "Branch",
    "BranchChange",
    "ElementwiseLinear",
    "GatePruner",
    "Gated",
    "MagnitudeLinear",
    "MergeAndRestart",
    "NormBounded",
    "ProjectedFeatures",
    "RankReport",
    "ResidualSine",
    "Sine",
    "auto_ranks",
    "basis_change",
    "branches",
    "by_block",
    "decompose_weights",
    "decorrelation",
    "direction_variance",
    "double_threshold",
    "gated_sites",
    "growth_sizes",
    "intrinsic_dimension",
    "linear_sizes",
    "narrowed",
    "prune_bonds",
    "prune_gates",
    "restart",
    "scheduled_sites",
    "shrink_gates",
    "soft_threshold",
    "transform_deltas",
    "transported",
]
