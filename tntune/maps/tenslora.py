"""TensLoRA: the updates of attention projections as one Tucker or CP tensor over chosen modes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensorly.cp_tensor import CPTensor
from tensorly.tucker_tensor import TuckerTensor
from torch import Tensor

from tntune.errors import SpecError
from tntune.maps.base import Shape, Tensors, positives
from tntune.maps.budget import count_tensor, isoparameter_ranks, isorank_ranks
from tntune.maps.fit import cp_als, hosvd
from tntune.maps.joint import JointMap
from tntune.maps.network import CUT, INDEX, Network, Node, normal, orthonormal
from tntune.maps.stack import Stack, check_heads, check_stack, split_heads

__all__ = ["CONSTRUCTIONS", "TensLoRA", "construction_modes"]

CONSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "Att": ("head",),
    "QKV": ("proj",),
    "Depth": ("layer",),
    "Att_QKV": ("head", "proj"),
    "Att_Depth": ("head", "layer"),
    "QKV_Depth": ("proj", "layer"),
    "Att_QKV_Depth": ("head", "proj", "layer"),
}
"""The published constructions, and the modes that each ties in one tensor."""

_COMPATS = ("none", "tenslora")


def construction_modes(stack: Stack, construction: str, *, heads: int = 1) -> dict[str, int]:
    """The modes of each tensor of a construction, in the published order.

    Args:
        stack: The layers.
        construction: One of :data:`CONSTRUCTIONS`.
        heads: Attention heads, for constructions that tie them.

    Raises:
        SpecError: For an unknown construction, or heads where none are tied.
        ModeError: Where the heads do not divide the features.

    Example:
        >>> construction_modes(Stack(768, 768, layers=12, projections=3), "Att_Depth", heads=12)
        {'in': 768, 'dh': 64, 'head': 12, 'layer': 12}
    """
    check_stack(stack)
    if not isinstance(construction, str) or construction not in CONSTRUCTIONS:
        raise SpecError(f"construction must be one of {', '.join(CONSTRUCTIONS)}, not {construction!r:.80}")
    tied = CONSTRUCTIONS[construction]
    if "head" not in tied and heads != 1:
        raise SpecError(f"construction {construction!r} has no head mode, but heads={heads} was given")
    out = {"dh": split_heads(stack.out_features, heads), "head": heads}
    modes = {"in": stack.in_features, **(out if "head" in tied else {"out": stack.out_features})}
    return modes | {leg: stack.index[leg] for leg in ("proj", "layer") if leg in tied}


@dataclass(frozen=True)
class TensLoRA(JointMap):
    """``ΔW[.., proj, layer] = core x_1 U_in x_2 U_out x_3 U_proj x_4 U_layer``, or the CP of the same modes.

    Modes that the construction does not tie index independent tensors.

    Attributes:
        stack: The layers; projections are Q, K and V in the paper.
        construction: One of :data:`CONSTRUCTIONS`.
        ranks: One for each of :func:`construction_modes` as Tucker, a single one as CP;
            :func:`tntune.maps.isorank_ranks` and :func:`tntune.maps.isoparameter_ranks` choose them. A rank
            above its mode adds parameters, never functions.
        heads: Attention heads, for constructions that tie them.
        form: ``"tucker"`` or ``"cp"``.
        input_heads: Projections whose heads split the input, as attention's output projection does; at the
            start ΔW = 0 there by down.
        compat: ``"none"``: feature h * dh + j is entry j of head h. ``"tenslora"``: the released code's
            j * heads + h, which cuts across heads.
        start: ``"zero"``: orthonormal factors and a zero core (as CP a zero out factor). ``"random"``: a
            standard normal core (as CP an orthonormal factor).

    Raises:
        RankError: Where there are not as many ranks as the form has.
        SpecError, ModeError: Where the fields do not fit together.

    Example:
        >>> stack = Stack(768, 768, layers=12, projections=3)
        >>> TensLoRA(stack, "QKV_Depth", (4, 4, 4, 4)).num_parameters
        6460

    Reference: Marmoret et al. (arXiv 2509.19391). Their CP path does not run; the one here is ours.
    """

    kind: ClassVar[str] = "tenslora"

    stack: Stack
    construction: str
    ranks: Shape
    heads: int = 1
    form: str = "tucker"
    input_heads: Shape = ()
    compat: str = "none"

    def __post_init__(self) -> None:
        modes = self.modes
        object.__setattr__(self, "ranks", positives("ranks", self.ranks))
        object.__setattr__(self, "input_heads", check_heads(self.stack, self.input_heads))
        count_tensor(modes, self.ranks, form=self.form)
        if self.compat not in _COMPATS:
            raise SpecError(f"compat must be one of {', '.join(_COMPATS)}, not {self.compat!r:.80}")
        if "head" not in modes and (self.input_heads or self.compat != "none"):
            raise SpecError(
                f"construction {self.construction!r} has no head mode, "
                f"but input_heads={self.input_heads}, compat={self.compat!r} were given"
            )
        super().__post_init__()

    @classmethod
    def isorank(
        cls, stack: Stack, construction: str, rank: int, *, heads: int = 1, compat: str = "none"
    ) -> "TensLoRA":
        """The Tucker form with this rank on every mode, capped at its size but in the released code's form.

        Example:
            >>> stack = Stack(768, 768, layers=12, projections=3)
            >>> TensLoRA.isorank(stack, "QKV_Depth", 4).ranks
            (4, 4, 3, 4)
        """
        modes = construction_modes(stack, construction, heads=heads)
        ranks = isorank_ranks(modes, rank) if compat == "none" else (rank,) * len(modes)
        return cls(stack, construction, ranks, heads, compat=compat)

    @classmethod
    def isoparameter(
        cls, stack: Stack, construction: str, budget: int, *, heads: int = 1, form: str = "tucker"
    ) -> "TensLoRA":
        """The form with the number of parameters nearest to ``budget``.

        Example:
            >>> stack = Stack(768, 768, layers=12, projections=3)
            >>> TensLoRA.isoparameter(stack, "QKV_Depth", 221_184).num_parameters
            221913
        """
        modes = construction_modes(stack, construction, heads=heads)
        copies = math.prod(n for leg, n in stack.index.items() if leg not in modes)
        ranks = isoparameter_ranks(modes, budget, copies=copies, form=form)
        return cls(stack, construction, ranks, heads, form)

    @property
    def modes(self) -> dict[str, int]:
        """Sizes of the modes of each tensor by name, in the order of the ranks."""
        return construction_modes(self.stack, self.construction, heads=self.heads)

    def tensors(self, params: Tensors) -> tuple[TuckerTensor | CPTensor, ...]:
        """Each tensor over :attr:`modes` as tensorly's type, in the order of layers, then projections."""
        names = [f"tn_{name}" for name in self.modes]
        tucker, lead = self.form == "tucker", len(self._untied)
        flat = {
            name: params[name].reshape(-1, *params[name].shape[lead:])
            for name in (*names, *(["tn_core"] if tucker else []))
        }
        made = []
        for copy in range(len(flat["tn_in"])):
            factors = [flat[name][copy] for name in names]
            weights = flat["tn_core"][copy] if tucker else factors[0].new_ones(self.width)
            made.append((TuckerTensor if tucker else CPTensor)((weights, factors)))
        return tuple(made)

    @property
    def _untied(self) -> tuple[str, ...]:
        return tuple(leg for leg in INDEX if leg not in self.modes)

    @property
    def _out_legs(self) -> tuple[str, ...]:
        if "out" in self.modes:
            return ("out",)
        return ("dh", "head") if self.compat == "tenslora" else ("head", "dh")

    def _network(self) -> Network:
        tucker = self.form == "tucker"
        bonds = {name: CUT if name == "in" or not tucker else f"rank {name}" for name in self.modes}
        ranks = self.ranks if tucker else self.ranks * len(bonds)
        nodes = {f"tn_{name}": Node((*self._untied, name, bond), orthonormal) for name, bond in bonds.items()}
        up = {name: node for name, node in nodes.items() if name != "tn_in"}
        if tucker:
            up["tn_core"] = Node((*self._untied, *bonds.values()), normal(1.0))
        return Network(
            {**self.stack.index, **self.modes, **dict(zip(bonds.values(), ranks, strict=True))},
            down={"tn_in": nodes["tn_in"]},
            up=up,
            in_legs=("in",),
            out_legs=self._out_legs,
            silent="tn_core" if tucker else "tn_out" if "out" in self.modes else "tn_dh",
            turned=self.input_heads,
        )

    def _fit(self, target: Tensor) -> dict[str, Tensor]:
        """HOSVD (exact at full ranks, else within the root of the number of modes of the best) or CP-ALS."""
        split = target.reshape(*target.shape[:-1], *(self.modes[leg] for leg in self._out_legs))
        legs = [*INDEX, "in", *self._out_legs]
        split = split.permute([legs.index(leg) for leg in (*self._untied, *self.modes)])
        lead = split.shape[: len(self._untied)]
        each = [self._fit_one(tensor) for tensor in split.reshape(-1, *split.shape[len(lead) :])]
        return {
            name: torch.stack([nodes[name] for nodes in each]).reshape(*lead, *each[0][name].shape)
            for name in each[0]
        }

    def _fit_one(self, tensor: Tensor) -> dict[str, Tensor]:
        """The nodes of one tensor, its axes the modes."""
        if self.form == "cp":
            return _named(self.modes, cp_als(tensor, self.ranks[0]))
        core, factors = hosvd(tensor, self.ranks)
        return {**_named(self.modes, factors), "tn_core": core}


def _named(modes: Mapping[str, int], factors: list[Tensor]) -> dict[str, Tensor]:
    return {f"tn_{name}": factor for name, factor in zip(modes, factors, strict=True)}
