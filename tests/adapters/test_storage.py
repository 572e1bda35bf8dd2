"""Saving and loading: bit for bit, by name, and nothing half done."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.maps import MAPS
from tests.support.models import Tower, adapted
from tntune.adapters import AdapterSpec, adapt, adapted_layers, load_adapters, merge, save_adapters, unload
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import (
    CheckpointError,
    ModeError,
    NumericalError,
    OutputError,
    TargetError,
    UnsupportedError,
)
from tntune.maps import LoRA, Site

TOKENS = torch.arange(10).reshape(2, 5)
SINGLE = {name: map for name, map in MAPS.items() if map.sites == 1}
SPEC = AdapterSpec(width=3, start="random", latent="fixed", alpha=6.0, activation="gelu")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def twins() -> tuple[nn.Module, nn.Module]:
    """Two models with equal weights."""
    first, second = Tower(), Tower()
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of a Tower's mixer and head."""
    sites = {"mixer": Site(LoRA(6, 6, 2, "random"), 0.5), "head": Site(LoRA(6, 10, 2, "random"))}
    save_adapters(adapt(Tower(), sites), tmp_path / "adapter")
    return tmp_path / "adapter"


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_round_trip_bit_for_bit(dtype: torch.dtype, tmp_path: Path, device: torch.device) -> None:
    model, other = (tower.to(device) for tower in twins())
    adapt(model, SPEC, dtype=dtype)
    save_adapters(model, tmp_path / "adapter")
    assert load_adapters(other, tmp_path / "adapter") is other
    assert same(model, other)
    assert [(n, x.spec) for n, x in adapted_layers(model)] == [(n, x.spec) for n, x in adapted_layers(other)]
    assert torch.equal(model(TOKENS.to(device)), other(TOKENS.to(device)))
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("map", SINGLE.values(), ids=SINGLE)
def test_every_map_round_trips(map: object, tmp_path: Path) -> None:
    model = nn.Sequential(adapted(map, scale=-2.0))
    save_adapters(model, tmp_path / "adapter")
    other = load_adapters(nn.Sequential(nn.Linear(map.in_features, map.out_features)), tmp_path / "adapter")
    assert other[0].spec == model[0].spec
    assert same(model[0].generator, other[0].generator)


def test_only_the_adapters_are_written(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    prefix = "base_model.model."
    assert set(weights) == {
        f"{prefix}{module}.tensorguide_gen.{name}"
        for module in ("mixer", "head")
        for name in ("lora_down", "lora_up")
    }
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((folder / CONFIG).read_text())["target_modules"] == ["mixer", "head"]


def test_merged_models_are_saved_apart(tmp_path: Path) -> None:
    model, other = twins()
    adapt(model, AdapterSpec(width=3, start="random"))
    wanted = model(TOKENS)
    merge(model)
    save_adapters(model, tmp_path / "adapter")
    assert torch.equal(load_adapters(other, tmp_path / "adapter")(TOKENS), wanted)


def test_trained_heads_are_saved_whole(tmp_path: Path) -> None:
    model, other = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in range(2))
    adapt(model, AdapterSpec(("0",), width=2, start="random"))
    model[2].requires_grad_(True)
    x = torch.randn(8, 4)
    model(x)  # running statistics, an integer counter among them
    save_adapters(model, tmp_path / "adapter", modules_to_save=["1", "2"])
    load_adapters(other, tmp_path / "adapter")
    other[0].base.load_state_dict(model[0].base.state_dict())
    assert int(other[1].num_batches_tracked) == 1
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_tied_heads_are_saved_whole(tmp_path: Path) -> None:
    model, other = Tower(), Tower()
    adapt(model, AdapterSpec(("mixer",), width=2))
    save_adapters(model, tmp_path / "adapter", modules_to_save=["embed", "head"])
    load_adapters(other, tmp_path / "adapter")
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert other.head.weight is other.embed.weight


@pytest.mark.parametrize("name", ["embed", "head"])
def test_a_tied_head_that_is_saved_alone_leaves_its_twin(tmp_path: Path, name: str) -> None:
    model, other = Tower(), Tower()
    adapt(model, AdapterSpec(("mixer",), width=2))
    save_adapters(model, tmp_path / "adapter", modules_to_save=[name])
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    key = f"base_model.model.{name}.weight"
    own = weights[key] + 1
    others = {other: value.clone() for other, value in weights.items()}  # safetensors may map the file
    save_file({**others, key: own}, tmp_path / "adapter" / "adapter_model.safetensors")
    before = other.embed.weight.detach().clone()
    load_adapters(other, tmp_path / "adapter")
    twin = {"embed": "head", "head": "embed"}[name]
    assert torch.equal(other.get_parameter(f"{name}.weight"), own)
    assert torch.equal(other.get_parameter(f"{twin}.weight"), before)


