"""Parameter counts of the published configurations, from shapes and from tensors."""

import pytest

from tntune.maps import Concat, Geometry, Latent, LatentTrain, LoRA, TensorGuide, TTLoRA, build_map

CONV1 = 64 * 1 * 7 * 7
"""Weights of the backbone's first convolution, which the published scripts train and count as well."""

DOTS = [  # width, modes, ranks, cores, printed
    (1024, (16, 8, 257, 16), (1, 2, 2, 1, 1), 1140, 4276),
    (2048, (16, 8, 257, 32), (1, 2, 2, 1, 1), 1156, 4292),
    (4096, (16, 16, 257, 32), (1, 2, 2, 1, 1), 1220, 4356),
    (1024, (16, 8, 257, 16), (1, 1, 2, 2, 1), 2136, 5272),
    (1024, (16, 8, 257, 16), (1, 1, 2, 1, 1), 1092, 4228),
]

GPT2 = [  # ranks, cores, printed
    ((1, 8, 16, 16, 8, 1), 17_632, 18_132),
    ((1, 12, 16, 16, 12, 1), 23_120, 23_620),
    ((1, 16, 16, 16, 16, 1), 28_608, 29_108),
    ((2, 16, 16, 16, 16, 2), 33_664, 34_164),
]


@pytest.mark.parametrize(("width", "modes", "ranks", "cores", "printed"), DOTS)
def test_quantum_dots(
    width: int, modes: tuple[int, ...], ranks: tuple[int, ...], cores: int, printed: int
) -> None:
    latent = Latent("fixed", (1, 2, 2, 1))
    guide = TensorGuide.concat(512, 2, width, modes=modes, ranks=ranks, latent=latent)
    params, _ = guide.init()
    assert guide.num_parameters == sum(core.numel() for core in params.values()) == cores
    assert cores + CONV1 == printed


@pytest.mark.parametrize(("ranks", "cores", "printed"), GPT2)
def test_gpt2(ranks: tuple[int, ...], cores: int, printed: int) -> None:
    latent = Latent("fixed", (2,) * 5)
    layout = Concat((1, 8, 13, 25, 157))
    guide = TensorGuide(768, 50_257, 8, layout, ranks, latent)
    assert guide.num_parameters == cores
    assert printed - cores == 500  # of unknown origin, the same in every row


def test_lora_baseline() -> None:
    assert LoRA(512, 2, 4).num_parameters == 2056
    assert 2056 + CONV1 == 5192


def test_tt_lora_baseline() -> None:
    down = LatentTrain((8, 8, 80), (1, 2, 2, 1), Latent("fixed", (8, 8, 8)))
    up = LatentTrain((10, 2), (1, 2, 1), Latent("fixed", (4, 5)))
    assert (down.num_parameters, up.num_parameters) == (1664, 100)
    assert TTLoRA(512, 2, 10, down, up).num_parameters == 1764
    assert 1764 + CONV1 == 4900


@pytest.mark.parametrize(("width", "count"), [(8, 294_912), (4, 147_456), (16, 589_824)])
def test_lora_of_roberta_query_and_value(width: int, count: int) -> None:
    assert 24 * LoRA(768, 768, width).num_parameters == count


def test_an_adapter_of_gpt2s_head() -> None:
    assert LoRA(768, 50_257, 1).num_parameters == 51_025


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_joined_by_hand(rank: int) -> None:
    """The default layout, f1 (32) f2 (24) side and w (2 * 8), then side (2) f1 f2 w with capped ranks."""
    guide = build_map("tensorguide", Geometry(768, 768, 8), rank=rank)
    assert guide.num_parameters == 32 * rank + rank * 24 * rank + rank * 16
    first = min(rank, 2)
    middle = min(rank, first * 32)
    wanted = 2 * first + first * 32 * middle + middle * 24 * rank + rank * 8
    guide = build_map("tensorguide", Geometry(768, 768, 8), rank=rank, layout="side f1 f2 w")
    assert guide.num_parameters == wanted
