"""adapt and its undoing: all or nothing, the base untouched, the same function where promised."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.maps import MAPS
from tests.support.models import Tower
from tests.support.tolerance import close
from tntune.adapters import (
    AdaptedLinear,
    AdapterSpec,
    adapt,
    adapted_layers,
    install,
    merge,
    set_enabled,
    unload,
    unmerge,
)
from tntune.adapters.spec import target_names
from tntune.errors import ModeError, NumericalError, SpecError, TargetError, UnsupportedError
from tntune.maps import LoRA, Site

TOKENS = torch.arange(10).reshape(2, 5)
SPECS = {
    "tensorguide": AdapterSpec(width=3),
    "latent": AdapterSpec(width=3, latent="fixed"),
    "concat": AdapterSpec(width=4, layout="concat", latent="fixed"),
    "io digits": AdapterSpec(width=4, layout="io1 w io2"),
    "nonlinear": AdapterSpec(width=3, activation="gelu"),
    "mean": AdapterSpec(width=2, latent="mean"),
    "tt_lora": AdapterSpec(width=3, method="tt_lora"),
    "lora": AdapterSpec(width=3, method="lora"),
}
EVERY = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
RANDOM = AdapterSpec(width=3, start="random", alpha=6.0)


def adapted_tower(spec: AdapterSpec = RANDOM) -> nn.Module:
    return adapt(Tower(), spec)


def snapshot(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """Every parameter's value and whether it trains, by the identity of its module tree."""
    return {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}


def unchanged(model: nn.Module, before: dict[str, tuple[Tensor, bool]]) -> bool:
    after = snapshot(model)
    return list(after) == list(before) and all(
        torch.equal(after[name][0], value) and after[name][1] == trains
        for name, (value, trains) in before.items()
    )


@EVERY
def test_identity_at_the_start(spec: AdapterSpec) -> None:
    model = Tower()
    wanted = model(TOKENS)
    assert adapt(model, spec) is model
    assert torch.equal(model(TOKENS), wanted)
    assert torch.equal(model.eval()(TOKENS), wanted)


@EVERY
def test_only_the_adapters_train(spec: AdapterSpec) -> None:
    model = adapt(Tower(), spec)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {
        f"{path}.generator.{key}" for path, x in adapted_layers(model) for key in x.spec.map.param_shapes
    }
    assert trained == wanted


@EVERY
def test_training_moves_every_param_and_no_base(spec: AdapterSpec) -> None:
    model = adapt(Tower(), spec)
    before = snapshot(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS).logsumexp(-1).sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        assert torch.equal(parameter, before[name][0]) == (not parameter.requires_grad)


def test_the_generator_decides_the_start() -> None:
    states = []
    for seed in (1, 1, 2):
        model = adapt(Tower(), RANDOM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        states.append([layer.delta_weight() for _, layer in adapted_layers(model)])
    assert states[0][0].dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))


def test_sites_may_be_given_one_by_one() -> None:
    sites = {"blocks.1.up": Site(LoRA(6, 8, 2, "random"), 0.5), "mixer": Site(LoRA(6, 6, 1), 1.0, "relu")}
    model = adapt(Tower(), sites)
    assert {name: layer.spec for name, layer in adapted_layers(model)} == sites


def test_modes_of_training_are_kept() -> None:
    model = Tower()
    model.blocks[0].eval()
    adapt(model, RANDOM)
    assert not model.blocks[0].up.training
    assert not model.blocks[0].up.generator.training
    assert model.blocks[1].up.generator.training
    unload(model)
    assert not model.blocks[0].up.training
    assert model.blocks[1].up.training


