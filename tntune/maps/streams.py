"""Streams: layers of any shapes, whose factors are rows of one low-rank matrix for each stream."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from tntune.errors import SpecError
from tntune.maps.base import Factors, Shape, Shapes, Tensors, WeightMap, positives
from tntune.maps.latent_train import gather

__all__ = ["Streams"]

_STARTS = ("zero", "random")


@dataclass(frozen=True)
class Streams(WeightMap):
    """``down_s`` and ``up_sᵀ`` are rows of ``coefficientsᵀ basisᵀ`` of the streams that s reads and writes.

    A stream is a space of features that many layers read from or write to, such as the residual stream of a
    transformer. Its train has two cores: a basis of its features, and of every site and side the coefficients
    of as many rows as the site is wide, nothing padded. So sites of different sizes and widths share bases,
    each stream at a rank of its own. Factors of all sites at once end in zeros where a site is smaller than
    the largest.

    Attributes:
        sizes: Features of each stream.
        ranks: Rank of each.
        inputs: Which stream each site reads.
        outputs: Which it writes.
        widths: Inner size of each site.
        start: ``"zero"``: the coefficients of all up are zero. ``"random"``: they are drawn too.
        in_features: The largest number of inputs.
        out_features: The largest number of outputs.
        width: The largest width.

    Raises:
        SpecError: For lists of different lengths, a stream that is not there, or one that no site uses.

    Example:
        >>> map = Streams((6, 9), (2, 3), inputs=(0, 1), outputs=(1, 0), widths=(2, 1))
        >>> map.param_shapes
        {'basis_0': (6, 2), 'coefficients_0': (2, 3), 'basis_1': (9, 3), 'coefficients_1': (3, 3)}
        >>> [map.site_sizes(site) for site in range(2)]
        [(6, 9, 2), (9, 6, 1)]
    """

    kind: ClassVar[str] = "streams"

    sizes: Shape
    ranks: Shape
    inputs: Shape
    outputs: Shape
    widths: Shape
    start: str = "zero"
    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    width: int = field(init=False, repr=False)
    _first: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("sizes", "ranks", "widths"):
            object.__setattr__(self, name, positives(name, getattr(self, name)))
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        if self.start not in _STARTS:
            raise SpecError(f"start must be one of {', '.join(_STARTS)}, not {self.start!r}")
        counts = len(self.widths), len(self.inputs), len(self.outputs)
        used = {*self.inputs, *self.outputs}
        if len(set(counts)) > 1 or len(self.ranks) != len(self.sizes) or len(used) < len(self.sizes):
            raise SpecError(
                f"{len(self.sizes)} streams, each used, need as many ranks, not {len(self.ranks)}, and each "
                f"site a width, an input and an output, not {counts} of them"
            )
        for name, side in (("in_features", self.inputs), ("out_features", self.outputs)):
            object.__setattr__(self, name, max(self.sizes[stream] for stream in side))
        object.__setattr__(self, "width", max(self.widths))
        object.__setattr__(self, "_first", self._places())

    @property
    def sites(self) -> int:
        return len(self.widths)

    @property
    def is_generated(self) -> bool:
        return True

    @property
    def is_even(self) -> bool:
        return len({self.site_sizes(site) for site in range(self.sites)}) == 1

    def site_sizes(self, site: int) -> tuple[int, int, int]:
        return self.sizes[self.inputs[site]], self.sizes[self.outputs[site]], self.widths[site]

    @property
    def param_shapes(self) -> Shapes:
        shapes: Shapes = {}
        for stream, (size, rank) in enumerate(zip(self.sizes, self.ranks, strict=True)):
            shapes[f"basis_{stream}"] = size, rank
            shapes[f"coefficients_{stream}"] = rank, self._count(stream)
        return shapes

    @property
    def fixed_shapes(self) -> Shapes:
        return {}

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normal bases and coefficients, so that down has the variance 1 / (3 D) of a LoRA's."""
        draw = torch.float64 if dtype == torch.float64 else torch.float32
        params = {}
        for name, shape in self.param_shapes.items():
            spread = 1 / math.sqrt(3 * shape[0] if name.startswith("basis") else shape[0])
            params[name] = torch.empty(shape, dtype=draw, device="cpu").normal_(
                0, spread, generator=generator
            )
        if self.start == "zero":
            for site in range(self.sites):
                self.coefficients_of(params, site)[1].zero_()
        return {name: value.to(dtype) for name, value in params.items()}, {}

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        wide, own = self._gather(params)
        rows = [wide[f"coefficients_{k}"].mT @ wide[f"basis_{k}"].mT for k in range(len(self.sizes))]
        down = torch.stack([self._padded(rows, site, 0, self.in_features) for site in range(self.sites)])
        up = torch.stack([self._padded(rows, site, 1, self.out_features) for site in range(self.sites)])
        return Factors(down.to(own), up.mT.to(own))

    def site_factors(self, params: Tensors, fixed: Tensors, site: int) -> Factors:
        """One site's factors at their own size; the others are not generated."""
        wide, own = self._gather(params)
        inputs, outputs = self.coefficients_of(wide, site)
        down = inputs.mT @ wide[f"basis_{self.inputs[site]}"].mT
        up = wide[f"basis_{self.outputs[site]}"] @ outputs
        return Factors(down[None].to(own), up[None].to(own))

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` by one SVD for each stream: the best of its rank for all its rows.

        Entries beyond a site's own sizes are not read.
        """
        self.check_factors(down, up)
        params = {}
        for stream, (size, rank) in enumerate(zip(self.sizes, self.ranks, strict=True)):
            sides = [
                side[site, : self.widths[site], :size]
                for site in range(self.sites)
                for side, own in ((down, self.inputs), (up.mT, self.outputs))
                if own[site] == stream
            ]
            left, values, right = torch.linalg.svd(torch.cat(sides).double(), full_matrices=False)
            missing = (0, max(0, rank - len(values)))
            params[f"basis_{stream}"] = pad(right[:rank].mT, missing).to(down.dtype)
            coefficients = pad(left[:, :rank] * values[:rank], missing)
            params[f"coefficients_{stream}"] = coefficients.mT.contiguous().to(down.dtype)
        return {name: params[name].contiguous() for name in self.param_shapes}, {}

    def _checked(self, name: str, values: object) -> Shape:
        """Indexes of streams."""
        known = range(len(self.sizes))
        if isinstance(values, list | tuple) and all(type(one) is int and one in known for one in values):
            return tuple(values)
        raise SpecError(f"{name} must be a list of streams below {len(known)}, not {values!r:.80}")

    def _count(self, stream: int) -> int:
        """Rows of all sites and sides in a stream."""
        sides = zip(self.inputs, self.outputs, self.widths, strict=True)
        return sum(width * ((i == stream) + (o == stream)) for i, o, width in sides)

    def _places(self) -> tuple[tuple[int, int], ...]:
        """Of each site the first row of its down and of its up among those of their streams."""
        filled = [0] * len(self.sizes)
        places = []
        for i, o, width in zip(self.inputs, self.outputs, self.widths, strict=True):
            first = filled[i]
            filled[i] += width
            places.append((first, filled[o]))
            filled[o] += width
        return tuple(places)

    def _gather(self, params: Tensors) -> tuple[dict[str, Tensor], torch.dtype]:
        """The cores in the dtype that contractions run in, and their own dtype."""
        wide, own = gather([params[name] for name in self.param_shapes])
        return dict(zip(self.param_shapes, wide, strict=True)), own

    def coefficients_of(self, params: Tensors, site: int) -> tuple[Tensor, Tensor]:
        """The coefficients ``(r, w)`` of a site's down and up."""
        (first, second), width = self._first[site], self.widths[site]
        inputs, outputs = (params[f"coefficients_{own[site]}"] for own in (self.inputs, self.outputs))
        return inputs.narrow(1, first, width), outputs.narrow(1, second, width)

    def _padded(self, rows: list[Tensor], site: int, side: int, size: int) -> Tensor:
        """The rows of one side of a site, with zeros up to the largest width and to ``size`` features."""
        stream, width = (self.inputs, self.outputs)[side][site], self.widths[site]
        own = rows[stream].narrow(0, self._first[site][side], width)
        return pad(own, (0, size - self.sizes[stream], 0, self.width - width))
