"""advice: what a map spends without gain, by name and with numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tntune.maps.activation import activation as activation_named
from tntune.maps.base import WeightMap
from tntune.maps.latent_train import LatentTrain
from tntune.maps.layout import Concat, Joined
from tntune.maps.pattern import digits
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA
from tntune.tt.rank_rule import RankRule

__all__ = ["Advice", "advice"]

_PADDING = 0.2  # share of padded entries that is worth a word


@dataclass(frozen=True)
class Advice:
    """One thing that a map spends without gain.

    Attributes:
        label: ``"rank"``: a TT-rank above what its neighbours and modes carry. ``"lift"``: a TT-rank that a
            fixed latent lifts above what the open modes carry. ``"boundary"``: a boundary rank above 1.
            ``"size"``: more parameters than the layer itself. ``"width"``: a width above the rank that ΔW
            can have. ``"padding"``: a layout of which more than a fifth is padding.
        message: What is wrong, with its numbers, and what would be right.

    Example:
        >>> Advice("rank", "rank r_1 = 8 can be lowered to 2 without loss").label
        'rank'
    """

    label: str
    message: str


def advice(map: WeightMap, *, activation: str = "identity") -> tuple[Advice, ...]:
    """Whatever in ``map`` can be had for less: an empty tuple where nothing is wasted.

    Nothing here is an error: every map computes what it says. All is derived from shapes, in O(K).

    Args:
        map: Any map.
        activation: Name of σ; a width above the rank of ΔW is a waste for a linear one only.

    Raises:
        SpecError: For an unknown activation.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> [(found.label, found.message) for found in advice(LoRA(512, 2, 2))]
        [('size', '1,028 parameters serve 1 layer of 512 x 2 = 1,024 weights')]

    Reference: Qi et al. (arXiv 2506.16456) run configurations of every label but ``"padding"``.
    """
    found = [item for name, train in _trains(map) for item in _train_advice(name, train)]
    found += [*_size(map), *_padding(map)]
    if activation_named(activation).linear:
        found += _width(map)
    return tuple(found)


def _trains(map: WeightMap) -> tuple[tuple[str, LatentTrain], ...]:
    """The trains of a map and how to call them."""
    if isinstance(map, TensorGuide):
        return (("", map.train),)
    if isinstance(map, TTLoRA):
        return (("down: ", map.down_train), ("up: ", map.up_train))
    return ()


def _train_advice(name: str, train: LatentTrain) -> Iterator[Advice]:
    inner = train.ranks[1:-1]
    sizes = [math.prod(shape[1:-1]) for shape in train.core_shapes]  # n_k m_k
    useful = RankRule(ranks=inner).caps(sizes)
    for k, (rank, least) in enumerate(zip(inner, useful, strict=True), 1):
        if rank > least:
            yield Advice("rank", f"{name}rank r_{k} = {rank} can be lowered to {least} without loss")
        cap = min(math.prod(train.modes[:k]), math.prod(train.modes[k:]))
        lifted = _reached_rank(train, k)
        if train.latent.mode == "fixed" and lifted > max(cap, rank):
            yield Advice(
                "lift",
                f"{name}rank r_{k} = {rank} is lifted to {lifted} by the latent, but the modes "
                f"{train.modes[:k]} | {train.modes[k:]} carry {cap}",
            )
    dead = train.num_parameters - replace(train, ranks=(1, *inner, 1)).num_parameters
    if dead:
        ends = f"{train.ranks[0]} and {train.ranks[-1]}"
        yield Advice("boundary", f"{name}boundary ranks {ends} are summed; {dead:,} parameters are dead")


def _reached_rank(train: LatentTrain, k: int) -> int:
    """Rank of w's unfolding at bond k for a generic z, as far as the cores alone limit it; 1 at the ends."""
    if not 0 < k < train.order:
        return 1
    if not train.latent.stored:
        return train.ranks[k]
    return train.ranks[k] * min(math.prod(train.latent.modes[:k]), math.prod(train.latent.modes[k:]))


def _size(map: WeightMap) -> Iterator[Advice]:
    own = map.sites * map.in_features * map.out_features
    if map.num_parameters > own:
        layers = f"{map.sites} layer{'s' if map.sites > 1 else ''}"
        yield Advice(
            "size",
            f"{map.num_parameters:,} parameters serve {layers} of "
            f"{map.in_features:,} x {map.out_features:,} = {own:,} weights",
        )


def _padding(map: WeightMap) -> Iterator[Advice]:
    if not isinstance(map, TensorGuide) or not isinstance(map.layout, Joined):
        return
    layout = map.layout
    held = layout.span(layout.family) * layout.legs.get("side", 1)
    share = 1 - (map.in_features + map.out_features) / held
    if share > _PADDING:
        yield Advice(
            "padding",
            f"{share:.0%} of layout {layout.pattern!r} is padding: it has room for {held:,} features, of "
            f"which {map.in_features:,} + {map.out_features:,} are used; an io layout pads least",
        )


def _width(map: WeightMap) -> Iterator[Advice]:
    bound = min(map.in_features, map.out_features, _factor_rank(map))
    if map.width > bound:
        yield Advice(
            "width",
            f"width {map.width:,} is above {bound:,}, the largest rank that ΔW can have here under a "
            "linear activation; a nonlinear one would use it",
        )


def _factor_rank(map: WeightMap) -> int:
    """A bound on the rank of down and up by the bonds between features and width, summed over a mean's z."""
    if isinstance(map, TTLoRA):
        down = _matrix_rank(map.down_train, map.width)
        return min(down, _matrix_rank(map.up_train, map.out_features))
    if not isinstance(map, TensorGuide):
        return map.width
    copies = map.factor_width // map.width
    if isinstance(map.layout, Concat):
        return copies * _matrix_rank(map.train, map.width)
    if isinstance(map.layout, Joined):
        return copies * min(_separating_ranks(map.layout, map.train), default=map.width)
    return map.width


def _matrix_rank(train: LatentTrain, columns: int) -> int:
    """A bound on the rank of a matrix of so many columns that lies row-major at the head of the train.

    The last modes, t entries together, sit behind a bond of rank e. Where t divides the columns, or they
    divide t, the matrix is a sum of e blocks, and its rank at most e times the quotient.
    """
    bounds = [columns]
    for k in range(train.order):
        tail = math.prod(train.modes[k:])
        if max(tail, columns) % min(tail, columns) == 0:
            bounds.append(_reached_rank(train, k) * max(tail, columns) // min(tail, columns))
    return min(bounds)


def _separating_ranks(layout: Joined, train: LatentTrain) -> Iterator[int]:
    """Ranks at the bonds with all features on one side and all of the width on the other."""
    families = {name: family for family in ("w", layout.family) for name in digits(layout.legs, family)}
    sides = [{families[name] for name in group if name in families} for group in layout.groups]
    for k in range(1, train.order):
        left, right = set().union(*sides[:k]), set().union(*sides[k:])
        if len(left) == len(right) == 1 and left != right:
            yield _reached_rank(train, k)
