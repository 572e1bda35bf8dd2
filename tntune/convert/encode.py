"""DeltaEncoder: one layer's ΔW as trains of any layout, or as truncated factors."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tntune.convert.gauge import Balanced, delta_distance
from tntune.convert.option import Encoded, Encoder, Option, linear_factors
from tntune.errors import DtypeError, NumericalError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.maps.build import make_layout
from tntune.maps.layout import Geometry, Joined
from tntune.maps.lora import LoRA
from tntune.maps.site import Site
from tntune.maps.tensorguide import TensorGuide
from tntune.tt.decompose import tt_svd
from tntune.tt.linalg import r_factor
from tntune.tt.rank_rule import RankRule, ShrinkStep, shrink_path
from tntune.tt.rounding import Rounding
from tntune.tt.train import cores

__all__ = ["DEFAULT_LAYOUTS", "DeltaEncoder", "check_stored", "stored"]

DEFAULT_LAYOUTS = ("io w", "side w f1 f2")
_STORED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNCHANGED = 1e-13  # relative distance that is rounding of the measurement


class DeltaEncoder(Encoder):
    """All encodings of one ΔW, given by its balanced factors.

    Args:
        balanced: The layer's factors.
        dtype: Dtype to store.
        activation: σ of the adapter to make; a nonlinear σ needs :func:`tntune.convert.lift`'s condition.
        original: The layer as it is, which :meth:`kept` offers.

    Example:
        >>> from tntune.convert.gauge import balance
        >>> encoder = DeltaEncoder(balance(torch.eye(2, 5), torch.eye(4, 2)), torch.float32)
        >>> [(option.params, round(option.squared_error, 6)) for option in encoder.truncations()]
        [(9, 1.0), (18, 0.0)]
    """

    def __init__(
        self,
        balanced: Balanced,
        dtype: torch.dtype,
        activation: str = "identity",
        *,
        original: Encoded | None = None,
    ) -> None:
        self.balanced = balanced
        self.dtype = dtype
        self.activation = activation
        self.original = original
        self._trains: dict[str, Rounding] = {}
        self._paths: dict[str, list[ShrinkStep]] = {}

    @property
    def norm(self) -> float:
        return self.balanced.norm

    def dropped(self) -> Option:
        """ΔW = 0, at no cost."""
        return Option("dropped", "", (), 0, self.balanced.norm**2)

    def kept(self) -> Option:
        """The layer as it is; :class:`UnsupportedError` where none was given."""
        if self.original is None:
            raise UnsupportedError("this encoder was made without an original to keep")
        option = self._measured(Option("kept", "", (self.original.site.map.width,), 0, 0.0))
        unchanged = option.squared_error <= (_UNCHANGED * self.norm) ** 2
        return replace(option, squared_error=0.0) if unchanged else option

    def truncations(self) -> Iterator[Option]:
        """The SVD truncations of every rank, as plain LoRA factors."""
        for rank in range(1, len(self.balanced.values) + 1):
            yield self._measured(Option("svd", "", (rank,), 0, 0.0))

    def at(self, layout: str, ranks: Sequence[int]) -> Option:
        return self._measured(Option("tensorguide", layout, (1, *ranks, 1), 0, 0.0))

    def path(self, layout: str) -> list[ShrinkStep]:
        if layout not in self._paths:
            train = self._train(layout)
            self._paths[layout] = shrink_path(train.spectra(), train.sizes)
        return self._paths[layout]

    def encode(self, option: Option) -> Encoded:
        if option.method == "kept" and self.original is not None:
            return self.original
        if option.method == "svd":
            return self._truncated(option.ranks[0])
        return self._guided(option)

    def _measured(self, option: Option) -> Option:
        encoded = self.encode(option)
        own = Factors(self.balanced.down, self.balanced.up)
        error = delta_distance(own, linear_factors(encoded))
        return replace(option, params=encoded.site.map.num_parameters, squared_error=error**2)

    def _truncated(self, rank: int) -> Encoded:
        if not activation(self.activation).linear:
            raise UnsupportedError(f"truncated factors stay linear; encode {self.activation!r} as a train")
        down, up = self.balanced.down[:rank], self.balanced.up[:, :rank]
        map = LoRA(down.shape[1], up.shape[0], rank, "random")
        tensors = {"lora_down": down, "lora_up": up}
        return Encoded(Site(map), {name: stored(value, self.dtype) for name, value in tensors.items()})

    def _guided(self, option: Option) -> Encoded:
        """The train rounded to the option's ranks, its width no larger than the bond that feeds it."""
        rounded = cores(self._train(option.layout)(RankRule(ranks=option.ranks)).value)
        layout = self._layout(option.layout)
        sizes = list(layout.sizes)
        if option.layout.endswith(" w") and rounded[-1].shape[0] < sizes[-1]:
            rounded[-1] = _narrowed(rounded[-1])
            sizes[-1] = rounded[-1].shape[1]
        pattern, scale = option.layout, 1.0
        gain = activation(self.activation).odd_gain
        if not activation(self.activation).linear:
            assert gain is not None  # checked by the specification
            pattern, scale = _lifted(option.layout), 1.0 / gain
            sizes.insert(0, 2)
            rounded.insert(0, rounded[0].new_tensor([1.0, -1.0]).reshape(1, 2, 1))
        joined = Joined(pattern, tuple(sizes))
        width = _width(joined)
        ranks = (1, *(core.shape[-1] for core in rounded))
        down, up = self.balanced.down, self.balanced.up
        map = TensorGuide(down.shape[1], up.shape[0], width, joined, ranks, start="random")
        tensors = dict(zip(map.param_shapes, (stored(core, self.dtype) for core in rounded), strict=True))
        return Encoded(Site(map, scale, self.activation), tensors)

    def _layout(self, pattern: str) -> Joined:
        geometry = Geometry(self.balanced.down.shape[1], self.balanced.up.shape[0], len(self.balanced.values))
        layout = make_layout(pattern, geometry)
        if not isinstance(layout, Joined):
            raise UnsupportedError(f"conversion needs a joined layout, not {pattern!r}")
        return layout

    def _train(self, pattern: str) -> Rounding:
        """The exact train of both factors, in this layout, ready to be rounded."""
        if pattern not in self._trains:
            target = self._layout(pattern).write(self.balanced.down[None], self.balanced.up[None])
            self._trains[pattern] = Rounding(tt_svd(target).value)
        return self._trains[pattern]


