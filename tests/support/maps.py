"""The tables of maps that every contract test runs over, and tensors for them."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tntune.maps import (
    CONSTRUCTIONS,
    DeltaTrain,
    FacT,
    Gated,
    Geometry,
    Joined,
    Latent,
    LatentTrain,
    LoRA,
    LoRETTA,
    LoRTA,
    LoTR,
    MetaTT,
    NormBounded,
    Stack,
    Streams,
    TensLoRA,
    TensorGuide,
    TTLoRA,
    WeightMap,
)
from tntune.tt.rank_rule import RankRule

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def concat(
    *, latent: str = "none", start: str = "zero", ranks: tuple[int, ...] = (1, 2, 3, 2, 1)
) -> TensorGuide:
    """5 -> 3 features at width 3, modes (2, 3, 2, 2) of 24 entries."""
    z = Latent(latent, () if latent == "none" else (1, 2, 3, 2), seed=5)
    return TensorGuide.concat(5, 3, 3, modes=(2, 3, 2, 2), ranks=ranks, latent=z, start=start)


def joined(
    pattern: str,
    sizes: tuple[int, int, int] = (5, 5, 2),
    *,
    latent: str = "none",
    start: str = "zero",
    layers: int = 1,
    projections: int = 1,
) -> TensorGuide:
    """Ranks 2 inside, latent legs of size 2."""
    layout = Joined.auto(pattern, Geometry(*sizes), layers=layers, projections=projections)
    order = len(layout.modes)
    z = Latent(latent, () if latent == "none" else (2,) * order, seed=1)
    return TensorGuide(*sizes, layout, (1, *[2] * (order - 1), 1), z, start)


def tt_lora(*, latent: str = "none", start: str = "zero") -> TTLoRA:
    """6 -> 4 features at width 2."""
    first = Latent(latent, () if latent == "none" else (2, 1, 2))
    second = Latent(latent, () if latent == "none" else (2, 3), seed=1)
    down, up = LatentTrain((2, 3, 2), (1, 2, 2, 1), first), LatentTrain((4, 2), (1, 2, 1), second)
    return TTLoRA(6, 4, 2, down, up, start)


MAPS: dict[str, WeightMap] = {
    "lora": LoRA(5, 3, 2),
    "lora random": LoRA(5, 3, 2, "random"),
    "tt_lora": tt_lora(),
    "tt_lora fixed": tt_lora(latent="fixed"),
    "tt_lora resample": tt_lora(latent="resample"),
    "tt_lora random": tt_lora(start="random"),
    "tt_lora paper": tt_lora(latent="fixed", start="paper"),
    "tt_lora published": tt_lora(latent="fixed", start="published"),
    "concat": concat(),
    "concat fixed": concat(latent="fixed"),
    "concat resample": concat(latent="resample"),
    "concat mean": concat(latent="mean"),
    "concat random": concat(start="random"),
    "concat paper": concat(latent="fixed", start="paper"),
    "concat published": concat(latent="fixed", start="published"),
    "concat boundary": concat(latent="fixed", ranks=(2, 2, 3, 2, 2)),
    "joined": joined("side f w"),
    "joined one core": joined("(side f w)"),
    "joined digits": joined("side f1 f2 w"),
    "joined unequal primes": joined("side f1 f2 w", (7, 5, 3)),
    "joined interleaved": joined("(f1 w1) (f2 w2) side", (6, 5, 4), latent="fixed"),
    "joined reversed": joined("w f2 side f1", (4, 7, 2)),
    "joined grouped": joined("(side f1) (f2 w1) w2", (4, 4, 6), latent="fixed", start="random"),
    "joined mean": joined("side f w", latent="mean"),
    "joined mean unequal": joined("w side f", (3, 5, 2), latent="mean", start="random"),
    "joined resample": joined("side f1 f2 w", (5, 3, 2), latent="resample"),
    "joined io": joined("io w", (5, 3, 2)),
    "joined io digits": joined("io1 w io2", (5, 4, 2), latent="fixed"),
    "joined io beside side": joined("io (layer side w)", (5, 3, 2), layers=3),
    "joined layers": joined("layer proj side f1 f2 w", (4, 4, 2), layers=3, projections=2),
    "joined layers io": joined("w (layer io)", (3, 4, 2), layers=2, latent="fixed"),
    "joined paper": joined("side f w", (3, 4, 2), latent="fixed", start="paper"),
    "joined published": joined("side f w", (3, 4, 2), latent="fixed", start="published"),
}


FLAT = Stack(5, 4, layers=3, projections=2)
SQUARE = Stack(4, 4, layers=2, projections=3)
LAST = (SQUARE.projections - 1,)
"""The projection whose heads split the input."""


def tenslora(construction: str, *, stack: Stack = FLAT, rank: int = 2, **fields: object) -> TensLoRA:
    """Ranks capped at the modes, two heads where they are tied."""
    heads = 2 if "head" in CONSTRUCTIONS[construction] else 1
    return replace(TensLoRA.isorank(stack, construction, rank, heads=heads), **fields)


FAMILY: dict[str, WeightMap] = {
    **{f"tenslora {name}": tenslora(name) for name in CONSTRUCTIONS},
    **{f"tenslora cp {name}": tenslora(name, form="cp", ranks=(3,)) for name in CONSTRUCTIONS},
    "tenslora random": tenslora("Att_QKV_Depth", start="random"),
    "tenslora cp random": tenslora("QKV", form="cp", ranks=(2,), start="random"),
    "tenslora strided": tenslora("Att_Depth", compat="tenslora"),
    "tenslora uncapped": tenslora("QKV_Depth", ranks=(2, 3, 4, 4)),
    "tenslora input heads": tenslora("Att_QKV", stack=SQUARE, input_heads=LAST),
    "lotr": LoTR(FLAT, 2),
    "lotr random": LoTR(FLAT, 3, start="random"),
    "lorta": LoRTA(FLAT, 3, heads=2),
    "lorta random": LoRTA(FLAT, 3, heads=2, start="random"),
    "lorta input heads": LoRTA(SQUARE, 3, heads=2, input_heads=LAST),
    "fact": FacT(FLAT, 2),
    "fact tucker": FacT(FLAT, 3, form="tucker"),
    "fact random": FacT(FLAT, 2, form="tucker", start="random"),
    "metatt": MetaTT(FLAT, 2),
    "metatt random": MetaTT(FLAT, 3, start="random"),
    "metatt heads": MetaTT(FLAT, 2, heads=2),
    "metatt input heads": MetaTT(SQUARE, 2, heads=2, input_heads=LAST),
    "loretta": LoRETTA(6, 4, 2, (3, 2, 2), (4, 2), 2),
    "loretta random": LoRETTA(6, 4, 2, (3, 4), (2, 2, 2), 3, "random"),
    "loretta published": LoRETTA(6, 4, 2, (3, 2, 2), (2, 4), 2, "published"),
    "streams": Streams((5, 5, 5), (2, 3, 2), inputs=(0, 1, 0), outputs=(1, 0, 2), widths=(2, 2, 2)),
    "streams random": Streams((5, 4), (3, 2), inputs=(0, 0), outputs=(1, 1), widths=(2, 2), start="random"),
    "delta train": DeltaTrain((2, 3), (2, 2), (1, 2, 3, 2, 1)),
    "delta train random": DeltaTrain((2, 3, 1), (4,), (1, 2, 2, 2, 1), start="random"),
    "delta train published": DeltaTrain((3,), (2, 2), (1, 2, 2, 1), start="published"),
}
"""The family over named modes: sites share tensors, or ΔW itself is one."""

EVERY = {**MAPS, **FAMILY}

TRANSFORMED: dict[str, WeightMap] = {
    "gated": Gated(LoRA(5, 3, 2)),
    "gated zero": Gated(LoRA(5, 3, 2, "random"), "zero"),
    "gated latent": Gated(joined("f (side w)", (5, 3, 2), latent="fixed")),
    "gated resample": Gated(joined("side f1 f2 w", (5, 3, 2), latent="resample", start="random"), "zero"),
    "gated stack": Gated(MetaTT(FLAT, 2, start="random"), "zero"),
    "norm bounded": NormBounded(5, 4, 3, (3.0, 1.0, 0.25)),
    "norm bounded random": NormBounded(4, 6, 2, start="random"),
    "gated norm bounded": Gated(NormBounded(5, 4, 2, start="random"), "zero"),
}
"""Maps that act on the factors of another, or on free params: of a form in JSON, but not all affine."""


def tensors_of(
    map: WeightMap, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Standard normal params, and the map's own fixed tensors."""
    generator = torch.Generator().manual_seed(seed)
    _, fixed = map.init(torch.Generator().manual_seed(seed + 1), dtype=dtype)
    params = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in map.param_shapes.items()
    }
    return params, fixed


