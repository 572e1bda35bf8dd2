"""Laws of the LoRA writer: what is written is what is read, at scale 1, or nothing is written."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.tolerance import close
from tntune.checkpoint import LoraEntry, open_lora, write_lora
from tntune.errors import DtypeError, ModeError, NumericalError, OutputError, SpecError, TntuneError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EMBEDDING = "base_model.model.wte.lora_embedding_{}"


def entry(name: str, width: int = 2, *, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> LoraEntry:
    draw = torch.Generator().manual_seed(len(name) + width)
    down, up = torch.randn(width, 5, generator=draw), torch.randn(3, width, generator=draw)
    return LoraEntry(name, down.to(dtype), up.to(dtype), scale)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_factors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    entries = [entry("h.0.fc", 2, dtype=dtype), entry("h.1.fc", 3, dtype=dtype)]
    write_lora(tmp_path / "lora", iter(entries), base_config={})
    lora = open_lora(tmp_path / "lora")
    for wanted, site in zip(entries, lora.sites, strict=True):
        down, up, scale = lora.load(site)
        assert site.name == wanted.name
        assert scale == 1.0
        assert same(down, wanted.down)
        assert same(up, wanted.up)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [2.0, -0.3, math.pi])
def test_scale_is_folded(tmp_path: Path, dtype: torch.dtype, scale: float) -> None:
    wanted = entry("fc", 3, dtype=dtype, scale=scale)
    write_lora(tmp_path / "lora", [wanted], base_config={})
    lora = open_lora(tmp_path / "lora")
    down, up, one = lora.load(lora.sites[0])
    assert one == 1.0
    assert up.dtype == dtype
    exact = scale * wanted.up.double() @ wanted.down.double()
    assert close((up.double() @ down.double()).to(dtype), exact)


NAMES = st.lists(
    st.sampled_from(["fc", "h.0.fc", "h.1.fc", "xh.0.fc", "deep.h.0.fc", "h+.(0", "h.10.fc", "hx0.fc"]),
    min_size=1,
    unique=True,
)


@given(names=NAMES, widths=st.lists(st.integers(1, 4), min_size=8, max_size=8))
def test_each_module_has_its_own_width(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], widths: list[int]
) -> None:
    path = tmp_path_factory.mktemp("writer") / "lora"
    wanted = dict(zip(names, widths, strict=False))
    write_lora(path, [entry(name, width) for name, width in wanted.items()], base_config={})
    lora = open_lora(path)
    assert {site.name: (site.width, site.scale) for site in lora.sites} == {
        name: (width, 1.0) for name, width in wanted.items()
    }
    assert lora.config["r"] == lora.config["lora_alpha"] == max(wanted.values())


def test_tied_and_sliced_factors_are_written(tmp_path: Path) -> None:
    big = torch.arange(40.0).reshape(8, 5)
    entries = [LoraEntry("a", big[:2], big[:2].T), LoraEntry("b", big[:2], big[4:, :2])]
    write_lora(tmp_path / "lora", entries, base_config={})
    lora = open_lora(tmp_path / "lora")
    assert same(lora.load(lora.sites[1])[1], big[4:, :2])
    assert lora.num_bytes < 1000


def test_what_concerns_the_base_model_is_carried(tmp_path: Path) -> None:
    base = {
        "base_model_name_or_path": "some/model",
        "task_type": "SEQ_CLS",
        "modules_to_save": ["score"],
        "fan_in_fan_out": True,
        "bias": "none",
        "r": 64,
        "use_rslora": True,
        "alpha_pattern": {"fc": 3},
        "layers_to_transform": [0],
        "eva_config": {"rho": 2.0},
    }
    score = {"base_model.model.score.weight": torch.arange(6.0).reshape(2, 3)}
    write_lora(tmp_path / "lora", [entry("fc")], base_config=base, passthrough=score, card="# Card é\n")
    lora = open_lora(tmp_path / "lora")
    kept = ("base_model_name_or_path", "task_type", "modules_to_save", "fan_in_fan_out")
    assert {key: lora.config[key] for key in kept} == {key: base[key] for key in kept}
    assert not {"layers_to_transform", "eva_config", "bias"} & lora.config.keys()  # no bias was trained
    assert lora.sites[0].scale == 1.0
    assert same(lora.tensor("base_model.model.score.weight"), next(iter(score.values())))
    assert (tmp_path / "lora" / "README.md").read_text(encoding="utf-8") == "# Card é\n"


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", [entry("fc")], base_config={})
    (tmp_path / "plain").touch()
    modes = {file.stat().st_mode for file in (tmp_path / "lora").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_no_card_no_file(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", [entry("fc")], base_config={})
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_embeddings_keep_their_scale(tmp_path: Path) -> None:
    carried = {EMBEDDING.format("A"): torch.ones(4, 7), EMBEDDING.format("B"): torch.ones(5, 4)}
    base = {"r": 4, "lora_alpha": 6, "use_rslora": True}
    write_lora(tmp_path / "lora", [entry("fc", 9)], base_config=base, passthrough=carried)
    config = open_lora(tmp_path / "lora").config
    assert config["target_modules"] == ["fc", "wte"]
    assert config["rank_pattern"] == {"^wte": 4}
    assert config["alpha_pattern"] == {"^wte": 12.0}


CARRIED: dict[str, Tensor] = {EMBEDDING.format("A"): torch.ones(4, 7)}
REFUSED: dict[str, tuple[list[LoraEntry], dict[str, Any], type[TntuneError], str]] = {
    "nothing": ([], {}, SpecError, "no LoRA entry"),
    "twice": ([entry("fc"), entry("fc")], {}, SpecError, "fc: two entries have this name"),
    "inner sizes": (
        [LoraEntry("fc", torch.ones(2, 5), torch.ones(3, 4))],
        {},
        ModeError,
        r"fc: down \(2, 5\) and up \(3, 4\) must be \(width, in\) and \(out, width\)",
    ),
    "axes": ([LoraEntry("fc", torch.ones(2), torch.ones(3, 2))], {}, ModeError, r"fc: down \(2,\) and up"),
    "empty": ([LoraEntry("fc", torch.ones(0, 5), torch.ones(3, 0))], {}, ModeError, r"fc: down \(0, 5\)"),
    "integers": (
        [LoraEntry("fc", torch.ones(2, 5, dtype=torch.int32), torch.ones(3, 2))],
        {},
        DtypeError,
        r"fc\.lora_A\.weight: dtype torch\.int32",
    ),
    "NaN": (
        [LoraEntry("fc", torch.ones(2, 5), torch.full((3, 2), math.nan))],
        {},
        NumericalError,
        r"fc\.lora_B\.weight: has entries that are NaN",
    ),
    "overflow": (
        [LoraEntry("fc", torch.ones(2, 5).half(), torch.full((3, 2), 6e4).half(), 2.0)],
        {},
        NumericalError,
        r"fc\.lora_B\.weight: has entries that are NaN or infinite",
    ),
    "clash": (
        [entry("fc")],
        {"passthrough": {"base_model.model.fc.lora_A.weight": torch.ones(2, 5)}},
        SpecError,
        r"fc\.lora_A\.weight: is a factor and cannot be passed through",
    ),
    "no scale": (
        [entry("fc")],
        {"passthrough": CARRIED},
        SpecError,
        "does not tell the scale of an embedding",
    ),
    "not this scale": (
        [entry("fc")],
        {"passthrough": CARRIED, "base_config": {"embeddings": {"other": 1.0}}},
        SpecError,
        "wte: embeddings of the configuration must have its scale, not None",
    ),
    "not this rank": (
        [entry("fc")],
        {"passthrough": CARRIED, "base_config": {"r": 8, "lora_alpha": 8}},
        SpecError,
        "wte: has rank 4, the configuration says 8",
    ),
    "card": ([entry("fc")], {"card": "\ud800"}, OutputError, "has no UTF-8 form"),
    "no JSON": ([entry("fc")], {"base_config": {"revision": math.nan}}, OutputError, "has no JSON form"),
}


@pytest.mark.parametrize(("entries", "options", "error", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, entries: list[LoraEntry], options: dict[str, Any], error: type[TntuneError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        write_lora(tmp_path / "lora", entries, **{"base_config": {}, **options})
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_an_adapter(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", [entry("a")], base_config={}, card="old")
    with pytest.raises(OutputError, match="exists already"):
        write_lora(tmp_path / "lora", [entry("b")], base_config={})
    assert open_lora(tmp_path / "lora").sites[0].name == "a"
    write_lora(tmp_path / "lora", [entry("b")], base_config={}, overwrite=True)
    assert open_lora(tmp_path / "lora").sites[0].name == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert not (tmp_path / "lora" / "README.md").exists()
