"""Parameter counts of the published configurations, from shapes and from tensors."""

import itertools

import pytest

from tntune.maps import (
    CONSTRUCTIONS,
    Concat,
    DeltaTrain,
    FacT,
    Geometry,
    Latent,
    LatentTrain,
    LoRA,
    LoRETTA,
    LoRTA,
    LoTR,
    MetaTT,
    Stack,
    TensLoRA,
    TensorGuide,
    TTLoRA,
    WeightMap,
    build_map,
    construction_modes,
)
from tntune.maps.budget import count_tensor

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


# The family over named modes, at the sizes of RoBERTa-base and ViT-B/16 unless another model is named.

QKV = Stack(768, 768, layers=12, projections=3)
QV = Stack(768, 768, layers=12, projections=2)
QKVO = Stack(768, 768, layers=12, projections=4)
VIT = Stack(768, 768, layers=12, projections=12)

ISORANK = {  # Att, QKV, Depth, Att_QKV, Att_Depth, QKV_Depth, Att_QKV_Depth
    4: (123_840, 74_640, 18_768, 43_728, 11_040, 6_460, 4_460),
    8: (261_504, 153_888, 38_688, 130_464, 32_832, 16_504, 39_640),
    16: (633_600, 344_640, 86_592, 949_056, 237_696, 90_352, 1_062_320),
}
"""As the released code counts: the same rank on every mode, above its size too."""

CAPPED = {"QKV_Depth": 6_393, "Att_QKV_Depth": 4_201}
"""At rank 4, no rank above its mode."""

ISOPARAMETER = {  # ranks and parameters nearest to a LoRA of rank 4 on QKV
    "Att": ((7, 7, 12), 236_016),
    "QKV": ((12, 12, 3), 226_476),
    "Depth": ((37, 37, 12), 220_212),
    "Att_QKV": ((14, 14, 12, 3), 226_284),
    "Att_Depth": ((20, 20, 12, 12), 223_584),
    "QKV_Depth": ((60, 60, 3, 12), 221_913),
    "Att_QKV_Depth": ((22, 22, 12, 3, 12), 227_689),
}


def heads_of(construction: str) -> int:
    return 12 if "head" in CONSTRUCTIONS[construction] else 1


@pytest.mark.parametrize("rank", ISORANK)
def test_tenslora_at_equal_rank(rank: int) -> None:
    for construction, count in zip(CONSTRUCTIONS, ISORANK[rank], strict=True):
        heads = heads_of(construction)
        order = len(construction_modes(QKV, construction, heads=heads))
        assert TensLoRA(QKV, construction, (rank,) * order, heads).num_parameters == count
        if heads > 1:
            strided = TensLoRA.isorank(QKV, construction, rank, heads=heads, compat="tenslora")
            assert strided.num_parameters == count


@pytest.mark.parametrize(("construction", "count"), CAPPED.items())
def test_tenslora_caps_ranks_at_its_modes(construction: str, count: int) -> None:
    assert TensLoRA.isorank(QKV, construction, 4, heads=heads_of(construction)).num_parameters == count


@pytest.mark.parametrize("construction", ISOPARAMETER)
def test_tenslora_at_equal_parameters(construction: str) -> None:
    map = TensLoRA.isoparameter(QKV, construction, 221_184, heads=heads_of(construction))
    assert (map.ranks, map.num_parameters) == ISOPARAMETER[construction]


def test_tenslora_by_hand_at_rank_seven() -> None:
    assert TensLoRA(QKV, "Att", (7, 7, 7), 12).num_parameters == 225_036


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_tenslora_as_cp_meets_its_budget_to_half_a_rank(construction: str) -> None:
    map = TensLoRA.isoparameter(QKV, construction, 221_184, heads=heads_of(construction), form="cp")
    assert abs(map.num_parameters - 221_184) <= map.num_parameters / map.width / 2


@pytest.mark.parametrize(("rank", "count"), [(2, 110_592), (4, 221_184), (8, 442_368), (16, 884_736)])
def test_tenslora_baseline(rank: int, count: int) -> None:
    assert QKV.sites * LoRA(768, 768, rank).num_parameters == count


