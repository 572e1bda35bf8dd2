"""advice: every label with its numbers, claims checked on tensors, and silence where nothing is wasted."""

from dataclasses import replace

import pytest
import torch

from tests.support.maps import MAPS, concat, joined, tensors_of, tt_lora
from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.maps import (
    Advice,
    Geometry,
    Joined,
    Latent,
    LatentTrain,
    LoRA,
    TensorGuide,
    TTLoRA,
    WeightMap,
    advice,
    build_map,
)
from tntune.tt.rank_rule import RankRule
from tntune.tt.rounding import round_tt
from tntune.tt.train import dense, flatten

LABELS = ("rank", "lift", "boundary", "size", "width", "padding")


def labels(map: WeightMap, **options: str) -> list[str]:
    return [found.label for found in advice(map, **options)]


def only(map: WeightMap, label: str, **options: str) -> list[str]:
    return [found.message for found in advice(map, **options) if found.label == label]


def gpt2(ranks: tuple[int, ...], latent: str = "fixed") -> TensorGuide:
    z = Latent(latent, (2,) * 5)
    return TensorGuide.concat(768, 50_257, 8, modes=(1, 8, 13, 25, 157), ranks=ranks, latent=z)


def test_the_published_dots_head() -> None:
    z = Latent("fixed", (1, 2, 2, 1))
    guide = TensorGuide.concat(512, 2, 1024, modes=(16, 8, 257, 16), ranks=(1, 2, 2, 1, 1), latent=z)
    assert advice(guide, activation="relu") == (
        Advice("size", "1,140 parameters serve 1 layer of 512 x 2 = 1,024 weights"),
    )
    assert only(guide, "width") == [
        "width 1,024 is above 2, the largest rank that ΔW can have here under a linear activation; "
        "a nonlinear one would use it"
    ]


def test_the_published_gpt2_rows() -> None:
    row = gpt2((1, 8, 16, 16, 8, 1))
    assert only(row, "rank") == ["rank r_1 = 8 can be lowered to 2 without loss"]
    assert only(row, "lift") == [
        "rank r_1 = 8 is lifted to 16 by the latent, but the modes (1,) | (8, 13, 25, 157) carry 1",
        "rank r_2 = 16 is lifted to 64 by the latent, but the modes (1, 8) | (13, 25, 157) carry 8",
    ]
    assert only(row, "boundary") == []
    assert only(gpt2((2, 16, 16, 16, 16, 2)), "boundary") == [
        "boundary ranks 2 and 2 are summed; 5,056 parameters are dead"
    ]


@pytest.mark.parametrize("latent", ["resample", "mean"])
def test_an_open_latent_lifts_nothing(latent: str) -> None:
    """Training sees every z, so that only the joint modes (latent, open) bound a rank."""
    assert labels(gpt2((1, 2, 16, 16, 8, 1), latent)) == []
    assert only(gpt2((1, 3, 16, 16, 8, 1), latent), "rank") == [
        "rank r_1 = 3 can be lowered to 2 without loss"
    ]


def test_ranks_that_a_neighbour_cannot_feed() -> None:
    layout = Joined("side f1 f2 w", (2, 4, 4, 8))
    guide = TensorGuide(16, 16, 8, layout, (1, 2, 9, 8, 1), start="random")
    assert only(guide, "rank") == ["rank r_2 = 9 can be lowered to 8 without loss"]
    params, _ = tensors_of(guide)
    rounded = round_tt(flatten(guide.train.tensor_train(list(params.values()))), RankRule(ranks=(2, 8, 8)))
    assert close(dense(rounded.value), dense(guide.train.tensor_train(list(params.values()))))


def test_dead_parameters_are_counted() -> None:
    wide = concat(ranks=(3, 2, 3, 2, 2))
    narrow = concat(ranks=(1, 2, 3, 2, 1))
    dead = wide.num_parameters - narrow.num_parameters
    assert only(wide, "boundary") == [f"boundary ranks 3 and 2 are summed; {dead} parameters are dead"]
    single = LatentTrain((8,), (3, 5))
    map = TTLoRA(4, 4, 2, single, LatentTrain((8,), (1, 1)))
    assert only(map, "boundary") == ["down: boundary ranks 3 and 5 are summed; 112 parameters are dead"]


