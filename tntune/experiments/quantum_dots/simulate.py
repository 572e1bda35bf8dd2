"""Quantum dots in the constant-interaction model: which charges sit where, and what a sensor sees of them.

Capacitances in aF, voltages in mV, energies in meV, temperatures in K, charges in electrons.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from tntune.errors import ModeError, SpecError

__all__ = ["BOLTZMANN", "ELEMENTARY", "Dots", "Sensor", "Window", "energy", "ground_state", "mean_charge"]

ELEMENTARY = 160.2176634
"""e in aF mV, so e²/C in meV for C in aF."""

BOLTZMANN = 0.08617333
"""k_B in meV / K."""

_REACH = (-1, 0, 1, 2)
"""Charges of a dot that are weighed, from the floor of its gate charge."""


@dataclass(frozen=True)
class Dots:
    """One or two dots under two gates: ``U(n; V) = e²/2 (n - n_g)ᵀ C⁻¹ (n - n_g)`` with ``n_g = C_g V / e``.

    Every part of the model is in the two matrices: charging energies and mutual coupling in C, lever arms
    and the gates' cross-talk in C_g.

    Attributes:
        capacitance: C, of shape (dots, dots) in float64 and aF: total capacitances on the diagonal, minus
            the mutual capacitance beside it.
        gates: C_g, of shape (dots, 2): from each dot to each gate.

    Raises:
        ModeError: Where the shapes do not fit.
        SpecError: Where the mutual capacitance is negative or above half of a total one (beyond that two
            dots are one), or a total or a gate capacitance is not positive.

    Example:
        >>> dot = Dots(torch.tensor([[80.0]]), torch.tensor([[8.0, 4.0]]))
        >>> dot.count, round(float(dot.charging_energies[0]), 3)
        (1, 2.003)

    Reference: van der Wiel et al., Rev. Mod. Phys. 75, 1 (2002), eqs. A1 to A7.
    """

    capacitance: Tensor
    gates: Tensor

    def __post_init__(self) -> None:
        count = len(self.capacitance)
        if count not in (1, 2) or self.capacitance.shape != (count, count) or self.gates.shape != (count, 2):
            shapes = f"{tuple(self.capacitance.shape)} and {tuple(self.gates.shape)}"
            raise ModeError(f"one or two dots under two gates have matrices (d, d) and (d, 2), not {shapes}")
        total, mutual = self.capacitance.diagonal(), self.capacitance.triu(1)
        if not bool((total > 0).all()) or not bool((self.gates > 0).all()):
            raise SpecError("total and gate capacitances are positive")
        if not bool((mutual <= 0).all() and (2 * mutual.abs() <= total.min()).all()):
            raise SpecError("the mutual capacitance, written with a minus, is at most half of a total one")
        if not torch.equal(self.capacitance, self.capacitance.mT):
            raise SpecError("a capacitance matrix is symmetric")

    @property
    def count(self) -> int:
        """Number of dots."""
        return len(self.capacitance)

    @property
    def charging_energies(self) -> Tensor:
        """``e² (C⁻¹)_ii`` of each dot in meV, shape (dots,)."""
        inverse: Tensor = torch.linalg.inv(self.capacitance)
        return ELEMENTARY * inverse.diagonal()

    def gate_charge(self, voltages: Tensor) -> Tensor:
        """``n_g = C_g V / e``: voltages (..., 2) to electrons (..., dots)."""
        return voltages @ self.gates.mT / ELEMENTARY


@dataclass(frozen=True)
class Window:
    """A square grid of gate voltages: the first gate along a row, the second from row to row.

    Attributes:
        origin: Lowest voltages of both gates, in mV.
        span: Distance from the first to the last of a row, in mV, on both axes.
        pixels: Points on each axis.

    Example:
        >>> Window((0.0, 10.0), 4.0, pixels=3).voltages()[-1].tolist()
        [[0.0, 14.0], [2.0, 14.0], [4.0, 14.0]]
    """

    origin: tuple[float, float]
    span: float
    pixels: int = 50

    def voltages(self) -> Tensor:
        """Voltages in float64, of shape (pixels, pixels, 2)."""
        steps = torch.linspace(0, self.span, self.pixels, dtype=torch.float64)
        second, first = torch.meshgrid(steps + self.origin[1], steps + self.origin[0], indexing="ij")
        return torch.stack([first, second], dim=-1)


@dataclass(frozen=True)
class Sensor:
    """A dot on the flank of its Coulomb peak: ``I = cosh⁻²(bias + shifts·Δn + crosstalk·ΔV)``.

    Each electron that enters a dot moves the peak by that dot's shift, and the gates move it a little
    themselves: that is the slow background of measured diagrams. Δ is from the origin of the window.

    Attributes:
        bias: Place on the peak before anything moves; -0.66 is the steepest.
        shifts: One for each dot, in widths of the peak.
        crosstalk: Of both gates, in widths of the peak a mV.

    Example:
        >>> sensor = Sensor(0.0, (-0.2,), (0.0, 0.0))
        >>> sensor.current(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 2)).round(decimals=2).tolist()
        [1.0, 0.9599999785423279]

    Reference: Beenakker, Phys. Rev. B 44, 1646 (1991), eq. 3.14 (the peak's form); Hanson et al., Rev. Mod.
    Phys. 79, 1217 (2007), section III (charge sensing).
    """

    bias: float
    shifts: tuple[float, ...]
    crosstalk: tuple[float, float]

    def current(self, gained: Tensor, moved: Tensor, disturbance: Tensor | float = 0.0) -> Tensor:
        """Current in units of the peak's, for Δn (..., dots), ΔV (..., 2), and noise of the level (...)."""
        level = gained @ gained.new_tensor(self.shifts) + moved @ moved.new_tensor(self.crosstalk)
        return (self.bias + level + disturbance).cosh() ** -2


def energy(dots: Dots, charges: Tensor, gate_charge: Tensor) -> Tensor:
    """``e²/2 (n - n_g)ᵀ C⁻¹ (n - n_g)`` in meV.

    Args:
        dots: The device.
        charges: n, of shape (..., dots).
        gate_charge: n_g, of a shape that broadcasts with it.

    Returns:
        Shape (...).

    Example:
        >>> dot = Dots(torch.tensor([[80.0]]), torch.tensor([[8.0, 4.0]]))
        >>> at_half = torch.tensor([0.5])
        >>> bool(energy(dot, torch.tensor([0.0]), at_half) == energy(dot, torch.tensor([1.0]), at_half))
        True

    Reference: van der Wiel et al. (2002), eq. A7.
    """
    away = charges - gate_charge
    return ELEMENTARY / 2 * torch.einsum("...i,ij,...j->...", away, torch.linalg.inv(dots.capacitance), away)


def ground_state(dots: Dots, gate_charge: Tensor) -> Tensor:
    """``argmin_n U(n; n_g)`` over all integer charges, however large.

    The minimiser is the lattice vector nearest to n_g in the norm of C⁻¹. With a mutual capacitance of at
    most half the smaller total one the lattice's basis is reduced, so the nearest is a corner of the unit
    cell around n_g; 4 charges for each dot are weighed, among them those corners.

    Args:
        dots: The device.
        gate_charge: n_g, of shape (..., dots), in float64.

    Returns:
        Charges of the same shape and dtype; an offset of the gates' charges below 0 leaves holes.

    Example:
        >>> dot = Dots(torch.tensor([[80.0]]), torch.tensor([[8.0, 4.0]]))
        >>> ground_state(dot, torch.tensor([[0.4], [0.6], [2.2]])).flatten().tolist()
        [0.0, 1.0, 2.0]
    """
    states, energies = _states(dots, gate_charge)
    best = energies.argmin(-1, keepdim=True).unsqueeze(-1).expand(*energies.shape[:-1], 1, dots.count)
    return states.gather(-2, best).squeeze(-2)


def mean_charge(dots: Dots, gate_charge: Tensor, *, temperature: float) -> Tensor:
    """``⟨n⟩ = Σ n exp(-U/kT) / Σ exp(-U/kT)``: lines of charge transitions, broadened by kT.

    Between two states of one dot this is the Fermi function of their difference in energy.

    Args:
        dots: The device.
        gate_charge: n_g, of shape (..., dots), in float64.
        temperature: Of the electrons in K, far below the charging energy / k_B.

    Returns:
        Real charges of the same shape.

    Raises:
        SpecError: Where the temperature is not positive, or kT is above a fifth of a charging energy.

    Example:
        >>> dot = Dots(torch.tensor([[80.0]]), torch.tensor([[8.0, 4.0]]))
        >>> charges = mean_charge(dot, torch.tensor([[0.3], [0.5]]), temperature=0.2)
        >>> [round(n, 3) for n in charges.flatten().tolist()]
        [0.0, 0.5]

    Reference: Beenakker (1991), section II; van der Wiel et al. (2002), section II.C.
    """
    thermal = BOLTZMANN * temperature
    if not 0 < thermal <= float(dots.charging_energies.min()) / 5:
        raise SpecError(f"kT = {thermal:.3g} meV is not between 0 and a fifth of a charging energy")
    states, energies = _states(dots, gate_charge)
    return ((-energies / thermal).softmax(-1).unsqueeze(-1) * states).sum(-2)


def _states(dots: Dots, gate_charge: Tensor) -> tuple[Tensor, Tensor]:
    """Charges that are weighed (..., states, dots), and their energies (..., states)."""
    around = gate_charge.new_tensor(list(product(_REACH, repeat=dots.count)))
    states = gate_charge.floor().unsqueeze(-2) + around
    return states, energy(dots, states, gate_charge.unsqueeze(-2))
