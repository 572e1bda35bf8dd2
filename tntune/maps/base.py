"""WeightMap: a pure function from trainable factors to the two adapter matrices of one or many layers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import ModeError, SpecError

__all__ = ["Factors", "Shape", "Shapes", "Tensors", "WeightMap", "finite", "positive", "positives"]

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Tensors = Mapping[str, Tensor]


class Factors(NamedTuple):
    """The two matrices of ``y = base(x) + scale * up σ(down x)``, batched over sites.

    Attributes:
        down: ``(sites, width, in_features)``.
        up: ``(sites, out_features, width)``.

    Example:
        >>> down, up = Factors(torch.ones(1, 2, 5), torch.ones(1, 3, 2))
        >>> (up @ down).shape
        torch.Size([1, 3, 5])
    """

    down: Tensor
    up: Tensor


class WeightMap(ABC):
    """A pure, differentiable map: ``factors(params, fixed)`` depends on its arguments alone.

    A map is a value (its finals are frozen dataclasses) that knows shapes and formulas and holds no
    tensors. ``params`` are the trainable tensors, ``fixed`` the others (a latent, a frozen start); both
    are dictionaries with flat names, the names under which checkpoints store them.

    Attributes:
        kind: The name of the class in JSON.
        in_features: Input size D of the adapted layers; the largest, where they differ.
        out_features: Output size Q of the adapted layers, likewise.
        width: Inner size M of the adapter (the rank r of a LoRA), likewise.
    """

    kind: ClassVar[str]
    in_features: int
    out_features: int
    width: int

    @property
    def sites(self) -> int:
        """How many layers a set of params serves."""
        return 1

    @property
    def is_even(self) -> bool:
        """Whether all sites have the same sizes."""
        return True

    def site_sizes(self, site: int) -> tuple[int, int, int]:
        """``(in_features, out_features, width)`` of one site: the map's own, where all sites are even."""
        return self.in_features, self.out_features, self.width

    @property
    def factor_width(self) -> int:
        """The inner size of :meth:`factors`: ``width``, or more where an average over a latent is exact."""
        return self.width

    @property
    @abstractmethod
    def param_shapes(self) -> Shapes:
        """Shape of every trainable tensor by its flat name."""

    @property
    @abstractmethod
    def fixed_shapes(self) -> Shapes:
        """Shape of every tensor that is stored but never trained."""

    @property
    def latent_names(self) -> tuple[str, ...]:
        """Those fixed tensors that are latents: they keep their dtype whatever the params are cast to."""
        return ()

    @property
    def resampled(self) -> tuple[str, ...]:
        """Those latents that are drawn afresh in training."""
        return ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The contractions of one call of :meth:`factors`."""
        return ()

    @property
    def is_generated(self) -> bool:
        """Whether factors are computed, and so worth keeping; not where the params are the factors."""
        return bool(self.plans)

    @abstractmethod
    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fresh ``(params, fixed)`` on the CPU, drawn from ``generator``."""

    @abstractmethod
    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        """The factors of all sites: down ``(sites, factor_width, in)``, up ``(sites, out, factor_width)``."""

    def site_factors(self, params: Tensors, fixed: Tensors, site: int) -> Factors:
        """Down and up of one site, with a leading axis of size 1: ``factors(...)`` at ``site``, unpadded."""
        down, up = self.factors(params, fixed)
        return Factors(down[site : site + 1], up[site : site + 1])

    @abstractmethod
    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` whose factors are the best this map finds for ``down`` and ``up``."""

    @property
    def num_parameters(self) -> int:
        """Entries of all trainable tensors together."""
        return sum(math.prod(shape) for shape in self.param_shapes.values())

    @property
    def tensor_shapes(self) -> Shapes:
        """Shapes of params and fixed together: what a checkpoint of this map holds."""
        return {**self.param_shapes, **self.fixed_shapes}

    def delta(self, params: Tensors, fixed: Tensors) -> Tensor:
        """ΔW of every site for a linear activation and scale 1: ``up @ down``, ``(sites, out, in)``."""
        down, up = self.factors(params, fixed)
        return up @ down

    def check_factors(self, down: Tensor, up: Tensor) -> None:
        """Raise :class:`ModeError` unless down is ``(sites, width, in)`` and up ``(sites, out, width)``."""
        wanted_down = (self.sites, self.width, self.in_features)
        wanted_up = (self.sites, self.out_features, self.width)
        if tuple(down.shape) != wanted_down or tuple(up.shape) != wanted_up:
            raise ModeError(
                f"{self.kind} needs down {wanted_down} and up {wanted_up}, "
                f"not {tuple(down.shape)} and {tuple(up.shape)}"
            )


def positive(name: str, value: object) -> int:
    """``value`` as a positive int; :class:`SpecError` with the name otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{name} must be a positive integer, not {value!r}")
    return value


def positives(name: str, values: object) -> Shape:
    """``values`` as a non-empty tuple of positive ints; :class:`SpecError` with the name otherwise."""
    if not isinstance(values, list | tuple) or not values:
        raise SpecError(f"{name} must be a non-empty list of positive integers, not {values!r}")
    return tuple(positive(f"{name}[{i}]", value) for i, value in enumerate(values))


def finite(name: str, value: object) -> float:
    """``value`` as a float; :class:`SpecError` with the name where it is no finite number."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise SpecError(f"{name} must be a finite number, not {value!r:.80}")
