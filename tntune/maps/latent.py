"""The Gaussian latent z: made on the CPU from a stated algorithm and seed, the same on every machine."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tntune.errors import SpecError
from tntune.maps.base import Shape, positives

__all__ = ["LATENT_ALGORITHM", "Latent", "gaussian_latent"]

LATENT_ALGORITHM = "philox4x64-10/box-muller/float32"
_MODES = ("none", "fixed", "resample", "mean")


@dataclass(frozen=True)
class Latent:
    """What feeds a train's latent legs: z is a function of ``(modes, seed)`` alone.

    Attributes:
        mode: ``"none"``: no latent legs. ``"fixed"``: z is drawn once and stored. ``"resample"``: in
            training a layer draws z afresh at every call (as dropout draws its mask, from torch's own
            generator); in evaluation it uses the stored one. ``"mean"``: no z; the factors are widened
            so that ``up @ down`` is exactly the mean over z of ``up(z) @ down(z)``, which exists for a
            linear activation only.
        modes: Sizes n_k of the latent legs, one for each core; ``()`` for ``"none"``.
        seed: Seed of the stored z.

    Raises:
        SpecError: Where mode, modes and seed contradict one another.

    Example:
        >>> z = Latent("fixed", (1, 2, 2, 1), seed=7).draw()
        >>> z.shape, z.dtype
        (torch.Size([1, 2, 2, 1]), torch.float32)

    Reference: Qi et al. (arXiv 2506.16456), eq. 3 and Algorithm 1; the published code fixes z.
    """

    kind: ClassVar[str] = "latent"

    mode: str = "none"
    modes: Shape = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise SpecError(f"latent mode must be one of {', '.join(_MODES)}, not {self.mode!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise SpecError(f"latent seed must be an integer in [0, 2**63), not {self.seed!r}")
        if self.mode == "none" and self.modes != ():
            raise SpecError(f"a latent of mode 'none' has no modes, but {self.modes!r} were given")
        if self.mode != "none":
            object.__setattr__(self, "modes", positives("latent modes", self.modes))

    @property
    def size(self) -> int:
        """Number of entries of z (1 without a latent)."""
        return math.prod(self.modes)

    @property
    def stored(self) -> bool:
        """Whether a checkpoint holds z."""
        return self.mode in ("fixed", "resample")

    def draw(self) -> Tensor:
        """The latent z of shape ``modes``, float32, on the CPU; a pure function of ``(modes, seed)``."""
        return gaussian_latent(self.modes, self.seed)

    def power(self) -> float:
        """Σ z², or its mean where z is resampled: the factor by which z scales the variance of a train."""
        if self.mode == "fixed":
            return float(self.draw().double().square().sum())
        return float(self.size) if self.mode == "resample" else 1.0


def gaussian_latent(modes: Shape, seed: int) -> Tensor:
    """Standard normal numbers as a pure function of ``(modes, seed)``: no generator state, no device.

    Algorithm ``LATENT_ALGORITHM``: the raw 64-bit words of Philox (4x64, 10 rounds, key ``seed``, counters
    1, 2, ...), a stream that numpy guarantees; the upper 53 bits u of each word give
    (u + 1/2) / 2**53; consecutive pairs (u1, u2) give sqrt(-2 log u1) cos(2 pi u2) and the sine, in
    float64; the result is rounded to float32, in row-major order.

    Args:
        modes: Shape of the result.
        seed: Integer in [0, 2**63).

    Returns:
        A float32 tensor on the CPU, in O(prod modes).

    Example:
        >>> bool((gaussian_latent((3, 2), 5) == gaussian_latent((6,), 5).reshape(3, 2)).all())
        True

    Reference: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3; Box and Muller (1958).
    """
    count = math.prod(modes)
    words = np.random.Philox(key=seed).random_raw(2 * ((count + 1) // 2)).reshape(-1, 2)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, 0])), 2.0 * np.pi * uniform[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]
    return torch.from_numpy(normal.astype(np.float32)).reshape(modes)