# All or nothing.


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ({}, TargetError, r"Tower has no modules \[\], or none was named"),
        (
            {"mixer": Site(LoRA(6, 6, 2)), "q": Site(LoRA(6, 6, 2))},
            TargetError,
            r"Tower has no modules \['q'\]",
        ),
        (
            {"mixer": Site(LoRA(6, 6, 2)), "head": Site(LoRA(6, 6, 2))},
            ModeError,
            "maps 6 features to 10, the map 6 to 6",
        ),
        (
            {"mixer": Site(LoRA(6, 6, 2)), "embed": Site(LoRA(6, 6, 2))},
            TargetError,
            "embed: Embedding cannot be",
        ),
        ({"": Site(LoRA(6, 6, 2))}, TargetError, "the model itself cannot be replaced"),
        ({"mixer": Site(MAPS["joined layers"])}, SpecError, "mixer: its map serves 6 layers; a Group names"),
    ],
)
def test_a_bad_site_changes_nothing(sites: dict[str, Site], error: type, message: str) -> None:
    model = Tower()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        adapt(model, sites)
    assert unchanged(model, before)


def test_a_map_of_many_layers_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(
        SpecError, match="0: its map serves 6 layers; a Group names them, or each layer needs a map"
    ):
        adapt(model, {"0": Site(MAPS["joined layers"])})
    assert model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({}, SpecError, r"there are tensors for \[\], but sites for \['head', 'mixer'\]"),
        ({"mixer": {}, "head": {}}, SpecError, r"params: missing \['lora_down', 'lora_up'\]"),
        (
            {
                "mixer": {"lora_down": torch.ones(2, 6), "lora_up": torch.ones(6, 2)},
                "head": {"lora_down": torch.ones(2, 6)},
            },
            SpecError,
            r"params: missing \['lora_up'\]",
        ),
        (
            {
                "mixer": {"lora_down": torch.ones(2, 6), "lora_up": torch.ones(6, 2), "z": torch.ones(1)},
                "head": {},
            },
            SpecError,
            r"fixed: missing \[\], unknown \['z'\]",
        ),
    ],
)
def test_bad_tensors_change_nothing(tensors: dict[str, dict[str, Tensor]], error: type, message: str) -> None:
    model = Tower()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        install(model, {"mixer": Site(LoRA(6, 6, 2)), "head": Site(LoRA(6, 10, 2))}, tensors)
    assert unchanged(model, before)


# Modules and weights at several places.


def test_a_module_at_several_places_is_adapted_at_all() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.ModuleDict({"again": shared}))
    adapt(model, AdapterSpec(width=2, start="random"))
    layer = model[0]
    assert isinstance(layer, AdaptedLinear)
    assert model[2] is layer
    assert model[3]["again"] is layer
    assert [name for name, _ in adapted_layers(model)] == ["0"]
    x = torch.randn(3, 4)
    assert close(model[:3](x), layer(torch.tanh(layer(x))))
    unload(model)
    assert model[0] is model[2] is model[3]["again"] is shared


def test_a_module_goes_by_any_of_its_names() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"one": shared, "two": shared, "three": nn.Linear(4, 4)})
    assert target_names(model, ("two",)) == target_names(model, "(.*[.])?two") == ("one",)
    assert target_names(model, ("three", "two", "one")) == ("one", "three")
    assert target_names(model, "all-linear", ("two",)) == ("three",)


def test_tied_weights_stay_tied_and_intact() -> None:
    model = adapted_tower()
    kept = model.embed.weight.clone()
    assert model.head.base.weight is model.embed.weight
    merge(model)
    assert torch.equal(model.embed.weight, kept)
    assert not torch.equal(model.head.base.weight, kept)
    unmerge(model)
    assert model.head.base.weight is model.embed.weight
    assert torch.equal(model.embed.weight, kept)


# Merging, switching, unloading.


@pytest.mark.parametrize("name", [name for name in SPECS if name != "nonlinear"])
def test_merge_keeps_the_function_and_unmerge_the_weights(name: str, device: torch.device) -> None:
    model, tokens = adapt(Tower(), SPECS[name]).to(device), TOKENS.to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0)
    wanted, before = model(tokens), snapshot(model)
    merge(model)
    assert close(model(tokens), wanted)
    unmerge(model)
    assert unchanged(model, before)
    assert torch.equal(model(tokens), wanted)


