"""Option and Encoder: the ways to store one layer, what each costs and how far it is off."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tntune.maps.activation import activation
from tntune.maps.base import Factors, Shape
from tntune.maps.site import Site
from tntune.tt.rank_rule import ShrinkStep

__all__ = ["Encoded", "Encoder", "Option", "factors_of", "linear_factors"]


@dataclass(frozen=True)
class Option:
    """One way to store one layer.

    Attributes:
        method: ``"tensorguide"``, ``"svd"``, ``"kept"`` as it was, or ``"dropped"`` for ΔW = 0.
        layout: Pattern of the train; empty otherwise.
        ranks: TT-ranks, both ends included, or ``(r,)`` of the truncated SVD.
        params: Trainable entries.
        squared_error: ``‖ΔW − ΔW'‖²`` as stored, in the dtype of the checkpoint.

    Example:
        >>> Option("svd", "", (2,), 18, 0.25).params
        18
    """

    method: str
    layout: str
    ranks: Shape
    params: int
    squared_error: float


class Encoded(NamedTuple):
    """A site with its tensors in the dtype of the checkpoint.

    Example:
        >>> from torch import ones
        >>> from tntune.maps.lora import LoRA
        >>> encoded = Encoded(Site(LoRA(5, 3, 1)), {"lora_down": ones(1, 5), "lora_up": ones(3, 1)})
        >>> encoded.site.map.num_parameters
        8
    """

    site: Site
    tensors: dict[str, Tensor]


class Encoder(ABC):
    """All trains that store one layer; an Encoder keeps what it computes, so use one for each layer.

    Example:
        >>> sorted(Encoder.__abstractmethods__)
        ['at', 'encode', 'norm', 'path']
    """

    @property
    @abstractmethod
    def norm(self) -> float:
        """What errors are relative to."""

    @abstractmethod
    def path(self, layout: str) -> list[ShrinkStep]:
        """Rank vectors from exact to all ones, by the singular values of the exact train's bonds."""

    @abstractmethod
    def at(self, layout: str, ranks: Sequence[int]) -> Option:
        """The train of these interior ranks, its error measured."""

    @abstractmethod
    def encode(self, option: Option) -> Encoded:
        """The site and tensors of an option."""


def factors_of(encoded: Encoded) -> Factors:
    """The factors of a site as stored, contracted in float64: down ``(width, in)``, up ``(out, width)``.

    Example:
        >>> from torch import ones
        >>> from tntune.maps.lora import LoRA
        >>> encoded = Encoded(Site(LoRA(5, 3, 1)), {"lora_down": ones(1, 5), "lora_up": ones(3, 1)})
        >>> [tuple(factor.shape) for factor in factors_of(encoded)]
        [(1, 5), (3, 1)]
    """
    wide = {name: value.double() for name, value in encoded.tensors.items()}
    down, up = encoded.site.factors(wide)
    return Factors(down[0], up[0])


def linear_factors(encoded: Encoded) -> Factors:
    """Factors whose product is the linear map that the site computes, scale included.

    For a nonlinear σ the site must be an exact lift (:func:`tntune.convert.lift`), which this undoes.

    Example:
        >>> from torch import ones
        >>> from tntune.maps.lora import LoRA
        >>> site = Site(LoRA(5, 3, 1), scale=0.5)
        >>> down, up = linear_factors(Encoded(site, {"lora_down": ones(1, 5), "lora_up": ones(3, 1)}))
        >>> (up @ down).sum().item()
        7.5
    """
    down, up = factors_of(encoded)
    sigma = activation(encoded.site.activation)
    if not sigma.linear:
        half = down.shape[0] // 2
        down, up = down[:half], up[:, :half] * (sigma.odd_gain or 0.0)
    return Factors(down, up * encoded.site.scale)
