"""Theory: exact Jacobians of maps, spectra, conditioning, kernels and bounds, each by structure."""

from tntune.theory.bound import Bound
from tntune.theory.spectrum import SpectrumReport

__all__ = [
    "Bound",
    "SpectrumReport",
]
