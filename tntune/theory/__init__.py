"""Theory: exact Jacobians of maps, spectra, conditioning, kernels and bounds, each by structure."""

from tntune.theory.approximation import LIPSCHITZ, function_error, risk_gap, truncation_error
from tntune.theory.bound import Bound
from tntune.theory.bounds import (
    conditioning,
    kernel_interval,
    kernel_rank,
    kernel_rank_bound,
    preconditioning,
)
from tntune.theory.dynamics import (
    cross_entropy_bound,
    descent_bound,
    flow_bound,
    linear_descent,
    linear_flow,
    path_bound,
)
from tntune.theory.gauge import GaugeFixedSpectrum, canonicalize, gauge_fixed_spectrum
from tntune.theory.generalisation import (
    generalisation_bound,
    interpolation_bound,
    kappa_bound,
    rademacher_bound,
    uniform_bound,
)
from tntune.theory.jacobian import MapJacobian, delta_jacobian, jacobian, map_jacobian
from tntune.theory.network_jacobian import NetworkJacobian, network_jacobian
from tntune.theory.ntk_layer import layer_ntk
from tntune.theory.ntk_model import NtkPlan, ntk, ntk_plan
from tntune.theory.ntk_operator import ntk_operator
from tntune.theory.ntk_output import last_token, logits, loss, margin
from tntune.theory.ntk_result import Ntk
from tntune.theory.nullity import Nullity, nullity
from tntune.theory.precondition import ScaledAdamW, ScaledGD, core_groups, scaled_gradients
from tntune.theory.readout import readout_train
from tntune.theory.spectrum import SpectrumReport
from tntune.theory.train_jacobian import TrainJacobian

__all__ = [
    "LIPSCHITZ",
    "Bound",
    "GaugeFixedSpectrum",
    "MapJacobian",
    "NetworkJacobian",
    "Ntk",
    "NtkPlan",
    "Nullity",
    "ScaledAdamW",
    "ScaledGD",
    "SpectrumReport",
    "TrainJacobian",
    "canonicalize",
    "conditioning",
    "core_groups",
    "cross_entropy_bound",
    "delta_jacobian",
    "descent_bound",
    "flow_bound",
    "function_error",
    "gauge_fixed_spectrum",
    "generalisation_bound",
    "interpolation_bound",
    "jacobian",
    "kappa_bound",
    "kernel_interval",
    "kernel_rank",
    "kernel_rank_bound",
    "last_token",
    "layer_ntk",
    "linear_descent",
    "linear_flow",
    "logits",
    "loss",
    "map_jacobian",
    "margin",
    "network_jacobian",
    "ntk",
    "ntk_operator",
    "ntk_plan",
    "nullity",
    "path_bound",
    "preconditioning",
    "rademacher_bound",
    "readout_train",
    "risk_gap",
    "scaled_gradients",
    "truncation_error",
    "uniform_bound",
]
