"""build_map: options to a map, nothing accepted and ignored."""

import pytest

from tntune.errors import RankError, SpecError
from tntune.maps import Concat, Geometry, Joined, Latent, LoRA, TensorGuide, TTLoRA, build_map

SIZES = Geometry(12, 7, 4)


@pytest.mark.parametrize("layout", [None, "concat", "io w", "(f1 w1) (f2 w2) side"])
@pytest.mark.parametrize("latent", ["none", "fixed", "resample", "mean"])
def test_tensorguide(layout: str | None, latent: str) -> None:
    guide = build_map("tensorguide", SIZES, rank=3, layout=layout, latent=latent, seed=5, start="random")
    assert isinstance(guide, TensorGuide)
    assert isinstance(guide.layout, Concat if layout == "concat" else Joined)
    assert (guide.geometry, guide.start, guide.latent.mode) == (SIZES, "random", latent)
    assert guide.latent.seed == (0 if latent == "none" else 5)
    assert max(guide.ranks) <= 3
    assert guide.ranks[0] == guide.ranks[-1] == 1


def test_latent_legs_sit_at_inner_cores() -> None:
    assert build_map("tensorguide", SIZES, layout="side f1 f2 w", latent="fixed").latent.modes == (1, 2, 2, 1)
    assert build_map("tensorguide", SIZES, latent="fixed").latent.modes == (1, 2, 1)
    assert build_map("tensorguide", SIZES, layout="io w", latent="fixed").latent.modes == (2, 2)
    assert build_map("tensorguide", SIZES, layout="(io w)", latent="fixed").latent.modes == (2,)


def test_tt_lora() -> None:
    map = build_map("tt_lora", SIZES, rank=2, latent="fixed", seed=3)
    assert isinstance(map, TTLoRA)
    assert (map.down_train.modes, map.up_train.modes) == ((4, 3, 4), (4, 7, 1))
    assert (map.down_train.ranks, map.up_train.ranks) == ((1, 2, 2, 1), (1, 2, 1, 1))
    assert (map.down_train.latent, map.up_train.latent) == (
        Latent("fixed", (1, 2, 1), 6),
        Latent("fixed", (1, 2, 1), 7),
    )


def test_lora() -> None:
    assert build_map("lora", SIZES, start="random") == LoRA(12, 7, 4, "random")


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("vera", {}, SpecError, "method must be one of tensorguide, tt_lora, lora, .*not 'vera'"),
        ("lora", {"rank": 2}, SpecError, "has neither TT-rank nor latent, but rank=2"),
        ("lora", {"latent": "fixed"}, SpecError, "has neither TT-rank nor latent"),
        ("lora", {"layout": "io w"}, SpecError, "method 'lora' has no layout, but 'io w' was given"),
        ("lora", {"start": "paper"}, SpecError, "start must be one of zero, random, not 'paper'"),
        ("tt_lora", {"layout": "io w"}, SpecError, "method 'tt_lora' has no layout"),
        ("tt_lora", {"latent": "mean"}, SpecError, "the mean over two independent latents is zero"),
        ("tensorguide", {"rank": 0}, RankError, "max_rank must be at least 1, got 0"),
        ("tt_lora", {"rank": 0}, RankError, "max_rank must be at least 1, got 0"),
        ("tensorguide", {"layout": ""}, SpecError, "cannot read the layout ''"),
        ("tensorguide", {"latent": "gauss"}, SpecError, "latent mode must be one of"),
    ],
)
def test_refuses(method: str, options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build_map(method, SIZES, **options)