@pytest.mark.parametrize(
    ("map", "count"),
    [
        (LoTR(QV, 8), 13_824),
        (LoTR(QV, 32), 73_728),
        (LoTR(QV, 2), 3_168),
        (LoRTA(QKVO, 1, heads=12), 860),
        (LoRTA(QKVO, 4, heads=12), 3_440),
        (LoRTA(QKVO, 8, heads=12, input_heads=(3,)), 6_880),
        (LoRTA(Stack(1024, 1024, layers=24, projections=4), 8, heads=16), 9_056),
        (LoRTA(Stack(4096, 4096, layers=32, projections=4), 1, heads=32), 4_292),
        (FacT(VIT, 16), 61_440),
        (FacT(VIT, 32, form="tucker"), 86_528),
        (MetaTT(QV, 8), 13_184),
        (MetaTT(QV, 16, heads=12), 19_968),
        (LoRETTA(768, 768, 8, (8, 8, 12, 8), (8, 8, 12, 8), 5), 1_160),
        (DeltaTrain((64, 4, 3), (3, 4, 64), (1, 5, 5, 5, 5, 5, 1)), 990),
        (DeltaTrain((16, 8, 4, 4), (4, 4, 8, 16), (1, *[5] * 7, 1)), 960),
        (DeltaTrain((16, 16, 4, 2), (2, 16, 16), (1, *[5] * 6, 1)), 1_160),
    ],
    ids=lambda value: value.kind if isinstance(value, WeightMap) else str(value),
)
def test_joint_maps(map: WeightMap, count: int) -> None:
    params, _ = map.init()
    assert map.num_parameters == sum(tensor.numel() for tensor in params.values()) == count


def test_totals_of_maps_of_single_layers() -> None:
    assert QV.sites * 1_160 == 27_840  # LoRETTA
    assert QV.sites * 990 == 23_760  # DeltaTrain on RoBERTa-base
    assert 16 * (960 + 1_160) == 33_920  # on Llama-3.2-1B
    lora = 16 * (LoRA(2048, 2048, 16).num_parameters + LoRA(2048, 512, 16).num_parameters)
    assert (lora, f"{33_920 / lora:.2%}") == (1_703_936, "1.99%")
    assert 12 * LoRA(768, 2304, 4).num_parameters == 147_456  # GPT-2's c_attn


# Systems that are no maps of ours: what their published counts are made of.


def test_lorettas_bottlenecks() -> None:
    """LoRETTA_adp: two trains at R = 5 and dense biases, in 24 adapters."""
    down, up = (
        LatentTrain((8, 8, 12, 8, 8), (1, 5, 5, 5, 5, 1)),
        LatentTrain((8, 8, 12, 8, 8), (1, 5, 5, 5, 5, 1)),
    )
    assert down.num_entries == up.num_entries == 768 * 64
    adapter = down.num_parameters + up.num_parameters + 64 + 768
    assert (adapter, 24 * adapter) == (2_392, 57_408)


def test_cara() -> None:
    """Two CPs with weights, and 6 d biases that all layers share: 2526 R + 4608."""
    attention = count_tensor({"site": 36, "in": 768, "head": 12, "dh": 64}, (16,), form="cp")
    others = count_tensor({"site": 108, "in": 768, "out": 768}, (16,), form="cp")
    assert attention + others + 2 * 16 + 6 * 768 == 45_024


def test_quanta() -> None:
    """One gate for each pair of axes of 768 = 12 x 8 x 8."""
    assert sum((a * b) ** 2 for a, b in itertools.combinations((12, 8, 8), 2)) == 22_528


def test_what_plug_ins_add_to_lora() -> None:
    """DoRA a magnitude for each output, SoRA a gate for each rank; dynamic DoRA starts at rank 12 for 8."""
    assert QV.sites * (LoRA(768, 768, 8).num_parameters + 768) == 313_344
    linears = 4 * [(768, 768)] + [(768, 3072), (3072, 768)]
    at = {r: 12 * sum(LoRA(*sizes, r).num_parameters for sizes in linears) for r in (8, 12)}
    assert at[12] + 12 * len(linears) * 12 == 1_991_520
    assert (at[8], at[8] + 12 * len(linears) * 8) == (1_327_104, 1_327_680)
