"""Candidate: one way to store a whole adapter, and the layers that it is a candidate for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tntune.checkpoint.lora import LoraFolder
from tntune.convert.encode import stored
from tntune.convert.gauge import Balanced, balance
from tntune.convert.joint_train import JOINT_LAYOUT, JointTrain
from tntune.convert.norm import LayerNorm, Norm
from tntune.errors import NumericalError
from tntune.maps.base import Factors
from tntune.maps.group import Group
from tntune.maps.layout import Joined
from tntune.maps.lora import LoRA
from tntune.maps.member import Member
from tntune.maps.tensorguide import TensorGuide

__all__ = ["Candidate", "Layers", "evened", "joint_piece", "truncated_piece"]

Piece = tuple[Group, dict[str, Tensor]]
"""A map, the modules that it serves, and its tensors in the dtype of the checkpoint."""


@dataclass(frozen=True)
class Layers:
    """The trained layers of a LoRA folder in memory: one that is zero costs nothing and is left out.

    Attributes:
        balanced: Balanced factors of each layer's ΔW, float64.
        widths: Rank r of each layer's LoRA.
        dtype: Dtype to store.
        families: Names of those that may share a train, by layer; all others form one family.

    Example:
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> layers.shape("fc"), layers.size("fc")
        ((3, 5), 8)
    """

    balanced: Mapping[str, Balanced]
    widths: Mapping[str, int]
    dtype: torch.dtype
    families: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: LoraFolder, dtype: torch.dtype | None = None) -> "Layers":
        """All layers of a folder; NumericalError where every ΔW is zero."""
        balanced, widths = {}, {}
        for site in folder.sites:
            found = balance(*folder.load(site))
            if found.norm > 0:
                balanced[site.name], widths[site.name] = found, site.width
        if not balanced:
            raise NumericalError(f"{folder.path}: every ΔW is zero: this adapter was never trained")
        widest = max((site.dtype for site in folder.sites), key=lambda each: torch.finfo(each).bits)
        return cls(balanced, widths, dtype or widest)

    def shape(self, name: str) -> tuple[int, int]:
        """``(out, in)``."""
        down, up, _ = self.balanced[name]
        return up.shape[0], down.shape[1]

    def size(self, name: str) -> int:
        """Parameters of one rank of a LoRA."""
        return sum(self.shape(name))

    def factors(self, name: str) -> Factors:
        """Down and up of one layer."""
        return Factors(*self.balanced[name][:2])

    def norms(self, norm: Norm) -> dict[str, LayerNorm]:
        """The norm of each layer."""
        return {name: norm.layer(name, self.shape(name)) for name in self.balanced}

    def groups(self) -> list[tuple[str, ...]]:
        """The layers of each shape and family."""
        found: dict[tuple[str, tuple[int, int]], list[str]] = {}
        for name in self.balanced:
            found.setdefault((self.families.get(name, ""), self.shape(name)), []).append(name)
        return [tuple(names) for names in found.values()]


@dataclass(frozen=True)
class Candidate:
    """One way to store a whole adapter; layers in no piece are dropped.

    Attributes:
        name: How reports call it.
        pieces: Each map with the modules that it serves.

    Example:
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> candidate = Candidate("svd", (truncated_piece(layers, "fc", layers.balanced["fc"], 1),))
        >>> candidate.params, list(candidate.factors())
        (8, ['fc'])
    """

    name: str
    pieces: tuple[Piece, ...]

    @property
    def params(self) -> int:
        """Trainable entries of all maps."""
        return sum(group.map.num_parameters for group, _ in self.pieces)

    @property
    def joint(self) -> bool:
        """Whether a map serves several modules."""
        return any(group.map.sites > 1 for group, _ in self.pieces)

    @property
    def kind(self) -> str:
        """What made it, without its settings: the name up to the first comma."""
        return self.name.partition(",")[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers in any piece."""
        return tuple(name for group, _ in self.pieces for name in group.modules)

    def scaled(self, gains: Mapping[str, float]) -> "Candidate":
        """Each ΔW times its gain: an export has it in ``up``, at no parameter."""
        pieces, used = [], []
        for group, tensors in self.pieces:
            own = [gains[name] for name in group.modules]
            scales = tuple(gain * scale for gain, scale in zip(own, group.scales, strict=True))
            pieces.append((replace(group, scales=scales), tensors))
            used += own
        span = dict.fromkeys(f"{gain:.3g}" for gain in (min(used), max(used)))
        return Candidate(f"{self.name}, times {' to '.join(span)}", tuple(pieces))

    def factors(self) -> dict[str, Factors]:
        """Down and up of each module as stored, contracted in float64, the scale in up."""
        return dict(self._generated())

    def squared_errors(self, layers: Layers, norms: Mapping[str, LayerNorm]) -> dict[str, float]:
        """Squared error of each layer in the norm; one layer at a time is contracted."""
        found = {
            name: norms[name].squared_distance(layers.factors(name), own) for name, own in self._generated()
        }
        dropped = layers.balanced.keys() - found.keys()
        found |= {name: norms[name].squared(layers.factors(name)) for name in dropped}
        return {name: found[name] for name in layers.balanced}

    def _generated(self) -> Iterator[tuple[str, Factors]]:
        """Modules with their factors, each contracted when it is its turn."""
        for group, tensors in self.pieces:
            wide = {name: value.double() for name, value in tensors.items()}
            for index, (name, scale) in enumerate(zip(group.modules, group.scales, strict=True)):
                down, up = Member(group.map, index).factors(wide, wide)
                yield name, Factors(down[0], scale * up[0])


