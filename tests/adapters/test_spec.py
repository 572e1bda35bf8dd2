"""AdapterSpec and targets: what is matched, what is refused, and by which words."""

import math

import pytest
import torch
from torch import nn

from tests.support.models import Conv1D, Tower
from tntune.adapters import AdapterSpec, adapt
from tntune.adapters.spec import target_names
from tntune.errors import SpecError, TargetError
from tntune.maps import LoRA, TensorGuide, TTLoRA

LINEARS = ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "mixer", "head")


@pytest.mark.parametrize(
    ("targets", "exclude", "found"),
    [
        ("all-linear", (), LINEARS),
        ("all-linear", ("head", "blocks.0.up"), ("blocks.0.down", "blocks.1.up", "blocks.1.down", "mixer")),
        (("up",), (), ("blocks.0.up", "blocks.1.up")),
        (("up", "mixer"), ("blocks.1.up",), ("blocks.0.up", "mixer")),
        (("1.up",), (), ("blocks.1.up",)),
        (r".*\.(up|down)", (), LINEARS[:4]),
        (r"head", (), ("head",)),
    ],
)
def test_targets(targets: str | tuple[str, ...], exclude: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert target_names(Tower(), targets, exclude) == found
    assert tuple(AdapterSpec(targets, exclude).sites_for(Tower())) == found


@pytest.mark.parametrize(
    ("targets", "exclude", "error", "message"),
    [
        (("q_proj", "up"), (), TargetError, r"\['q_proj'\] match no module of Tower"),
        ("all-linear", ("lm_head",), TargetError, r"\['lm_head'\] match no module of Tower"),
        (r"layers\..*", (), TargetError, r"targets 'layers.*' \(without \[\]\) match no module of Tower"),
        (("up",), ("up",), TargetError, r"targets \('up',\) \(without \['up'\]\) match no module"),
        ((), (), TargetError, r"targets \(\) \(without \[\]\) match no module"),
        (
            ("embed",),
            (),
            TargetError,
            "embed: Embedding cannot be adapted: it is neither nn.Linear nor Conv1D",
        ),
        (("blocks.0",), (), TargetError, "blocks.0: Block cannot be adapted"),
        ("blocks.*", (), TargetError, "blocks: ModuleList cannot be adapted"),
        ("(", (), SpecError, r"targets '\(' is not a regular expression: missing"),
    ],
)
def test_targets_that_are_refused(
    targets: str | tuple[str, ...], exclude: tuple[str, ...], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        target_names(Tower(), targets, exclude)


def test_the_outputs_of_attention_are_never_called() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(4, 4)})
    assert target_names(model, "all-linear") == ("linear",)
    with pytest.raises(
        TargetError, match=r"attention.out_proj: nn.MultiheadAttention never calls its out_proj"
    ):
        target_names(model, ("out_proj",))
    with pytest.raises(TargetError, match="match no module of MultiheadAttention"):
        target_names(model["attention"], "all-linear")


def test_adapted_layers_are_not_adapted_again() -> None:
    model = adapt(Tower(), AdapterSpec(("up",), width=2))
    assert target_names(model, "all-linear") == ("blocks.0.down", "blocks.1.down", "mixer", "head")
    with pytest.raises(TargetError, match=r"blocks.0.up: has an adapter already; unload it first"):
        target_names(model, ("up",))
    with pytest.raises(TargetError, match=r"blocks.0.up.base: has an adapter already"):
        target_names(model, ("base",))


def test_a_model_that_is_one_layer_has_no_place_for_an_adapter() -> None:
    with pytest.raises(TargetError, match="the model is a single Linear; put it into a container"):
        target_names(nn.Linear(4, 3), "all-linear")


def test_integer_layers_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[1].weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
    assert target_names(model, "all-linear") == ("0",)


def test_every_target_gets_a_map_of_its_size() -> None:
    sites = AdapterSpec(width=3, rank=2, alpha=6.0, activation="relu").sites_for(Tower())
    for name, site in sites.items():
        sizes = {"up": (6, 8), "down": (8, 6), "mixer": (6, 6), "head": (6, 10)}[name.split(".")[-1]]
        assert isinstance(site.map, TensorGuide)
        assert (site.map.in_features, site.map.out_features) == sizes
        assert (site.map.width, max(site.map.ranks), site.scale, site.activation) == (3, 2, 2.0, "relu")


def test_no_two_targets_share_a_latent() -> None:
    sites = AdapterSpec(width=2, latent="fixed", seed=9).sites_for(Tower())
    assert [site.map.latent.seed for site in sites.values()] == [9, 10, 11, 12, 13, 14]
    trains = AdapterSpec(method="tt_lora", width=2, latent="fixed").sites_for(Tower()).values()
    seeds = [t.latent.seed for site in trains for t in (site.map.down_train, site.map.up_train)]
    assert len(set(seeds)) == len(seeds) == 12


@pytest.mark.parametrize(
    ("method", "kind"), [("tensorguide", TensorGuide), ("tt_lora", TTLoRA), ("lora", LoRA)]
)
def test_methods(method: str, kind: type) -> None:
    assert isinstance(AdapterSpec(method=method).map_for(12, 8), kind)


def test_layouts_and_starts_reach_the_map() -> None:
    map = AdapterSpec(layout="concat", start="paper", width=4).map_for(12, 8)
    assert (map.layout.kind, map.start) == ("concat", "paper")


def test_lists_become_tuples() -> None:
    assert AdapterSpec(["up"], ["head"]) == AdapterSpec(("up",), ("head",))
    assert hash(AdapterSpec(["up"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a positive integer, not 0"),
        ({"rank": 0}, "rank must be a positive integer, not 0"),
        ({"rank": 2.0}, "rank must be a positive integer, not 2.0"),
        ({"alpha": 0}, "alpha is 0, so that no adapter would do anything"),
        ({"alpha": math.inf}, "alpha must be a finite number, not inf"),
        ({"alpha": "16"}, "alpha must be a finite number, not '16'"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"exclude": "head"}, "exclude is a list of names, not one string 'head'"),
    ],
)
def test_specifications_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        AdapterSpec(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "vera"}, "method must be one of tensorguide, tt_lora, lora, .*not 'vera'"),
        ({"method": "lora", "rank": 4}, "method 'lora' has neither TT-rank nor latent"),
        ({"method": "lora", "layout": "io w"}, "method 'lora' has no layout"),
        ({"layout": "side f"}, "layout 'side f' has no width leg w"),
        ({"latent": "gauss"}, "latent mode must be one of"),
        ({"start": "warm"}, "start must be one of"),
        ({"latent": "mean", "activation": "relu"}, "exact only for a linear activation"),
    ],
)
def test_specifications_that_no_model_can_use(options: dict[str, object], message: str) -> None:
    model = Tower()
    with pytest.raises(SpecError, match=message):
        adapt(model, AdapterSpec(**options))
    assert isinstance(model.mixer, Conv1D)
    assert all(parameter.requires_grad for parameter in model.parameters())
