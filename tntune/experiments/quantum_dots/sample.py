"""Random devices within physical ranges, and labelled sets of their charge-stability diagrams."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.errors import SpecError
from tntune.experiments.quantum_dots.noise import Noise
from tntune.experiments.quantum_dots.simulate import ELEMENTARY, Dots, Sensor, Window, mean_charge

__all__ = ["PIXELS", "Device", "diagrams", "double_dot", "single_dot"]

PIXELS = 50

CAPACITANCE = (40.0, 110.0)
"""Total capacitance of a dot in aF: charging energies of 1.5 to 4 meV."""

GATE = (4.0, 10.0)
"""Capacitance of a dot to its own gate in aF: an electron every 16 to 40 mV."""

SPREAD = (0.35, 1.0)
"""Of a single dot: its weaker gate's capacitance, relative to the other's."""

CROSS = (0.05, 0.35)
"""Of a double dot: capacitance to the other dot's gate, relative to its own dot's."""

COUPLING = (0.12, 0.45)
"""Mutual capacitance, relative to the smaller total one."""

ELECTRONS = (2.0, 4.5)
"""Electrons that one gate adds along an axis of the window."""

TEMPERATURE = (0.1, 0.6)
"""Of the electrons in K, thermal and life-time broadening together."""

SHIFT = (0.1, 0.3)
"""What an electron of the nearer dot moves at the sensor, in widths of its peak."""

BIAS = (-0.9, -0.5)
"""Where on its peak the sensor is held; -0.66 is the steepest point."""

FOLLOWED = (0.8, 1.1)
"""Share of the gates' charge that the sensor's own gate makes up for, so that it stays on the flank."""


@dataclass(frozen=True)
class Device:
    """Dots, the sensor beside them, the window that is scanned and the temperature: all but the noise.

    Example:
        >>> device = double_dot(torch.Generator().manual_seed(0))
        >>> device.dots.count, device.diagram(Noise(), torch.Generator().manual_seed(1)).shape
        (2, torch.Size([50, 50]))
    """

    dots: Dots
    sensor: Sensor
    window: Window
    temperature: float

    def charges(self, offset: Tensor | float = 0.0) -> Tensor:
        """Mean charges (pixels, pixels, dots), with an offset charge (pixels, pixels, 1) on every dot."""
        gate_charge = self.dots.gate_charge(self.window.voltages()) + offset
        return mean_charge(self.dots, gate_charge, temperature=self.temperature)

    def diagram(self, noise: Noise, generator: torch.Generator) -> Tensor:
        """The sensor's response along the first gate, ``dI/dV``, of mean 0 and variance 1 and in float32.

        It is what a lock-in measures: flat where charges stay, a ridge where one enters a dot.
        """
        pixels, origin = self.window.pixels, torch.tensor(self.window.origin, dtype=torch.float64)
        charges = self.charges(noise.at_dots(pixels, generator).unsqueeze(-1))
        gained, moved = charges - self.dots.gate_charge(origin), self.window.voltages() - origin
        current = self.sensor.current(gained, moved, noise.at_sensor(pixels, generator))
        (response,) = torch.gradient(current, dim=1)
        measured = noise.at_amplifier(response, generator)
        return ((measured - measured.mean()) / measured.std()).float()


def single_dot(generator: torch.Generator, *, pixels: int = PIXELS) -> Device:
    """One dot under two gates: parallel lines ``C_g · V = e (N + ½)``; their slope is C_g1 / C_g2.

    Example:
        >>> single_dot(torch.Generator().manual_seed(0)).dots.count
        1
    """
    total, strong = _uniform(CAPACITANCE, generator), _uniform(GATE, generator)
    weak = strong * _uniform(SPREAD, generator)
    gates = [strong, weak] if torch.rand((), generator=generator) < 0.5 else [weak, strong]
    return _device([[total]], [gates], generator, pixels)


def double_dot(generator: torch.Generator, *, pixels: int = PIXELS) -> Device:
    """Two coupled dots, each under its own gate: the honeycomb, its triple points split by the coupling.

    Example:
        >>> double_dot(torch.Generator().manual_seed(0)).dots.count
        2
    """
    first, second = _uniform(CAPACITANCE, generator), _uniform(CAPACITANCE, generator)
    mutual = _uniform(COUPLING, generator) * min(first, second)
    own = _uniform(GATE, generator)
    gates = []
    for side, gate in enumerate((own, own * _uniform((0.7, 1.4), generator))):
        cross = gate * _uniform(CROSS, generator)
        gates.append([cross, gate] if side else [gate, cross])
    return _device([[first, -mutual], [-mutual, second]], gates, generator, pixels)


def diagrams(count: int, noise: Noise, *, seed: int, pixels: int = PIXELS) -> tuple[Tensor, Tensor]:
    """So many diagrams of as many devices, single and double dots in turn: the same for the same seed.

    Device, noise and order do not depend on one another: the noise-free set of a seed shows the same
    devices as its noisy ones, and a larger set begins with the smaller.

    Args:
        count: Number of diagrams.
        noise: What disturbs them.
        seed: Of everything.
        pixels: On both axes.

    Returns:
        Diagrams (count, 1, pixels, pixels) in float32, each of mean 0 and variance 1, and labels (count,):
        0 for one dot, 1 for two.

    Raises:
        SpecError: Where the count is not positive.

    Example:
        >>> images, labels = diagrams(4, Noise(), seed=0)
        >>> images.shape, labels.tolist()
        (torch.Size([4, 1, 50, 50]), [0, 1, 0, 1])
    """
    if count < 1:
        raise SpecError(f"a set has at least 1 diagram, not {count}")
    seeds = torch.randint(2**62, (count, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    kinds = (single_dot, double_dot)
    images = [
        kinds[k % 2](torch.Generator().manual_seed(device), pixels=pixels).diagram(
            noise, torch.Generator().manual_seed(hiss)
        )
        for k, (device, hiss) in enumerate(seeds)
    ]
    return torch.stack(images).unsqueeze(1), torch.arange(count) % 2


def _device(
    capacitance: list[list[float]], gates: list[list[float]], generator: torch.Generator, pixels: int
) -> Device:
    """The device of these matrices, with a window, a sensor and a temperature drawn for it."""
    strongest = max(map(max, gates))
    span = _uniform(ELECTRONS, generator) * ELEMENTARY / strongest
    origin = tuple(_uniform((0.5, 6.0), generator) * ELEMENTARY / strongest for _ in range(2))
    dots = Dots(torch.tensor(capacitance, dtype=torch.float64), torch.tensor(gates, dtype=torch.float64))
    sensor = _sensor(dots, generator)
    temperature = math.exp(_uniform((math.log(TEMPERATURE[0]), math.log(TEMPERATURE[1])), generator))
    return Device(dots, sensor, Window((origin[0], origin[1]), span, pixels), temperature)


def _sensor(dots: Dots, generator: torch.Generator) -> Sensor:
    """A sensor near the steepest point of its peak, whose own gate follows the staircase of charges."""
    shift = _uniform(SHIFT, generator)
    shifts = torch.tensor([shift * _uniform((0.6, 1.0), generator) for _ in range(dots.count)]).double()
    followed = -shifts @ dots.gates / ELEMENTARY * _uniform(FOLLOWED, generator)
    pull = followed.tolist()
    return Sensor(_uniform(BIAS, generator), tuple(shifts.tolist()), (pull[0], pull[1]))


def _uniform(interval: tuple[float, float], generator: torch.Generator) -> float:
    """A number between two."""
    low, high = interval
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
