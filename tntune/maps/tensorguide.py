"""TensorGuide: one tensor train generates both matrices of an adapter."""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tntune.contract.plan import Plan
from tntune.errors import SpecError
from tntune.maps.base import Factors, Shape, Shapes, Tensors, WeightMap, positive
from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain, check_start, gather
from tntune.maps.layout import Concat, Geometry, Layout, Selection
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule

__all__ = ["TensorGuide", "sliced"]

Contractions = tuple[tuple[Selection, Plan], ...]


class Plans(NamedTuple):
    """The contractions of both factors and, where a frozen start is subtracted from it, of up alone."""

    both: Contractions
    up: Contractions


@dataclass(frozen=True)
class TensorGuide(WeightMap):
    """``[W1, W2] = TT(z; G_1 .. G_K)``: both factors are read from one train.

    Attributes:
        in_features: D.
        out_features: Q.
        width: M.
        layout: Which entry of the train is which entry of the factors.
        ranks: TT-ranks r_0 .. r_K.
        latent: What feeds the latent legs; by default nothing does.
        start: ``"zero"``: ΔW = 0 at the start with non-zero gradients; the slice of the one core that
            makes up is zeroed, or, where the layout has no such slice, the frozen start is subtracted
            from up. ``"random"``: as ``"zero"`` without that. Both scale the cores so that down has the
            variance 1 / (3 D) of a LoRA's. ``"paper"``: Xavier-uniform cores. ``"published"``: 0.1 randn.
        train: The train that layout, ranks and latent make.
        subtracts_start: Whether the zero start is made by subtracting the frozen start.

    Raises:
        ModeError: Where the layout cannot hold the factors.
        RankError, SpecError: Where ranks, latent and layout do not fit together.

    Example:
        >>> guide = TensorGuide.concat(512, 2, 1024, modes=(16, 8, 257, 16), ranks=(1, 2, 2, 1, 1),
        ...                            latent=Latent("fixed", (1, 2, 2, 1)))
        >>> guide.num_parameters
        1140

    Reference: Qi et al. (arXiv 2506.16456), eq. 3 and Table 1.
    """

    kind: ClassVar[str] = "tensorguide"

    in_features: int
    out_features: int
    width: int
    layout: Layout
    ranks: Shape
    latent: Latent = field(default=Latent())
    start: str = "zero"
    train: LatentTrain = field(init=False, repr=False, compare=False)
    subtracts_start: bool = field(init=False, repr=False, compare=False)
    _plans: Plans = field(init=False, repr=False, compare=False)
    _site_plans: tuple[Plans, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width"):
            positive(name, getattr(self, name))
        if not isinstance(self.layout, Layout) or not isinstance(self.latent, Latent):
            raise SpecError("a TensorGuide needs a layout and a latent")
        check_start(self.start)
        self.layout.check(self.geometry)
        train = LatentTrain(self.layout.modes, self.ranks, self.latent)
        object.__setattr__(self, "train", train)
        object.__setattr__(self, "ranks", train.ranks)
        subtracts = self.start == "zero" and self.layout.up_entries(self.geometry) is None
        object.__setattr__(self, "subtracts_start", subtracts)
        object.__setattr__(self, "_plans", self._plans_of(None))
        sites = range(self.sites) if self.sites > 1 else ()
        object.__setattr__(self, "_site_plans", tuple(self._plans_of(site) for site in sites))

    @classmethod
    def concat(
        cls,
        in_features: int,
        out_features: int,
        width: int,
        *,
        modes: Shape,
        ranks: Shape,
        latent: Latent = Latent(),  # noqa: B008 - a frozen value
        start: str = "zero",
    ) -> "TensorGuide":
        """A TensorGuide in the paper's flat layout."""
        return cls(in_features, out_features, width, Concat(modes), ranks, latent, start)

    @property
    def geometry(self) -> Geometry:
        """``(in_features, out_features, width)``."""
        return Geometry(self.in_features, self.out_features, self.width)

    @property
    def sites(self) -> int:
        return self.layout.sites

    @property
    def factor_width(self) -> int:
        return self.width * (self.latent.size if self.latent.mode == "mean" else 1)

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(plan for _, plan in (*self._plans.both, *self._plans.up))

    @property
    def param_shapes(self) -> Shapes:
        return self.train.param_shapes("tt_")

    @property
    def fixed_shapes(self) -> Shapes:
        start = self.train.param_shapes("tt_start_") if self.subtracts_start else {}
        return {**self.train.fixed_shapes("tt_"), **start}

    @property
    def latent_names(self) -> tuple[str, ...]:
        return tuple(self.train.fixed_shapes("tt_"))

    @property
    def resampled(self) -> tuple[str, ...]:
        return self.latent_names if self.latent.mode == "resample" else ()

    def init(
        self, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cores = self.train.init_cores(self.start, 1 / (3 * self.in_features), generator, dtype)
        if self.start == "zero":
            self._silence_up(cores)
        return self._named(cores, frozen=cores)

    def factors(self, params: Tensors, fixed: Tensors) -> Factors:
        return self._read(self._plans, params, fixed)

    def site_factors(self, params: Tensors, fixed: Tensors, site: int) -> Factors:
        """One site's factors; the others are not generated."""
        return self._read(self._site_plans[site] if self._site_plans else self._plans, params, fixed)

    def from_factors(self, down: Tensor, up: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(params, fixed)`` by TT-SVD of ``(down, up)`` at our ranks; exact where the ranks suffice.

        Padding is filled with zeros, the latent is undone exactly, and a frozen start is set to zero. Cost:
        one TT-SVD of M (D + Q) entries and their padding.
        """
        self.check_factors(down, up)
        target = self.layout.write(down, up)
        cores = self.train.lift(tt_svd(target, RankRule(ranks=self.ranks[1:-1])).value)
        return self._named(cores, frozen=[torch.zeros_like(core) for core in cores])

    def _named(
        self, cores: list[Tensor], frozen: list[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = dict(zip(self.train.names("tt_"), cores, strict=True))
        fixed = self.train.fixed("tt_")
        if self.subtracts_start:
            copies = [core.clone() for core in frozen]
            fixed.update(zip(self.train.names("tt_start_"), copies, strict=True))
        return params, fixed

    def _silence_up(self, cores: list[Tensor]) -> None:
        """Zero, in place, the entries of the one core that make up, where the layout has such a core."""
        found = self.layout.up_entries(self.geometry)
        if found is not None:
            k, entries = found
            cores[k].index_fill_(-2, entries, 0)

    def _plans_of(self, site: int | None) -> Plans:
        """What to generate for all sites, or for one, and how."""
        both = self.layout.selections(self.geometry, site)
        up = self.layout.up_selections(self.geometry, site) if self.subtracts_start else ()
        return Plans(*(tuple((s, self._plan(s)) for s in chosen) for chosen in (both, up)))

    def _plan(self, selection: Selection) -> Plan:
        legs = [[(name, length) for name, _, _, length in mode] for mode in selection.legs]
        return self.train.contraction(legs, selection.output)

    def _read(self, plans: Plans, params: Tensors, fixed: Tensors) -> Factors:
        """The factors that these contractions make, less the frozen start."""
        cores, own = gather([params[name] for name in self.train.names("tt_")])
        down, up = self.layout.read(self._generate(plans.both, cores, fixed), self.geometry)
        if self.subtracts_start:
            names = self.train.names("tt_start_")
            start = [fixed[name].to(core) for name, core in zip(names, cores, strict=True)]
            # both by the same plan, so that they cancel to the last bit at the start
            own_up, start_up = (self._generate(plans.up, each, fixed) for each in (cores, start))
            up = self.layout.read_up(own_up, self.geometry) - self.layout.read_up(start_up, self.geometry)
        if self.latent.mode == "mean":
            # (n, sites, M, D) and (n, sites, Q, M) side by side: (sites, n M, D) and (sites, Q, n M)
            down = down.movedim(0, 1).flatten(1, 2)
            up = up.movedim(0, -2).flatten(-2)
        return Factors(down.to(own), up.to(own))

    def _generate(self, plans: Contractions, cores: list[Tensor], fixed: Tensors) -> tuple[Tensor, ...]:
        """The tensors of these contractions; for the mean over z with its open legs as one in front."""
        lead = (self.latent.size,) if self.latent.mode == "mean" else ()
        parts: list[Tensor] = []
        for selection, run in plans:
            operands = self.train.fed(sliced(cores, selection), fixed, "tt_")
            if selection.cut is not None and not lead:
                parts += run.cut(selection.cut, *operands)
                continue
            made = run(*operands).reshape(lead + selection.shape)
            parts += [made] if selection.cut is None else made.tensor_split((selection.cut,), dim=-1)
        return tuple(parts)


def sliced(cores: list[Tensor], selection: Selection) -> list[Tensor]:
    """Each core with its mode split into legs, and each leg cut to what the selection generates.

    Example:
        >>> (both,) = Concat((4, 3)).selections(Geometry(3, 3, 2))
        >>> [tuple(core.shape) for core in sliced([torch.ones(1, 4, 2), torch.ones(2, 3, 1)], both)]
        [(1, 4, 2), (2, 3, 1)]
    """
    views = []
    for core, legs in zip(cores, selection.legs, strict=True):
        view = core
        if len(legs) > 1:
            view = core.reshape(*core.shape[:-2], *(size for _, size, _, _ in legs), core.shape[-1])
        for axis, (_, size, start, length) in enumerate(legs, core.ndim - 2):
            view = view if length == size else view.narrow(axis, start, length)
        views.append(view)
    return views
