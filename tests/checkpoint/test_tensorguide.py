"""Laws of TensorGuide folders: site and tensors come back bit for bit, or the folder is refused by name."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.tolerance import close
from tntune.checkpoint import (
    LoraEntry,
    LoraFolder,
    TensorGuideFolder,
    open_adapter,
    open_lora,
    open_tensorguide,
    write_lora,
    write_tensorguide,
)
from tntune.errors import (
    CheckpointError,
    DtypeError,
    ModeError,
    NumericalError,
    OutputError,
    SpecError,
    TntuneError,
)
from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain
from tntune.maps.lora import LoRA
from tntune.maps.site import Site
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SITES = {
    "lora": Site(LoRA(6, 4, 2), scale=0.5),
    "tt_lora": Site(TTLoRA(6, 4, 2, LatentTrain((4, 3), (1, 2, 1)), LatentTrain((2, 4), (1, 2, 1)))),
    "tensorguide": Site(
        TensorGuide.concat(
            6, 4, 2, modes=(4, 5), ranks=(1, 2, 1), latent=Latent("fixed", (2, 3)), start="random"
        ),
        scale=2.0,
        activation="gelu",
    ),
}
Tensors = dict[str, Tensor]


def values(site: Site, *, dtype: torch.dtype = torch.float32) -> Tensors:
    draw = torch.Generator().manual_seed(4)
    return {
        name: torch.randn(shape, generator=draw).to(dtype) for name, shape in site.tensor_shapes().items()
    }


def content(*, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Site, Tensors]]:
    return {f"h.0.{kind}": (site, values(site, dtype=dtype)) for kind, site in SITES.items()}


def key(kind: str, flat: str) -> str:
    return f"base_model.model.h.0.{kind}.tensorguide_gen.{flat}"


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sites_and_tensors_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    written = content(dtype=dtype)
    write_tensorguide(tmp_path / "adapter", written, config={}, metadata={"error": 0.25, "seed": 3})
    folder = open_adapter(tmp_path / "adapter")
    assert isinstance(folder, TensorGuideFolder)
    assert dict(folder.sites) == {name: site for name, (site, _) in written.items()}
    assert folder.metadata == {"error": 0.25, "seed": 3}
    assert folder.dtypes == (dtype,)
    assert folder.passthrough == ()
    assert folder.params == sum(site.map.num_parameters for site in SITES.values())
    assert folder.num_bytes == (tmp_path / "adapter" / TENSORS).stat().st_size
    for name, (site, tensors) in written.items():
        loaded = folder.load(name)
        assert loaded.keys() == tensors.keys()
        assert all(same(loaded[flat], tensors[flat]) for flat in tensors)
        assert same(site.factors(loaded).down, site.factors(tensors).down)


def test_keys_are_those_of_the_plug_in(tmp_path: Path) -> None:
    write_tensorguide(tmp_path / "adapter", content(), config={"task_type": "CAUSAL_LM", "r": 8})
    stored = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert stored["peft_type"] == "TENSORGUIDE"
    assert stored["format_version"] == 1
    assert stored["target_modules"] == list(content())
    assert stored["task_type"] == "CAUSAL_LM"
    assert "r" not in stored
    assert set(load_file(tmp_path / "adapter" / TENSORS)) == {
        key(kind, flat) for kind, site in SITES.items() for flat in site.tensor_shapes()
    }


def test_a_lora_goes_through_tensorguide_and_back(tmp_path: Path) -> None:
    """LoRA folder -> the map that is a LoRA -> LoRA folder: same updates, same passengers, same scales."""
    draw = torch.Generator().manual_seed(5)
    passengers = {
        "base_model.model.wte.lora_embedding_A": torch.randn(3, 9, generator=draw),
        "base_model.model.wte.lora_embedding_B": torch.randn(6, 3, generator=draw),
        "base_model.model.score.weight": torch.arange(4),
    }
    entry = LoraEntry("fc", torch.randn(2, 6, generator=draw), torch.randn(4, 2, generator=draw), 1.5)
    base = {"r": 3, "lora_alpha": 9, "use_rslora": True, "modules_to_save": ["score"], "revision": "main"}
    write_lora(tmp_path / "a", [entry], base_config=base, passthrough=passengers)
    lora = open_lora(tmp_path / "a")
    down, up, scale = lora.load(lora.sites[0])
    site = Site(LoRA(6, 4, 2), scale=scale)
    tensors = dict(zip(site.tensor_shapes(), (down, up), strict=True))
    carried = {name: lora.tensor(name) for name in lora.passthrough}
    write_tensorguide(tmp_path / "b", {"fc": (site, tensors)}, config=lora.config, passthrough=carried)
    guide = open_tensorguide(tmp_path / "b")
    carried = {name: guide.tensor(name) for name in guide.passthrough}
    factors = guide.sites["fc"].factors(guide.load("fc"))
    back = LoraEntry("fc", factors.down[0], factors.up[0], guide.sites["fc"].scale)
    write_lora(tmp_path / "c", [back], base_config=guide.config, passthrough=carried)
    final = open_lora(tmp_path / "c")
    assert final.config == lora.config
    assert all(same(final.tensor(name), value) for name, value in passengers.items())
    down, up, scale = final.load(final.sites[0])
    assert close(scale * up @ down, entry.scale * entry.up @ entry.down)


def test_load_reads_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensorguide(tmp_path / "adapter", content(), config={})
    folder = open_tensorguide(tmp_path / "adapter")
    read: list[str] = []
    real = folder._file._read
    object.__setattr__(folder._file, "_read", lambda name: (read.append(name), real(name))[1])
    folder.load("h.0.lora")
    assert read == [key("lora", flat) for flat in SITES["lora"].tensor_shapes()]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    write_tensorguide(tmp_path / "adapter", content(), config={})
    folder = open_tensorguide(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"adapter: h\.9: no such module"):
        folder.load("h.9")
    with pytest.raises(CheckpointError, match="nothing: no such tensor"):
        folder.tensor("nothing")


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / CONFIG).read_text())
        change(value)
        (folder / CONFIG).write_text(json.dumps(value))

    return damage


def put(name: str, value: Tensor | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        tensors.pop(name, None)
        save_file(tensors if value is None else {**tensors, name: value}, folder / TENSORS)

    return damage


FIRST = key("lora", next(iter(SITES["lora"].tensor_shapes())))
BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "newer": (
        edit(lambda c: c.update(format_version=2)),
        "format_version",
        "this tntune reads 1 to 1, not 2",
    ),
    "no version": (edit(lambda c: c.pop("format_version")), "format_version", ".* not None"),
    "version true": (edit(lambda c: c.update(format_version=True)), "format_version", ".* not True"),
    "no sites": (edit(lambda c: c.pop("sites")), "sites", "must be an object with at least one"),
    "sites is a list": (edit(lambda c: c.update(sites=[1])), "sites", "must be an object"),
    "empty site": (
        edit(lambda c: c["sites"].update({"h.0.lora": {}})),
        "sites: h.0.lora",
        "a site has the keys",
    ),
    "unknown map": (
        edit(lambda c: c["sites"]["h.0.lora"]["map"].update(kind="novel")),
        "sites: h.0.lora",
        "unknown kind 'novel'",
    ),
    "unknown activation": (
        edit(lambda c: c["sites"]["h.0.lora"].update(activation="novel")),
        "sites: h.0.lora",
        ".*novel",
    ),
    "unknown map key": (
        edit(lambda c: c["sites"]["h.0.lora"]["map"].update(novel=1)),
        "sites: h.0.lora",
        r".*unknown keys \['novel'\]",
    ),
    "impossible ranks": (
        edit(lambda c: c["sites"]["h.0.tensorguide"]["map"].update(ranks=[1, 2])),
        "sites: h.0.tensorguide",
        ".*rank",
    ),
    "site too many": (
        edit(lambda c: c["sites"].update({"h.1.lora": c["sites"]["h.0.lora"]})),
        FIRST.replace("h.0", "h.1"),
        "is missing",
    ),
    "site too few": (
        edit(lambda c: c["sites"].pop("h.0.lora")),
        FIRST,
        "no site of adapter_config.json has this",
    ),
    "missing tensor": (put(FIRST, None), FIRST, "is missing"),
    "tensor too many": (put(key("lora", "extra"), torch.ones(1)), key("lora", "extra"), "no site of"),
    "unknown tensor": (put("h.0.bias", torch.ones(1)), "h.0.bias", "unknown tensor; carry=True"),
    "shape": (put(FIRST, torch.ones(3, 6)), FIRST, r"has shape \(3, 6\), the map needs \(2, 6\)"),
    "axes": (put(FIRST, torch.ones(6)), FIRST, r"shape \(6,\) must have 2 axes"),
    "integers": (put(FIRST, torch.ones(2, 6).long()), FIRST, r"dtype torch\.int64 is not a float"),
    "biases": (edit(lambda c: c.update(bias="all")), "bias", "base biases were trained too; carry=True"),
    "saved is text": (edit(lambda c: c.update(modules_to_save="x")), "modules_to_save", "must be a list"),
    "another method": (edit(lambda c: c.update(peft_type="LOHA")), "peft_type", "must be .*, not 'LOHA'"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "adapter", "has neither"),
    "cut": (
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-4]) and None,
        TENSORS,
        "not a whole",
    ),
}


@pytest.mark.parametrize(("damage", "place", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("reader", [open_tensorguide, open_adapter])
def test_damaged_folder_is_refused_by_name(
    tmp_path: Path, reader: Callable[[Path], object], damage: Callable[[Path], None], place: str, reason: str
) -> None:
    write_tensorguide(tmp_path / "adapter", content(), config={})
    damage(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=f"{re.escape(place)}: {reason}") as caught:
        reader(tmp_path / "adapter")
    assert str(caught.value).startswith(str(tmp_path / "adapter"))
    assert "\n" not in str(caught.value)


def test_non_finite_tensors_are_refused_when_loaded(tmp_path: Path) -> None:
    write_tensorguide(tmp_path / "adapter", content(), config={})
    put(FIRST, torch.full((2, 6), math.inf))(tmp_path / "adapter")
    folder = open_tensorguide(tmp_path / "adapter")
    with pytest.raises(NumericalError, match=re.escape(f"{FIRST}: has entries that are NaN or infinite")):
        folder.load("h.0.lora")


def test_carry_keeps_what_is_outside_the_maps(tmp_path: Path) -> None:
    write_tensorguide(
        tmp_path / "adapter",
        content(),
        config={"bias": "all"},
        passthrough={"base_model.model.fc.bias": torch.ones(3)},
    )
    with pytest.raises(CheckpointError, match="carry=True"):
        open_adapter(tmp_path / "adapter")
    assert open_adapter(tmp_path / "adapter", carry=True).passthrough == ("base_model.model.fc.bias",)


LEAVES = st.sampled_from([None, True, -1, 0, 2.5, "x", [], [1], {}, {"kind": "lora"}, {"kind": []}, [[1]]])


@given(kind=st.sampled_from(sorted(SITES)), choice=st.integers(0, 10**6), leaf=LEAVES)
def test_any_changed_site_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, choice: int, leaf: object
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "adapter"
    write_tensorguide(path, {kind: (SITES[kind], values(SITES[kind]))}, config={})

    def places(node: Any) -> list[tuple[Any, Any]]:
        items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        inner = [place for _, item in items if isinstance(item, dict | list) for place in places(item)]
        return [(node, name) for name, _ in items] + inner

    def change(config: dict[str, Any]) -> None:
        found = places(config["sites"])
        node, name = found[choice % len(found)]
        node[name] = leaf

    edit(change)(path)
    try:
        message = "" if isinstance(open_tensorguide(path).sites[kind], Site) else "not a site\n"
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


def one(name: str = "fc", **changes: Tensor) -> dict[str, tuple[Site, Tensors]]:
    return {name: (SITES["lora"], {**values(SITES["lora"]), **changes})}


FLAT = FIRST.rpartition(".")[2]
REFUSED: dict[str, tuple[Any, dict[str, Any], type[TntuneError], str]] = {
    "nothing": ({}, {}, SpecError, "there is no site to write"),
    "tensor too many": (one(extra=torch.ones(1)), {}, SpecError, "fc: the map needs the tensors"),
    "tensor too few": ({"fc": (SITES["lora"], {})}, {}, SpecError, r"fc: the map needs .*, not \[\]"),
    "shape": (one(**{FLAT: torch.ones(3, 6)}), {}, ModeError, r"has shape \(3, 6\), the map needs \(2, 6\)"),
    "integers": (one(**{FLAT: torch.ones(2, 6).long()}), {}, DtypeError, "is not a float"),
    "NaN": (one(**{FLAT: torch.full((2, 6), math.nan)}), {}, NumericalError, "has entries that are NaN"),
    "clash": (
        one(),
        {"passthrough": {"base_model.model.x.tensorguide_gen.y": torch.ones(1)}},
        SpecError,
        "is a map's tensor and cannot be passed through",
    ),
    "metadata": (one(), {"metadata": {"value": torch.ones(1)}}, OutputError, "has no JSON form"),
}


@pytest.mark.parametrize(("sites", "options", "error", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, sites: Any, options: dict[str, Any], error: type[TntuneError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        write_tensorguide(tmp_path / "adapter", sites, **{"config": {}, **options})
    assert list(tmp_path.iterdir()) == []


def test_overwriting_and_cards(tmp_path: Path) -> None:
    write_tensorguide(tmp_path / "adapter", one("a"), config={}, card="# A")
    with pytest.raises(OutputError, match="exists already"):
        write_tensorguide(tmp_path / "adapter", one("b"), config={})
    write_tensorguide(tmp_path / "adapter", one("b"), config={}, card="# B", overwrite=True)
    assert list(open_tensorguide(tmp_path / "adapter").sites) == ["b"]
    assert (tmp_path / "adapter" / "README.md").read_text() == "# B"


def test_a_shared_map_is_not_written_for_one_module(tmp_path: Path) -> None:
    shared = Site(LoRA(6, 4, 2))
    object.__setattr__(shared, "map", Shared(6, 4, 2))
    with pytest.raises(SpecError, match="fc: its map serves 2 modules"):
        write_tensorguide(tmp_path / "adapter", {"fc": (shared, values(shared))}, config={})


class Shared(LoRA):
    """A LoRA that claims two layers."""

    @property
    def sites(self) -> int:
        return 2


def test_open_adapter_knows_both_kinds(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", [LoraEntry("fc", torch.ones(1, 2), torch.ones(2, 1))], base_config={})
    assert isinstance(open_adapter(tmp_path / "lora"), LoraFolder)
    (tmp_path / "lora" / CONFIG).write_text('{"peft_type": "IA3"}')
    kinds = "'LORA', 'TENSORGUIDE', 'TENSORGUIDE_SHARED' or 'TENSORGUIDE_LIBRARY'"
    with pytest.raises(CheckpointError, match=f"peft_type: must be {kinds}, not 'IA3'"):
        open_adapter(tmp_path / "lora")