def check_stored(dtype: torch.dtype | None) -> None:
    """Raise DtypeError where an adapter cannot be stored in that dtype; None is that of the source.

    Example:
        >>> check_stored(torch.int32)
        Traceback (most recent call last):
        tntune.errors.DtypeError: dtype must be one of float16, bfloat16, float32, float64, not torch.int32
    """
    if dtype is not None and dtype not in _STORED:
        names = ", ".join(str(each).removeprefix("torch.") for each in _STORED)
        raise DtypeError(f"dtype must be one of {names}, not {dtype!r}")


def stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The value in the dtype of the checkpoint; NumericalError where it overflows."""
    cast = value.to(dtype).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise NumericalError(
            f"entries up to {float(value.abs().max()):.3g} overflow {dtype}; store bfloat16 or float32"
        )
    return cast


def _narrowed(core: Tensor) -> Tensor:
    """A width core (r, w, 1) as (r, r, 1): an orthogonal change of width, which ΔW does not see."""
    return r_factor(core.squeeze(-1).mT).mT.unsqueeze(-1)


def _lifted(pattern: str) -> str:
    """The pattern with a sign leg in front, as the most significant digit of the width."""
    return "w1 " + re.sub(r"\bw(\d*)\b", lambda match: f"w{int(match[1] or 1) + 1}", pattern)


def _width(layout: Joined) -> int:
    return math.prod(size for name, size in layout.legs.items() if name.startswith("w"))