def truncated_piece(layers: Layers, name: str, balanced: Balanced, rank: int) -> Piece:
    """The leading ``rank`` of balanced factors as a plain LoRA.

    Example:
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> group, tensors = truncated_piece(layers, "fc", layers.balanced["fc"], 1)
        >>> group.modules, sorted(tensors)
        (('fc',), ['lora_down', 'lora_up'])
    """
    outside, inside = layers.shape(name)
    down, up = evened(balanced.down[:rank].mT, balanced.up[:, :rank], layers.dtype)
    tensors = {"lora_down": down.mT, "lora_up": up}
    group = Group(LoRA(inside, outside, rank, "random"), (name,), (1.0,))
    return group, {flat: stored(value, layers.dtype) for flat, value in tensors.items()}


def evened(down: Tensor, up: Tensor, dtype: torch.dtype) -> Factors:
    """``down upᵀ`` by columns that are as long on both sides, for float16; else as they are.

    Factors that are balanced in a task norm may be far apart in size, and float16 has few powers of two.

    Args:
        down: ``(..., in, r)``.
        up: ``(..., out, r)``.
        dtype: Dtype to store.

    Example:
        >>> down, up = evened(torch.full((4, 1), 1e-6), torch.full((4, 1), 1e6), torch.float16)
        >>> torch.allclose(down, up) and torch.allclose(up, torch.ones(4, 1))
        True
    """
    if dtype != torch.float16:
        return Factors(down, up)
    sizes = torch.stack([down.norm(dim=-2), up.norm(dim=-2)])
    ratio = (sizes[1] / sizes[0]).sqrt()[..., None, :]
    ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
    return Factors(down * ratio, up / ratio)


def joint_piece(layers: Layers, names: tuple[str, ...], train: JointTrain) -> Piece:
    """A fitted train as the map of its layers.

    Example:
        >>> balanced = balance(torch.eye(2, 5), torch.eye(3, 2))
        >>> layers = Layers({"a": balanced, "b": balanced}, {"a": 2, "b": 2}, torch.float32)
        >>> train = JointTrain(torch.ones(5, 2), torch.ones(3, 2), torch.ones(2, 2, 1), torch.ones(2, 2, 1))
        >>> joint_piece(layers, ("a", "b"), train)[0].map.ranks
        (1, 2, 1)
    """
    outside, inside = layers.shape(names[0])
    rank, width = train.down.shape[1:]
    layout = Joined(JOINT_LAYOUT, (inside + outside, len(names), 2, width))
    map = TensorGuide(inside, outside, width, layout, (1, rank, 1), start="random")
    down, up = evened(train.down, train.up, layers.dtype)
    cores = (stored(core, layers.dtype) for core in train._replace(down=down, up=up).cores())
    return Group(map, names, (1.0,) * len(names)), dict(zip(map.param_shapes, cores, strict=True))
