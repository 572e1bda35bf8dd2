"""What disturbs a measured diagram: white and 1/f noise, telegraph jumps, offset charges, blur and drift.

A diagram is scanned row by row; noise in time is noise along that scan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from tntune.errors import SpecError

__all__ = ["LEVELS", "Noise", "blur", "pink", "telegraph"]


@dataclass(frozen=True)
class Noise:
    """Strengths of six disturbances; all 0 by default.

    Attributes:
        white: Standard deviation of the amplifier's noise, in units of the diagram's own.
        pink: Standard deviation of the sensor's 1/f charge noise, in widths of its peak.
        telegraph: Size of a two-level charge's step at the sensor, in widths of its peak.
        offset: Size of a two-level charge's step at the dots, in electrons: transition lines break there.
        drift: How far the sensor moves from the first to the last row, in widths of its peak.
        blur: Width of the lock-in's Gaussian, in pixels along a row.
        switches: Switches of each two-level charge expected in one diagram.

    Raises:
        SpecError: Where a strength is negative.

    Example:
        >>> Noise(white=0.2, pink=0.1).times(0.5)
        Noise(white=0.1, pink=0.05, telegraph=0.0, offset=0.0, drift=0.0, blur=0.0, switches=4.0)
    """

    white: float = 0.0
    pink: float = 0.0
    telegraph: float = 0.0
    offset: float = 0.0
    drift: float = 0.0
    blur: float = 0.0
    switches: float = 4.0

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name}: a strength of noise is at least 0, not {getattr(self, name)}")

    def times(self, factor: float) -> "Noise":
        """All strengths multiplied, but the number of switches."""
        strengths = {item.name: factor * getattr(self, item.name) for item in fields(self)}
        return Noise(**{**strengths, "switches": self.switches})

    def at_dots(self, pixels: int, generator: torch.Generator) -> Tensor:
        """Offset charge of the dots in electrons, of shape (pixels, pixels)."""
        return self.offset / 2 * telegraph(pixels, self.switches / pixels**2, generator)

    def at_sensor(self, pixels: int, generator: torch.Generator) -> Tensor:
        """What adds to the sensor's level, in widths of its peak, of shape (pixels, pixels)."""
        jumps = telegraph(pixels, self.switches / pixels**2, generator)
        flicker = pink(pixels, generator)
        rows = torch.linspace(-0.5, 0.5, pixels, dtype=torch.float64).unsqueeze(1)
        sign = 1 - 2 * torch.randint(2, (), generator=generator)
        return self.telegraph / 2 * jumps + self.pink * flicker + self.drift * sign * rows

    def at_amplifier(self, diagram: Tensor, generator: torch.Generator) -> Tensor:
        """The measured diagram: blurred, then with white noise of its own scale."""
        hiss = torch.randn(diagram.shape, generator=generator, dtype=diagram.dtype)
        return blur(diagram, self.blur) + self.white * diagram.std() * hiss


LEVELS: Mapping[str, Noise] = MappingProxyType(
    {
        "none": Noise(),
        "white": Noise(white=1.0),
        "pink": Noise(pink=0.1),
        "telegraph": Noise(telegraph=0.1, offset=0.25),
        "blur": Noise(blur=1.5),
        "realistic": Noise(white=0.5, pink=0.03, telegraph=0.05, offset=0.15, drift=0.1, blur=0.5),
        "harsh": Noise(white=1.0, pink=0.06, telegraph=0.1, offset=0.3, drift=0.2, blur=0.5),
    }
)
"""Noise by name; ``"realistic"`` composes all kinds, ``"harsh"`` has about twice as much of each."""


def pink(pixels: int, generator: torch.Generator, *, exponent: float = 1.0) -> Tensor:
    """A scan whose power spectrum is ``1/f^exponent``, of mean 0 and expected variance 1.

    Gaussian Fourier coefficients of variance ``f^-exponent`` are transformed back to the ``pixels²`` points
    of the scan, so the noise is continuous from the end of a row to the start of the next.

    Args:
        pixels: Rows and columns.
        generator: Source of the noise, on the CPU.
        exponent: 0 is white, 1 is 1/f, 2 a random walk.

    Returns:
        Float64 of shape (pixels, pixels), in O(pixels² log pixels).

    Example:
        >>> noise = pink(50, torch.Generator().manual_seed(0))
        >>> noise.shape, abs(float(noise.mean())) < 1e-12
        (torch.Size([50, 50]), True)

    Reference: Timmer and König, Astron. Astrophys. 300, 707 (1995).
    """
    frequency = torch.fft.rfftfreq(pixels**2, dtype=torch.float64)[1:]
    amplitude = frequency ** (-exponent / 2)
    amplitude[-1] = 0.0  # the highest frequency has no phase
    real, imaginary = torch.randn(2, len(frequency), generator=generator, dtype=torch.float64)
    waves = pad(amplitude * torch.complex(real, imaginary), (1, 0))  # of mean 0
    scale = 2 * torch.linalg.vector_norm(amplitude)
    scan: Tensor = torch.fft.irfft(waves, n=pixels**2, norm="forward") / scale
    return scan.reshape(pixels, pixels)


def telegraph(pixels: int, rate: float, generator: torch.Generator) -> Tensor:
    """A scan that is +1 or -1 and switches with probability ``rate`` at each pixel.

    Two pixels k steps apart are correlated by ``(1 - 2 rate)^k``.

    Args:
        pixels: Rows and columns.
        rate: Probability of a switch, from 0 to 1.
        generator: Source of the switches, on the CPU.

    Returns:
        Float64 of shape (pixels, pixels).

    Raises:
        SpecError: Where the rate is no probability.

    Example:
        >>> jumps = telegraph(50, 0.01, torch.Generator().manual_seed(0))
        >>> sorted(set(jumps.flatten().tolist()))
        [-1.0, 1.0]

    Reference: Machlup, J. Appl. Phys. 25, 341 (1954).
    """
    if not 0 <= rate <= 1:
        raise SpecError(f"a probability of switching is between 0 and 1, not {rate}")
    switches = torch.rand(pixels**2, generator=generator, dtype=torch.float64) < rate
    start = torch.randint(2, (), generator=generator)
    return (1 - 2 * ((start + switches.cumsum(0)) % 2)).double().reshape(pixels, pixels)


def blur(diagram: Tensor, width: float) -> Tensor:
    """Each row convolved with a Gaussian of that width in pixels; ends repeat, a constant stays as it is.

    Args:
        diagram: Shape (rows, columns).
        width: Standard deviation; 0 changes nothing.

    Returns:
        The same shape and dtype.

    Example:
        >>> blur(torch.eye(5), 0.0).equal(torch.eye(5))
        True
    """
    if width == 0:
        return diagram
    reach = ceil(4 * width)
    steps = torch.arange(-reach, reach + 1, dtype=diagram.dtype)
    kernel = (-0.5 * (steps / width) ** 2).exp()
    padded = pad(diagram.unsqueeze(1), (reach, reach), mode="replicate")
    return conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1)).squeeze(1)