def test_tied_heads_that_were_saved_apart_are_untied(tmp_path: Path) -> None:
    model, other = Tower(), Tower()
    adapt(model, AdapterSpec(("mixer",), width=2))
    model.head.weight = nn.Parameter(model.head.weight.detach() + 1)
    save_adapters(model, tmp_path / "adapter", modules_to_save=["embed", "head"])
    load_adapters(other, tmp_path / "adapter")
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert torch.equal(other.head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["classifier"], TargetError, "Tower has no module 'classifier' to save"),
        ([""], TargetError, "Tower has no module '' to save"),
        (["mixer"], UnsupportedError, r"mixer: cannot be saved whole, since \['mixer'\] have adapters"),
        (["mixer.base"], UnsupportedError, r"mixer.base: cannot be saved whole, since \['mixer'\]"),
        (
            ["blocks"],
            UnsupportedError,
            r"blocks: cannot be saved whole, since \['blocks.0.up', 'blocks.1.up'\]",
        ),
    ],
)
def test_modules_that_cannot_be_saved(names: list[str], error: type, message: str, tmp_path: Path) -> None:
    model = adapt(Tower(), AdapterSpec(("mixer", "up"), width=2))
    with pytest.raises(error, match=message):
        save_adapters(model, tmp_path / "adapter", modules_to_save=names)
    assert not list(tmp_path.iterdir())


