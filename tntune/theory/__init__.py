"""Theory: exact Jacobians of maps, spectra, conditioning, kernels and bounds, each by structure."""

from tntune.theory.bound import Bound
from tntune.theory.dynamics import (
    cross_entropy_bound,
    descent_bound,
    flow_bound,
    linear_descent,
    linear_flow,
    path_bound,
)
from tntune.theory.generalisation import (
    generalisation_bound,
    interpolation_bound,
    kappa_bound,
    rademacher_bound,
    uniform_bound,
)
from tntune.theory.ntk_layer import layer_ntk
from tntune.theory.ntk_model import NtkPlan, ntk, ntk_plan
from tntune.theory.ntk_operator import ntk_operator
from tntune.theory.ntk_output import last_token, logits, loss, margin
from tntune.theory.ntk_result import Ntk
from tntune.theory.spectrum import SpectrumReport

__all__ = [
    "Bound",
    "Ntk",
    "NtkPlan",
    "SpectrumReport",
    "cross_entropy_bound",
    "descent_bound",
    "flow_bound",
    "generalisation_bound",
    "interpolation_bound",
    "kappa_bound",
    "last_token",
    "layer_ntk",
    "linear_descent",
    "linear_flow",
    "logits",
    "loss",
    "margin",
    "ntk",
    "ntk_operator",
    "ntk_plan",
    "path_bound",
    "rademacher_bound",
    "uniform_bound",
]