def test_merge_is_all_or_nothing() -> None:
    for wrong, error, message in (
        (
            Site(LoRA(6, 10, 2), 1.0, "relu"),
            UnsupportedError,
            "an adapter with activation 'relu' is not a matrix",
        ),
        (Site(LoRA(6, 10, 2, "random"), 1e39), NumericalError, "non-finite entries"),
    ):
        model = adapt(Tower(), {"mixer": Site(LoRA(6, 6, 2, "random")), "head": wrong})
        before, y = snapshot(model), model(TOKENS)
        with pytest.raises(error, match=message):
            merge(model)
        assert unchanged(model, before)
        assert not any(layer.merged for _, layer in adapted_layers(model))
        assert torch.equal(model(TOKENS), y) or not y.isfinite().all()


def test_merge_leaves_what_was_merged_by_hand() -> None:
    model = adapt(
        Tower(), {"mixer": Site(LoRA(6, 6, 2, "random")), "head": Site(LoRA(6, 10, 2), 1.0, "relu")}
    )
    model.mixer.merge()
    with pytest.raises(UnsupportedError, match="is not a matrix"):
        merge(model)
    assert model.mixer.merged


def test_disabled_is_the_base_bit_for_bit() -> None:
    plain = Tower()
    wanted = plain(TOKENS)
    model = adapt(plain, RANDOM)
    changed = model(TOKENS)
    assert not torch.equal(changed, wanted)
    set_enabled(model, False)
    assert torch.equal(model(TOKENS), wanted)
    set_enabled(model, True)
    assert torch.equal(model(TOKENS), changed)


def test_merged_adapters_cannot_be_switched() -> None:
    model = adapted_tower()
    model.mixer.merge()
    with pytest.raises(
        UnsupportedError, match=r"adapters are merged into \['mixer'\]; unmerge the model first"
    ):
        set_enabled(model, False)
    assert all(layer.enabled for _, layer in adapted_layers(model))


def test_unload_drops_what_is_not_merged() -> None:
    plain = Tower()
    modules, wanted = list(plain.modules()), plain(TOKENS)
    assert unload(adapt(plain, RANDOM)) is plain
    assert list(plain.modules()) == modules
    assert torch.equal(plain(TOKENS), wanted)


def test_unload_keeps_what_is_merged() -> None:
    model = adapted_tower()
    wanted = model(TOKENS)
    merge(model)
    unload(model)
    assert close(model(TOKENS), wanted)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    adapt(model, SPECS["tensorguide"])
    assert close(model(TOKENS), wanted)


@pytest.mark.parametrize(
    "verb", [adapted_layers, merge, unmerge, unload, lambda model: set_enabled(model, True)]
)
def test_nothing_is_silent_on_a_plain_model(verb: object) -> None:
    with pytest.raises(TargetError, match="Tower has no adapted layers"):
        verb(Tower())


def test_half_precision_models_keep_float32_params() -> None:
    model = adapt(Tower().bfloat16(), RANDOM)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(TOKENS).dtype == torch.bfloat16


def test_adapters_go_where_the_base_is(device: torch.device) -> None:
    model = adapt(Tower().to(device), SPECS["concat"])
    assert {t.device.type for t in model.state_dict().values()} == {device.type}
    assert model(TOKENS.to(device)).device.type == device.type


def test_a_layer_without_a_shape_is_named_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    with pytest.raises(TargetError, match=r"\['1.weight', '1.bias'\] have no shape yet; call the model once"):
        adapt(model, AdapterSpec(("0",)))
    assert model[0].weight.requires_grad


def test_a_second_adapter_and_a_bare_layer_are_explained() -> None:
    model = adapt(nn.Sequential(nn.Linear(4, 4)), AdapterSpec(width=2))
    with pytest.raises(
        TargetError, match="Sequential has adapters already, and nothing else that 'all-linear'"
    ):
        adapt(model, AdapterSpec(width=2))
    with pytest.raises(TargetError, match="the model is a single Linear; put it into a container"):
        adapt(nn.Linear(4, 4), AdapterSpec(width=2))