# What saving refuses.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_save_refuses_what_is_not_finite(value: float, tmp_path: Path) -> None:
    model = adapt(Tower(), SPEC)
    with torch.no_grad():
        model.head.generator.tt_core_1.view(-1)[3] = value
    with pytest.raises(
        NumericalError, match=r"head.tensorguide_gen.tt_core_1: has entries that are not finite"
    ):
        save_adapters(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p[:0],
            r"tt_core_1: is \(0, .*\) here, and \(\d+, .*\) as a whole; gather the whole tensors",
        ),
        (lambda p: p.flatten()[:3], r"tt_core_1: is \(3,\) here, and"),
        (
            lambda p: p.to("meta"),
            "tt_core_1: is on the meta device, without values; gather the whole tensors",
        ),
    ],
    ids=["no entries", "flat", "meta"],
)
def test_save_refuses_parts_of_tensors(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    """As ZeRO and FSDP leave them between steps."""
    model = adapt(Tower(), SPEC)
    generator = model.head.generator
    generator.tt_core_1 = nn.Parameter(change(generator.tt_core_1.detach()))
    with pytest.raises(UnsupportedError, match=message):
        save_adapters(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_save_refuses_heads_without_entries(tmp_path: Path) -> None:
    model = nn.Sequential(adapt(nn.Sequential(nn.Linear(12, 8)), SPEC), nn.Linear(8, 2))
    model[1].weight.data = torch.empty(0)
    with pytest.raises(UnsupportedError, match=r"1\.weight: has no entries; gather the whole tensors"):
        save_adapters(model, tmp_path / "adapter", modules_to_save=["1"])
    assert not list(tmp_path.iterdir())


def test_save_refuses_shared_generators(tmp_path: Path) -> None:
    layer = adapted(LoRA(4, 4, 2))
    model = nn.Sequential(layer, AdaptedLinear(nn.Linear(4, 4), layer.generator))
    with pytest.raises(UnsupportedError, match="1: shares its generator and site 0 with 0; give each"):
        save_adapters(model, tmp_path / "adapter")
    many = nn.Sequential(adapted(MAPS["joined layers"]))
    with pytest.raises(UnsupportedError, match=r"sites \[1, 2, 3, 4\] of a map that serves 6 have no layer"):
        save_adapters(many, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_save_replaces_only_when_told(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    model = adapt(Tower(), SPEC)
    with pytest.raises(OutputError, match="adapter"):
        save_adapters(model, folder)
    assert (folder / WEIGHTS).read_bytes() == before
    save_adapters(model, folder, overwrite=True)
    assert len(load_file(folder / WEIGHTS)) > 4


def test_save_refuses_a_plain_model(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Tower has no adapted layers"):
        save_adapters(Tower(), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


# What loading refuses, and that the model is then as it was.

KEY = "base_model.model.mixer.tensorguide_gen.lora_down"


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS)


def configured(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def with_nan(weights: dict[str, Tensor]) -> None:
    weights[KEY][0, 0] = float("nan")


BAD: dict[str, tuple[Callable[[Path], object], type, str]] = {
    "no folder": (
        lambda f: f.rename(f.parent / "moved"),
        CheckpointError,
        "adapter_config.json: cannot be read",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), CheckpointError, "safetensors: cannot be read"),
    "no header": (
        lambda f: (f / WEIGHTS).write_bytes(b"x" * 99),
        CheckpointError,
        "safetensors: cannot be read",
    ),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), CheckpointError, "safetensors: cannot be read"),
    "missing": (
        lambda f: edited(f, lambda w: w.pop(KEY)),
        CheckpointError,
        rf"missing keys \['{KEY}'\], unknown keys \[\]",
    ),
    "unknown": (
        lambda f: edited(f, lambda w: w.update({"head.z": torch.ones(1)})),
        CheckpointError,
        r"missing keys \[\], unknown keys \['head.z'\]",
    ),
    "shape": (
        lambda f: edited(f, lambda w: w.update({KEY: torch.ones(2, 5)})),
        CheckpointError,
        rf"{KEY}: is torch.float32 of shape \(2, 5\), the model needs .* of shape \(2, 6\)",
    ),
    "integers": (
        lambda f: edited(f, lambda w: w.update({KEY: torch.ones(2, 6, dtype=torch.int32)})),
        CheckpointError,
        rf"{KEY}: is torch.int32 of shape \(2, 6\), the model needs",
    ),
    "not finite": (lambda f: edited(f, with_nan), NumericalError, f"{KEY}: has entries that are not finite"),
    "other method": (
        lambda f: configured(f, peft_type="LORA"),
        CheckpointError,
        "adapter_config.json: peft_type: must be 'TENSORGUIDE', not 'LORA'",
    ),
    "newer": (lambda f: configured(f, format_version=9), CheckpointError, "this tntune reads 1 to 1, not 9"),
    "no sites": (lambda f: configured(f, sites={}), CheckpointError, "sites: must be an object"),
    "bad latent": (
        lambda f: configured(
            f,
            sites={"mixer": {"map": {"kind": "latent", "modes": None}, "scale": 1, "activation": "identity"}},
        ),
        CheckpointError,
        "sites: mixer: a latent of mode 'none' has no modes",
    ),
    "bad modules to save": (
        lambda f: configured(f, modules_to_save="head"),
        CheckpointError,
        "modules_to_save: must be a list of names, not 'head'",
    ),
    "lost module to save": (
        lambda f: configured(f, modules_to_save=["embed"]),
        CheckpointError,
        r"missing keys \['base_model.model.embed.weight'\]",
    ),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD.values(), ids=BAD)
def test_a_bad_folder_leaves_the_model_alone(
    spoil: Callable[[Path], object], error: type, message: str, folder: Path
) -> None:
    spoil(folder)
    model = Tower()
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=message):
        load_adapters(model, folder)
    assert list(model.modules()) == modules
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Linear(6, 6)), TargetError, r"Sequential has no modules \['head', 'mixer'\]"),
        (Tower(tokens=11), ModeError, "the base maps 6 features to 11, the map 6 to 10"),
        (
            nn.ModuleDict({"mixer": nn.Linear(6, 6), "head": nn.Embedding(6, 10)}),
            TargetError,
            "head: Embedding cannot be adapted",
        ),
    ],
)
def test_another_model_is_left_alone(model: nn.Module, error: type, message: str, folder: Path) -> None:
    modules = list(model.modules())
    with pytest.raises(error, match=message):
        load_adapters(model, folder)
    assert list(model.modules()) == modules
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_load_is_refused_until_the_first_is_unloaded(folder: Path) -> None:
    model = load_adapters(Tower(), folder)
    with pytest.raises(TargetError, match="mixer: has an adapter already; unload it first"):
        load_adapters(model, folder)
    wanted = model(TOKENS)
    assert torch.equal(load_adapters(unload(model), folder)(TOKENS), wanted)


def test_a_map_beyond_all_tensors_is_refused(folder: Path) -> None:
    sites = json.loads((folder / CONFIG).read_text())["sites"]
    sites["head"]["map"]["out_features"] = 2**64
    configured(folder, sites=sites)
    with pytest.raises(CheckpointError, match="has no tensor of shape"):
        load_adapters(Tower(), folder)
