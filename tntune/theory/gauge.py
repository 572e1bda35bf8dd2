"""Gauge: canonical cores of a map, and the spectrum of J that canonical cores have in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.errors import ModeError, UnsupportedError
from tntune.maps.base import Tensors, WeightMap
from tntune.maps.latent_train import LatentTrain
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA
from tntune.tt.orthogonal import orthogonalize
from tntune.tt.rounding import bond_spectra
from tntune.tt.train import Train, cores, merged_modes, tt_tensor

__all__ = ["GaugeFixedSpectrum", "canonicalize", "gauge_fixed_spectrum", "map_trains"]


@dataclass(frozen=True)
class GaugeFixedSpectrum:
    """Singular values of J on gauge-fixed directions: ``values[i]`` occurs ``counts[i]`` times.

    Attributes:
        values: Distinct values, bond by bond, and the one of the centre last.
        counts: How often each occurs, none of them 0; their sum is the dimension of the manifold.
        ranks: TT-ranks of the train, counted numerically.

    Example:
        >>> GaugeFixedSpectrum((3.0, 1.0), (2, 4), (1, 1, 1)).delta
        1.0
    """

    values: tuple[float, ...]
    counts: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """Dimension of the manifold of trains of these ranks: ``P - Σ r_k²`` of minimal cores."""
        return sum(self.counts)

    @property
    def delta(self) -> float:
        """The least eigenvalue of ``J Jᵀ`` on gauge-fixed directions: the square of the least value."""
        return min(self.values) ** 2

    def expanded(self) -> Tensor:
        """All values, each as often as it occurs, descending."""
        own = torch.tensor(self.values, dtype=torch.float64)
        return own.repeat_interleave(torch.tensor(self.counts)).sort(descending=True).values


def gauge_fixed_spectrum(
    x: Train, centre: int = -1, *, latent_norms: Sequence[float] | None = None
) -> GaugeFixedSpectrum:
    """Singular values of J on ``dG_kᵀ G_k = 0`` in canonical form: those of the unfoldings, and ones.

    With the weight in core c: ``σ_i(X^<k>)`` occurs ``r_{k-1} n_k - r_k`` times for the bonds k before c and
    ``n_{k+1} r_{k+1} - r_k`` times for those behind it, and 1 occurs ``r_{c-1} n_c r_c`` times. All of J at
    those cores has singular values at least as large, one by one; J in another gauge has others.

    Args:
        x: Any train; it is the same for each of its gauges. Ranks that are zero to rounding do not count.
        centre: The core c, in [-K, K).
        latent_norms: ``|z_k|`` of a latent ``z_1 ⊗ .. ⊗ z_K``, when x is the train of effective cores: values
            of directions of core k are multiplied by ``|z_k|``.

    Raises:
        ModeError: Where there is no such core, or not one norm for each core.

    Example:
        >>> x = tt_tensor([torch.eye(2)[None], 3 * torch.eye(2)[..., None]])
        >>> found = gauge_fixed_spectrum(x)
        >>> [round(value, 5) for value in found.values], found.counts
        ([1.0], (4,))

    Statement: T2 in theory/gauge.md; with a latent, T4.
    """
    sizes = merged_modes(x)
    order = len(sizes)
    norms = [1.0] * order if latent_norms is None else [float(norm) for norm in latent_norms]
    if not -order <= centre < order or len(norms) != order:
        raise ModeError(f"centre {centre} and {len(norms)} latent norms do not fit {order} cores")
    c = centre % order
    spectra = [_above_rounding(values) for values in bond_spectra(x)]
    ranks = (1, *(len(values) for values in spectra), 1)
    found: list[tuple[float, int]] = []
    for k, values in enumerate(spectra):  # bond between cores k and k + 1
        core = k if k < c else k + 1
        count = sizes[core] * (ranks[k] if k < c else ranks[k + 2]) - ranks[k + 1]
        found += [(norms[core] * value, count) for value in values.tolist()]
    found.append((norms[c], ranks[c] * sizes[c] * ranks[c + 1]))
    kept = [pair for pair in found if pair[1] > 0]
    return GaugeFixedSpectrum(tuple(value for value, _ in kept), tuple(count for _, count in kept), ranks)


def canonicalize(map: WeightMap, params: Tensors, fixed: Tensors, *, centre: int = -1) -> dict[str, Tensor]:
    """Canonical cores of the same function: ``factors(canonicalize(map, params, fixed), fixed)`` do not move.

    Every train gets left-orthogonal cores before its centre and right-orthogonal ones behind it; the latent
    leg counts with the mode, so that nothing depends on z. Boundary ranks are summed, and directions that the
    modes do not admit are left out: the freed entries are zero. A plain train has the closed-form spectrum of
    :func:`gauge_fixed_spectrum` here; a zero start stays a zero start.

    Args:
        map: A :class:`TensorGuide` or a :class:`TTLoRA`.
        params: Trainable tensors; they are not changed.
        fixed: The map's fixed tensors; a frozen start stays as it is.
        centre: Which core of each train keeps the weight, in [-K, K).

    Returns:
        New params in their dtype, in O(K n r³).

    Raises:
        UnsupportedError: For a map without bonds, such as a LoRA: its params are its factors.
        ModeError: Where there is no such core.

    Example:
        >>> guide = TensorGuide.concat(2, 2, 1, modes=(2, 2), ranks=(1, 2, 1), start="random")
        >>> params, fixed = guide.init(torch.Generator().manual_seed(0))
        >>> first = canonicalize(guide, params, fixed)["tt_core_0"][0]
        >>> torch.allclose(first.T @ first, torch.eye(2), atol=1e-6)
        True

    Statement: T1 in theory/gauge.md.
    """
    made = dict(params)
    for train, prefix in map_trains(map):
        names = train.names(prefix)
        made.update(zip(names, _canonical(train, [params[name] for name in names], centre), strict=True))
    return made


def map_trains(map: WeightMap) -> tuple[tuple[LatentTrain, str], ...]:
    """The trains of a map and the prefixes of their names.

    Raises:
        UnsupportedError: For a map that is not made of trains.

    Example:
        >>> guide = TensorGuide.concat(2, 2, 1, modes=(2, 2), ranks=(1, 2, 1))
        >>> [prefix for _, prefix in map_trains(guide)]
        ['tt_']
    """
    if isinstance(map, TensorGuide):
        return ((map.train, "tt_"),)
    if isinstance(map, TTLoRA):
        return ((map.down_train, "tt_down_"), (map.up_train, "tt_up_"))
    raise UnsupportedError(
        f"{map.kind} has no trains, so it has no bonds and no gauge; TensorGuide and TTLoRA do"
    )


def _canonical(train: LatentTrain, own: list[Tensor], centre: int) -> list[Tensor]:
    """The cores of a train in canonical form, in the shapes of the train."""
    wide = [core.detach().double().flatten(1, -2) for core in own]
    wide[0] = wide[0].sum(0, keepdim=True)
    wide[-1] = wide[-1].sum(-1, keepdim=True)
    made = []
    for core, shape, given in zip(
        cores(orthogonalize(tt_tensor(wide), centre)), train.core_shapes, own, strict=True
    ):
        full = core.new_zeros(shape[0], core.shape[1], shape[-1])
        full[: len(core), :, : core.shape[2]] = core
        made.append(full.reshape(shape).to(given.dtype))
    return made


def _above_rounding(values: Tensor) -> Tensor:
    """Singular values that are not zero to rounding."""
    return values[values > 32 * len(values) * torch.finfo(values.dtype).eps * values[0]]
