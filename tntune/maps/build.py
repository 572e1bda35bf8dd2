"""build_map: a map of a named method for given sizes, with modes and ranks chosen for it."""

from collections.abc import Sequence

from tntune.errors import SpecError
from tntune.maps.base import Shape, WeightMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain
from tntune.maps.layout import Concat, Geometry, Joined, Layout
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.modes import exact_modes
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA
from tntune.tt.rank_rule import RankRule

__all__ = [
    "CONCAT",
    "DEFAULT_LAYOUT",
    "DEFAULT_RANK",
    "LAYER_METHODS",
    "SHARED_LAYOUT",
    "build_map",
    "capped_ranks",
    "make_latent",
    "make_layout",
    "shared_layout",
]

LAYER_METHODS = ("tensorguide", "tt_lora", "lora", "loretta", "delta_train")
"""What :func:`build_map` can make: each layer has a map of its own."""

CONCAT = "concat"
DEFAULT_LAYOUT = "f1 f2 (side w)"
"""Both sides at the width: the zero start leaves a whole core with a gradient, not a side's two numbers."""
SHARED_LAYOUT = "layer proj f1 f2 (side w)"
DEFAULT_RANK = 8
_CONCAT_ORDER = 4
_LONG_ORDER = 4  # of LoRETTA's trains
_DIGITS = 3  # of each feature index of a DeltaTrain


def build_map(
    method: str,
    geometry: Geometry,
    *,
    rank: int | None = None,
    layout: str | None = None,
    latent: str = "none",
    seed: int = 0,
    start: str = "zero",
) -> WeightMap:
    """A map of this method and these sizes; whatever is not given is chosen, and :func:`repr` shows it.

    Args:
        method: One of :data:`LAYER_METHODS`.
        geometry: ``(in_features, out_features, width)``; the width of a DeltaTrain is its bond between input
            and output, and lowered to what the modes allow.
        rank: Upper bound of every (other) TT-rank, by default 8.
        layout: ``"concat"`` or a joined pattern, by default ``"f1 f2 (side w)"``; TensorGuide only.
        latent: Mode of the latent; latent legs have size 2 at inner cores and 1 at the ends.
        seed: Seed of the latent, where there is one.
        start: How the map starts.

    Raises:
        SpecError: For an unknown method, or an option that the method does not have.
        RankError: For a rank below 1.

    Example:
        >>> guide = build_map("tensorguide", Geometry(768, 768, 8), rank=4)
        >>> guide.layout.modes, guide.ranks, guide.num_parameters
        ((32, 24, 16), (1, 4, 4, 1), 576)
    """
    cap = DEFAULT_RANK if rank is None else rank
    if method == "tensorguide":
        chosen = make_layout(DEFAULT_LAYOUT if layout is None else layout, geometry)
        ranks = capped_ranks(chosen.modes, cap)
        return TensorGuide(*geometry, chosen, ranks, make_latent(latent, len(chosen.modes), seed), start)
    if layout is not None:
        raise SpecError(f"method {method!r} has no layout, but {layout!r} was given")
    if method == "tt_lora":
        modes = (*exact_modes(geometry.in_features, 2), geometry.width)
        down = _train(modes, cap, latent, 2 * seed)
        up = _train((geometry.width, *exact_modes(geometry.out_features, 2)), cap, latent, 2 * seed + 1)
        return TTLoRA(*geometry, down, up, start)
    if method == "lora":
        if rank is not None or latent != "none":
            given = f"rank={rank}" if rank is not None else f"latent={latent!r}"
            raise SpecError(f"method 'lora' has neither TT-rank nor latent, but {given}; its size is width")
        return LoRA(*geometry, start)
    if method not in LAYER_METHODS:
        raise SpecError(f"method must be one of {', '.join(LAYER_METHODS)}, not {method!r:.80}")
    if latent != "none":
        raise SpecError(f"method {method!r} has no latent, but {latent!r} was given")
    return _loretta(geometry, cap, start) if method == "loretta" else _delta_train(geometry, cap, start)


def make_layout(pattern: str, geometry: Geometry) -> Layout:
    """``"concat"`` or a joined pattern, with modes chosen for these sizes.

    Example:
        >>> make_layout("concat", Geometry(512, 2, 1024))
        Concat(sizes=(257, 16, 16, 8))
    """
    if pattern == CONCAT:
        entries = geometry.width * (geometry.in_features + geometry.out_features)
        return Concat(exact_modes(entries, _CONCAT_ORDER))
    return Joined.auto(pattern, geometry)


def capped_ranks(modes: Sequence[int], rank: int) -> Shape:
    """All K + 1 ranks: ``rank`` inside, lowered to what the modes allow, 1 at both ends.

    Example:
        >>> capped_ranks((2, 24, 16, 8), 10)
        (1, 2, 10, 8, 1)
    """
    return (1, *RankRule(max_rank=rank).caps(modes), 1)


def shared_layout(layers: int, projections: int) -> str:
    """The layout of a TensorGuide for many layers, without legs of size 1: those would only scale others.

    Example:
        >>> shared_layout(12, 1)
        'layer f1 f2 (side w)'
    """
    sizes = {"layer": layers, "proj": projections}
    return " ".join(leg for leg in SHARED_LAYOUT.split(" ") if sizes.get(leg) != 1)


def _loretta(geometry: Geometry, rank: int, start: str) -> LoRETTA:
    """Modes of four for each factor, at the rank or the largest that any bond allows."""
    sizes = (geometry.width * features for features in geometry[:2])
    down, up = (exact_modes(size, _LONG_ORDER) for size in sizes)
    allowed = max(*capped_ranks(down, rank), *capped_ranks(up, rank))
    return LoRETTA(*geometry, down, up, allowed, start)


def _delta_train(geometry: Geometry, rank: int, start: str) -> DeltaTrain:
    """Digits of three for input and output, the finest in the middle, as published."""
    modes = exact_modes(geometry.in_features, _DIGITS), exact_modes(geometry.out_features, _DIGITS)[::-1]
    joint = (*modes[0], *modes[1])
    ranks, widths = capped_ranks(joint, rank), capped_ranks(joint, geometry.width)
    return DeltaTrain(*modes, (*ranks[:_DIGITS], widths[_DIGITS], *ranks[_DIGITS + 1 :]), start=start)


def _train(modes: Shape, rank: int, latent: str, seed: int) -> LatentTrain:
    return LatentTrain(modes, capped_ranks(modes, rank), make_latent(latent, len(modes), seed))


def make_latent(mode: str, order: int, seed: int) -> Latent:
    """A latent for a train of this order: legs of size 2 at inner cores and 1 at the ends.

    Example:
        >>> make_latent("fixed", 4, 0).modes
        (1, 2, 2, 1)
    """
    if mode == "none":
        return Latent()
    sizes = (1, *[2] * (order - 2), 1) if order > 2 else (2,) * order
    return Latent(mode, sizes, seed)