def test_size_counts_all_layers() -> None:
    assert only(LoRA(512, 2, 2), "size") == ["1,028 parameters serve 1 layer of 512 x 2 = 1,024 weights"]
    assert only(LoRA(512, 2, 1), "size") == []
    many = joined("layer side f w", (4, 4, 2), layers=6)
    assert many.num_parameters < 6 * 16
    assert only(many, "size") == []
    large = replace(many, ranks=(1, 6, 12, 6, 1))
    assert only(large, "size") == [f"{large.num_parameters} parameters serve 6 layers of 4 x 4 = 96 weights"]


@pytest.mark.parametrize(
    ("map", "bound"),
    [
        (LoRA(9, 3, 4), 3),
        (joined("side f1 f2 w", (9, 8, 4)), 2),
        (joined("w side f", (9, 8, 4)), 2),
        (joined("w side f", (9, 8, 4), latent="fixed"), None),  # 2 lifted to 4: the width is used
        (joined("side f (w1 w2)", (9, 8, 4)), 2),
        (joined("io w", (9, 8, 4)), 2),
        (joined("side f w", (9, 8, 4), latent="mean"), None),
        (joined("(f1 w1) (f2 w2) side", (9, 8, 4)), None),  # no bond separates features and width
        (TensorGuide.concat(12, 9, 8, modes=(21, 8), ranks=(1, 3, 1)), 3),
        (TensorGuide.concat(12, 9, 8, modes=(42, 4), ranks=(1, 2, 1)), 4),
        (TensorGuide.concat(12, 9, 8, modes=(21, 8), ranks=(1, 3, 1), latent=Latent("fixed", (2, 2))), 6),
        (TensorGuide.concat(12, 12, 8, modes=(8, 24), ranks=(1, 1, 1)), 3),
        (build_map("tt_lora", Geometry(12, 12, 4), rank=2), 2),
        (build_map("tt_lora", Geometry(12, 12, 4), rank=2, latent="fixed"), 2),
    ],
)
def test_width_above_the_rank_of_delta(map: WeightMap, bound: int | None) -> None:
    assert only(map, "width", activation="gelu") == []
    found = only(map, "width")
    random = replace(map, start="random")
    rank = int(torch.linalg.matrix_rank(random.delta(*tensors_of(random))[0]))
    if bound is None:
        assert found == []
        return
    assert found[0].startswith(f"width {map.width} is above {bound}, the largest rank that ΔW can have")
    assert rank <= bound


def test_padding() -> None:
    assert only(joined("side f w", (3, 12, 2)), "padding") == [
        "38% of layout 'side f w' is padding: it has room for 24 features, of which 3 + 12 are used; "
        "an io layout pads least"
    ]
    assert only(joined("side f w", (8, 12, 2)), "padding") == []
    assert only(joined("io w", (3, 12, 2)), "padding") == []
    wide = TensorGuide(3, 4, 2, Joined("io w", (10, 2)), (1, 2, 1))
    assert only(wide, "padding")[0].startswith("30% of layout 'io w' is padding: it has room for 10 features")


def test_silence_where_nothing_is_wasted() -> None:
    assert advice(LoRA(768, 768, 8)) == ()
    assert advice(build_map("tensorguide", Geometry(768, 768, 8), rank=8)) == ()
    assert advice(build_map("tt_lora", Geometry(768, 768, 8), rank=8)) == ()


def test_every_label_is_given_somewhere() -> None:
    wasteful = [*MAPS.values(), gpt2((2, 16, 16, 16, 16, 2)), tt_lora(), joined("side f w", (3, 12, 2))]
    assert {label for map in wasteful for label in labels(map)} == set(LABELS)


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(SpecError, match="unknown activation 'swish'"):
        advice(LoRA(4, 4, 2), activation="swish")