def with_full_ranks(map: WeightMap) -> WeightMap:
    """The same map with all the ranks that its modes allow."""
    if isinstance(map, TensorGuide):
        return replace(map, ranks=_full(map.layout.modes))
    if isinstance(map, TTLoRA):
        trains = [replace(train, ranks=_full(train.modes)) for train in (map.down_train, map.up_train)]
        return replace(map, down_train=trains[0], up_train=trains[1])
    if isinstance(map, DeltaTrain):
        return replace(map, ranks=_full((*map.in_modes, *map.out_modes)))
    if isinstance(map, TensLoRA):
        modes = map.modes.values()
        return replace(map, ranks=tuple(modes) if map.form == "tucker" else (_cp_rank(modes),))
    if map.kind in ("lorta", "cara"):
        return replace(map, rank=_cp_rank(n for leg, n in map.network.sizes.items() if leg != "width"))
    if isinstance(map, Streams):
        return replace(map, ranks=map.sizes)
    if isinstance(map, NormBounded):
        return replace(map, bounds=(1e3,))
    if isinstance(map, Gated):
        return replace(map, inner=with_full_ranks(map.inner))
    if isinstance(map, LoTR | FacT | MetaTT | LoRETTA):
        return replace(map, rank=24)  # of any unfolding at these sizes
    return map


def _cp_rank(modes: Iterable[int]) -> int:
    """Twice the rank at which the best factor of the largest mode is exact for any others."""
    sizes = sorted(modes)
    return 2 * math.prod(sizes[:-1])


def _full(modes: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *RankRule().caps(modes), 1)
