"""LatentTrain: one tensor train with latent legs, ``w = TT(z; G_1 .. G_K)``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from tensorly.tt_matrix import TTMatrix
from tensorly.tt_tensor import TTTensor
from torch import Tensor

from tntune.contract.equation import equation
from tntune.contract.plan import Plan, plan
from tntune.contract.route import train_routes
from tntune.errors import RankError, SpecError
from tntune.maps.base import Shape, Shapes, Tensors, positives
from tntune.maps.latent import Latent
from tntune.tt.train import compute_dtype, tt_matrix, tt_tensor

__all__ = ["LatentTrain", "check_start", "gather"]

_STARTS = ("zero", "random", "paper", "published")


@dataclass(frozen=True)
class LatentTrain:
    """A train with open modes and latent legs: ``w[m] = Σ z[n] Π_k G_k[n_k, m_k]``.

    Without a latent the cores have three legs ``(r, m, r')``, with one four, ``(r, n, m, r')``. Boundary
    ranks are summed; above 1 they only add parameters, never functions (:func:`tntune.maps.advice`).

    Attributes:
        modes: Open modes m_k.
        ranks: TT-ranks r_0 .. r_K.
        latent: What feeds the latent legs.

    Raises:
        SpecError: Where the latent has another number of modes than the train.
        RankError: Where there is not one rank more than modes.

    Example:
        >>> train = LatentTrain((8, 8, 80), (1, 2, 2, 1), Latent("fixed", (8, 8, 8)))
        >>> train.core_shapes, train.num_parameters
        (((1, 8, 8, 2), (2, 8, 8, 2), (2, 8, 80, 1)), 1664)

    Reference: Qi et al. (arXiv 2506.16456), eqs. 2 and 3.
    """

    kind: ClassVar[str] = "latent_train"

    modes: Shape
    ranks: Shape
    latent: Latent = field(default=Latent())

    def __post_init__(self) -> None:
        object.__setattr__(self, "modes", positives("modes", self.modes))
        object.__setattr__(self, "ranks", positives("ranks", self.ranks))
        if not isinstance(self.latent, Latent):
            raise SpecError(f"latent must be a Latent, not {self.latent!r:.80}")
        if len(self.ranks) != len(self.modes) + 1:
            raise RankError(
                f"{len(self.modes)} modes have {len(self.modes) - 1} bonds between them, and "
                f"{len(self.modes) + 1} ranks with both ends, not {len(self.ranks)}: {self.ranks}"
            )
        if self.latent.mode != "none" and len(self.latent.modes) != len(self.modes):
            raise SpecError(
                f"the latent has {len(self.latent.modes)} modes {self.latent.modes}, "
                f"the train has {len(self.modes)}: {self.modes}"
            )

    @property
    def order(self) -> int:
        """Number of cores."""
        return len(self.modes)

    @property
    def has_latent(self) -> bool:
        """Whether the cores have a latent leg."""
        return self.latent.mode != "none"

    @property
    def core_shapes(self) -> tuple[Shape, ...]:
        """Shape of each core: ``(r, m, r')`` or ``(r, n, m, r')``."""
        inner = zip(self.latent.modes, self.modes, strict=True) if self.has_latent else zip(self.modes)
        return tuple(
            (left, *legs, right)
            for left, legs, right in zip(self.ranks[:-1], inner, self.ranks[1:], strict=True)
        )

    @property
    def num_parameters(self) -> int:
        """Entries of all cores."""
        return sum(math.prod(shape) for shape in self.core_shapes)

    @property
    def num_entries(self) -> int:
        """Entries of w."""
        return math.prod(self.modes)

    def names(self, prefix: str) -> tuple[str, ...]:
        """Flat names of the cores: ``tt_core_0``, ``tt_core_1``, ..."""
        return tuple(f"{prefix}core_{k}" for k in range(self.order))

    def param_shapes(self, prefix: str) -> Shapes:
        """Shapes of the cores by flat name."""
        return dict(zip(self.names(prefix), self.core_shapes, strict=True))

    def fixed_shapes(self, prefix: str) -> Shapes:
        """Shape of the stored latent by flat name, if one is stored."""
        return {f"{prefix}latent": self.latent.modes} if self.latent.stored else {}

    def fixed(self, prefix: str) -> dict[str, Tensor]:
        """The stored latent by flat name, if one is stored."""
        return {f"{prefix}latent": self.latent.draw()} if self.latent.stored else {}

    def tensor_train(self, cores: Sequence[Tensor]) -> TTTensor | TTMatrix:
        """These cores as tensorly's type: a TTTensor, or a TTMatrix (latent, open) where z feeds them.

        Boundary ranks above 1 are summed first, which changes no entry of w.
        """
        ends = list(cores)
        ends[0] = ends[0].sum(0, keepdim=True)
        ends[-1] = ends[-1].sum(-1, keepdim=True)
        return tt_matrix(ends) if self.has_latent else tt_tensor(ends)

    def contraction(self, legs: Sequence[Sequence[tuple[str, int]]], output: Sequence[str]) -> Plan:
        """The plan of w with the mode of each core split into named legs ``(name, size)``.

        A call takes the cores, in order and split likewise, then z where one is stored. Sizes may be less
        than the mode's where only a part of w is wanted. For the mean over z the latent legs stay open,
        in front of ``output``.
        """
        operands, shapes = self.operands(legs)
        latents = [f"latent {k}" for k in range(self.order)]
        lead = latents if self.latent.mode == "mean" else []
        paths = train_routes(self.order, has_z=self.latent.stored)
        return plan(equation(operands, [*lead, *output]), *shapes, paths=paths)

    def operands(
        self, legs: Sequence[Sequence[tuple[str, int]]]
    ) -> tuple[list[list[str]], list[tuple[int, ...]]]:
        """Names and sizes of the axes of each core, split into these legs, and of z where one is stored.

        Bond k is called ``"rank k"`` and the latent leg of core k ``"latent k"``.
        """
        latents = [f"latent {k}" for k in range(self.order)] if self.has_latent else []
        operands, shapes = [], []
        for k, (own, core) in enumerate(zip(legs, self.core_shapes, strict=True)):
            names = (name for name, _ in own)
            operands.append([f"rank {k}", *latents[k : k + 1], *names, f"rank {k + 1}"])
            shapes.append((*core[:-2], *(size for _, size in own), core[-1]))
        if self.latent.stored:
            operands.append(latents)
            shapes.append(self.latent.modes)
        return operands, shapes

    def fed(self, cores: Sequence[Tensor], fixed: Tensors, prefix: str) -> list[Tensor]:
        """What a :meth:`contraction` takes: these cores, and the stored z in their dtype and device."""
        return [*cores, *([fixed[f"{prefix}latent"].to(cores[0])] if self.latent.stored else [])]

    def init_cores(
        self, start: str, variance: float, generator: torch.Generator | None, dtype: torch.dtype
    ) -> list[Tensor]:
        """Random cores on the CPU, by the name of the start.

        ``"zero"``, ``"random"``: normal entries, scaled so that every entry of w has the given variance,
        whatever ranks and latent. ``"paper"``: Xavier-uniform, each core read as a linear map from (bond,
        latent) to (mode, bond). ``"published"``: 0.1 times standard normal, as in the published code.
        """
        draw = torch.float64 if dtype == torch.float64 else torch.float32
        cores = [torch.empty(shape, dtype=draw, device="cpu") for shape in self.core_shapes]
        if start == "paper":
            bounds = [math.sqrt(6 / (math.prod(s[:-2]) + math.prod(s[-2:]))) for s in self.core_shapes]
            drawn = [c.uniform_(-b, b, generator=generator) for c, b in zip(cores, bounds, strict=True)]
        else:
            paths = self.latent.power() * math.prod(self.ranks)
            spread = 0.1 if start == "published" else (variance / paths) ** (0.5 / self.order)
            drawn = [core.normal_(0, spread, generator=generator) for core in cores]
        return [core.to(dtype) for core in drawn]

    def lift(self, train: TTTensor) -> list[Tensor]:
        """Cores that generate exactly ``train``: ranks padded with zeros, the latent undone.

        One entry of z (its largest) is routed through the cores, divided by its value; for the mean over
        z any entry serves. So ``w = train`` whatever z is, as long as it is not zero.

        Raises:
            RankError: Where ``train`` has a rank above ours.
        """
        if any(found > own for found, own in zip(train.rank, self.ranks, strict=True)):
            raise RankError(f"a train of ranks {tuple(train.rank)} does not fit into ranks {self.ranks}")
        index = [0] * self.order
        gain = 1.0
        if self.latent.stored:
            z = self.latent.draw().double()
            flat = int(z.abs().argmax())
            index = [int(i) for i in torch.unravel_index(torch.tensor(flat), z.shape)]
            gain = float(z.flatten()[flat])
        lifted = []
        for core, shape, i in zip(train.factors, self.core_shapes, index, strict=True):
            wide = core.new_zeros(shape)
            target = wide[:, i] if self.has_latent else wide  # (r, m, r')
            target[: core.shape[0], :, : core.shape[2]] = core
            lifted.append(wide)
        lifted[0] = lifted[0] / gain
        return lifted


def check_start(start: str) -> None:
    """Raise :class:`SpecError` unless trains know this start."""
    if start not in _STARTS:
        raise SpecError(f"start must be one of {', '.join(_STARTS)}, not {start!r}")


def gather(cores: Sequence[Tensor]) -> tuple[list[Tensor], torch.dtype]:
    """The cores in the dtype that contractions run in, and their own dtype to return to."""
    own = cores[0].dtype
    wide = compute_dtype(own)
    return [core.to(wide) for core in cores], own
