"""The tensor family in a model: shared maps, generated once for a pass, merged, stored and loaded."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from tests.support.dense_maps import delta_train_delta
from tests.support.maps import FAMILY, tensors_of
from tests.support.models import Conv1D, adapted
from tests.support.tolerance import close
from tntune.adapters import (
    AdaptedLinear,
    AdapterSpec,
    FactorGenerator,
    adapt,
    adapted_layers,
    load_adapters,
    merge,
    save_adapters,
    set_enabled,
    unload,
    unmerge,
)
from tntune.adapters.forward_pass import ForwardPass
from tntune.errors import ModeError, SpecError, TargetError, UnsupportedError
from tntune.maps import JOINT_METHODS, METHODS, DeltaMap, DeltaTrain, Group, LoRTA, LoTR, Site, Stack
from tntune.maps.build_joint import HEAD_METHODS

WIDTH, LAYERS = 8, 3
ATTENTION = ("q", "k", "v", "o")
SQUARE = ("q", "o")


class Attention(nn.Module):
    """Queries and outputs of one size, keys and values of half of it (grouped queries)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, n) for n in (WIDTH, 4, 4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.cat([self.k(x), self.v(x)], -1)
        return x + torch.tanh(self.o(self.q(x) * torch.tanh(keys)))


class Decoder(nn.Module):
    """Blocks with a configuration, and a layer outside of them."""

    def __init__(self, run: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=WIDTH, num_attention_heads=4)
        self.layers = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.pooler = Conv1D(WIDTH, WIDTH)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if self.run is None else self.run(layer, x)
        return self.pooler(x)


def decoder(run: Callable[..., Tensor] | None = None) -> Decoder:
    """The same weights at every call."""
    torch.manual_seed(0)
    return Decoder(run)


def spec(method: str, **options: object) -> AdapterSpec:
    targets = ATTENTION if "targets" not in options else options.pop("targets")
    if method in HEAD_METHODS:
        options.setdefault("input_heads", ("o",))
    return AdapterSpec(targets, method=method, rank=None if method == "lora" else 2, **options)


def batch() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def randomised(model: nn.Module) -> nn.Module:
    """Standard normal params, so that every adapter does something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator).mul_(0.5)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    forward(batch().requires_grad_()).square().mean().backward()
    return {name: p.grad.clone() for name, p in trained(model).items()}


EVERY = pytest.mark.parametrize("method", METHODS)
JOINT = pytest.mark.parametrize("method", JOINT_METHODS)
SOME = pytest.mark.parametrize("method", ["joint", "lotr", "lorta", "tenslora_att_depth"])


# The start, training and merging, for every method.


@EVERY
def test_the_start_changes_nothing_and_trains(method: str) -> None:
    model = decoder()
    before = model(batch())
    adapt(model, spec(method))
    assert torch.equal(model(batch()), before)
    found = gradients(model, model)
    assert any(gradient.any() for gradient in found.values())
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (model(batch()) - 1).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in trained(model).values())


@EVERY
def test_merging_is_undone(method: str) -> None:
    model = randomised(adapt(decoder(), spec(method, alpha=3.0)))
    wanted, weights = model(batch()), {n: x.base.weight for n, x in adapted_layers(model)}
    merge(model)
    assert close(model(batch()), wanted)
    unmerge(model)
    assert all(layer.base.weight is weights[name] for name, layer in adapted_layers(model))
    assert torch.equal(model(batch()), wanted)


@EVERY
def test_every_layer_is_its_site_of_the_map(method: str) -> None:
    model = randomised(adapt(decoder(), spec(method, alpha=3.0)))
    for _, layer in adapted_layers(model):
        tensors = layer.generator.tensors()
        delta = layer.spec.scale * layer.generator.map.delta(tensors, tensors)[layer.site]
        assert close(layer.delta_weight(), delta)
        x = batch()
        wanted = layer.base(x) + x @ delta.mT
        assert close(layer(x), wanted)


@EVERY
def test_folders_round_trip_bit_for_bit(method: str, tmp_path: Path) -> None:
    model = randomised(adapt(decoder(), spec(method, alpha=3.0)))
    save_adapters(model, tmp_path / "adapter")
    other = load_adapters(decoder(), tmp_path / "adapter")
    assert [(n, x.spec, x.site) for n, x in adapted_layers(other)] == [
        (n, x.spec, x.site) for n, x in adapted_layers(model)
    ]
    assert torch.equal(other(batch()), model(batch()))
    assert other.state_dict().keys() == model.state_dict().keys()
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tensors = {t for _, layer in adapted_layers(model) for t in layer.generator.buffers()}
    count = sum(p.numel() for p in trained(model).values()) + sum(t.numel() for t in tensors)
    assert sum(tensor.numel() for tensor in stored.values()) == count  # what is shared is there once


# Groups.


def test_layers_of_a_shape_share_one_map() -> None:
    model = adapt(decoder(), spec("lotr", targets="all-linear"))
    generators = {}
    for name, layer in adapted_layers(model):
        generators.setdefault(layer.generator, []).append((name, layer.site))
    assert [[name for name, _ in own] for own in generators.values()] == [
        [f"layers.{i}.{role}" for i in range(LAYERS) for role in ("q", "o")],
        [f"layers.{i}.{role}" for i in range(LAYERS) for role in ("k", "v")],
        ["pooler"],
    ]
    assert all([site for _, site in own] == list(range(len(own))) for own in generators.values())
    assert len(trained(model)) == 3 * len(generators)


def test_roles_that_only_some_blocks_have_are_a_group_of_their_own() -> None:
    groups = spec("lotr", targets=r"layers\.\d\.q|layers\.[12]\.o|pooler").groups_for(decoder())
    assert {
        name: (group.map.stack.layers, group.map.stack.projections) for name, group in groups.items()
    } == {
        "8x8": (3, 1),
        "8x8-2": (2, 1),
        "8x8-3": (1, 1),
    }


def test_heads_come_from_the_configuration_and_serve_grouped_queries() -> None:
    groups = spec("lorta").groups_for(decoder())
    maps = {name: group.map for name, group in groups.items()}
    assert maps == {
        "8x8": LoRTA(Stack(8, 8, layers=3, projections=2), 2, 4, (1,)),
        "8x4": LoRTA(Stack(8, 4, layers=3, projections=2), 2, 2),
    }
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(SpecError, match="give head_dim: Sequential has no configuration that says it"):
        AdapterSpec(method="lorta").groups_for(plain)
    assert AdapterSpec(method="lorta", head_dim=4).groups_for(plain)["8x8"].map.heads == 2
    plain.config = SimpleNamespace(hidden_size=12, num_attention_heads=2, head_dim=2)
    assert AdapterSpec(method="lorta").groups_for(plain)["8x8"].map.heads == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head_dim": 3}, ModeError, r"layers\.\*\.q, layers\.\*\.o: heads of 3 do not divide 8 features"),
        (
            {"input_heads": ("v",)},
            ModeError,
            r"layers\.\*\.k, layers\.\*\.v: heads on the input .* not 8 x 4",
        ),
        ({"input_heads": ("out",)}, SpecError, r"input_heads: \['out'\] match none of the 12 layers"),
        ({"activation": "sigmoid"}, SpecError, r"only with σ\(0\) = 0: not 'sigmoid'"),
    ],
)
def test_heads_that_do_not_fit_are_refused(options: dict[str, object], error: type, message: str) -> None:
    model = decoder()
    with pytest.raises(error, match=message):
        adapt(model, spec("lorta", **options))
    assert type(model.layers[0].q) is nn.Linear


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("params", [900, 1300])
def test_a_budget_is_kept_and_used(method: str, params: int) -> None:
    """The largest rank that keeps it: one more would not, or changes nothing."""
    chosen = AdapterSpec(ATTENTION, method=method, params=params)
    model = adapt(decoder(), chosen)
    count = sum(p.numel() for p in trained(model).values())
    assert 0 < count <= params
    assert count > params / 3 or method.startswith(("lorta", "tenslora", "loretta", "joint"))


def test_a_budget_below_rank_one_is_refused() -> None:
    with pytest.raises(
        SpecError, match="a budget of 10 parameters for 12 layers is less than the 40 of rank"
    ):
        AdapterSpec(ATTENTION, method="lotr", params=10).groups_for(decoder())


def test_exact_groups_can_be_given() -> None:
    group = Group(LoTR(Stack(8, 8, layers=2), 3), ("layers.0.q", "layers.2.q"), (0.5, 2.0))
    model = adapt(decoder(), {"queries": group, "pooler": Site(LoTR(Stack(8, 8), 1))})
    layers = dict(adapted_layers(model))
    assert {name: (layer.site, layer.spec.scale) for name, layer in layers.items()} == {
        "layers.0.q": (0, 0.5),
        "layers.2.q": (1, 2.0),
        "pooler": (0, 1.0),
    }
    with pytest.raises(SpecError, match=r"modules \['layers.0.q'\] are named twice"):
        adapt(decoder(), {"queries": group, "layers.0.q": Site(LoTR(Stack(8, 8), 1))})
    with pytest.raises(TargetError, match=r"has no modules \['layers.9.q'\]"):
        adapt(decoder(), {"queries": Group(group.map, ("layers.0.q", "layers.9.q"), (1, 1))})


def test_a_mixed_model_is_stored_whole(tmp_path: Path) -> None:
    """Groups and single layers in one folder, and a second group of the same shape under its own name."""
    group = Group(LoTR(Stack(8, 8, layers=2), 3), ("layers.0.q", "layers.2.q"), (0.5, 2.0))
    model = randomised(adapt(decoder(), {"queries": group, "pooler": Site(LoTR(Stack(8, 8), 1))}))
    save_adapters(model, tmp_path / "adapter", modules_to_save=["layers.1.k"])
    other = load_adapters(decoder(), tmp_path / "adapter")
    assert torch.equal(other(batch()), model(batch()))
    keys = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert {key.removeprefix("base_model.") for key in keys} == {
        *(
            f"tensorguide_shared.{name}.tn_{leg}"
            for name in ("8x8", "8x8-2")
            for leg in ("in", "core", "out")
        ),
        "model.layers.1.k.weight",
        "model.layers.1.k.bias",
    }


# One generation for a pass.


class Counted:
    """How often a generator makes factors, of all sites and of one."""

    def __init__(self, generator: FactorGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all = self.single = 0
        make = generator._factors

        def counted(drawn: dict[str, Tensor], site: int | None) -> object:
            self.all += site is None
            self.single += site is not None
            return make(drawn, site)

        monkeypatch.setattr(generator, "_factors", counted)


def generators_of(model: nn.Module) -> list[FactorGenerator]:
    return list({layer.generator: None for _, layer in adapted_layers(model)})


@JOINT
def test_a_pass_generates_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(adapt(decoder(), spec(method)))
    counts = [Counted(generator, monkeypatch) for generator in generators_of(model)]
    for passes in (1, 2):
        model(batch()).sum().backward()
        assert all((count.all, count.single) == (passes, 0) for count in counts)
    model.layers[1].q(batch()).sum().backward()  # outside of a pass a layer is on its own
    assert [count.single for count in counts] == [1, *[0] * (len(counts) - 1)]


@JOINT
def test_a_pass_has_the_values_and_gradients_of_its_layers(method: str) -> None:
    model = randomised(adapt(decoder(), spec(method)))
    in_one_go, values = gradients(model, model), model(batch())
    assert close(model.forward(batch()), values)  # without the call there is no pass
    for name, gradient in gradients(model, model.forward).items():
        assert close(in_one_go[name], gradient)


@SOME
def test_evaluation_generates_only_after_a_change(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(adapt(decoder(), spec(method))).eval()
    counts = [Counted(generator, monkeypatch) for generator in generators_of(model)]
    with torch.no_grad():
        first, second = model(batch()), model(batch())
        assert all((count.all, count.single) == (1, 0) for count in counts)
        trained(model)[next(iter(trained(model)))].mul_(2)
        third = model(batch())
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with torch.inference_mode():
        assert torch.equal(model(batch()), third)


@SOME
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointing_changes_no_gradient(
    method: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = randomised(adapt(decoder(), spec(method)))
    model = randomised(adapt(decoder(partial(checkpoint, use_reentrant=reentrant)), spec(method)))
    wanted = gradients(plain, plain)
    counts = [Counted(generator, monkeypatch) for generator in generators_of(model)]
    for passes in (1, 2):
        for name, gradient in gradients(model, model).items():
            assert close(gradient, wanted[name])
        assert all(count.all == passes for count in counts)
        assert reentrant or all(count.single == 0 for count in counts)


def test_reentrant_checkpoints_are_refused_where_processes_train_together() -> None:
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        for method, reentrant in (("lora", True), ("lotr", False)):
            gradients(
                model := adapt(decoder(partial(checkpoint, use_reentrant=reentrant)), spec(method)), model
            )
        model = adapt(decoder(partial(checkpoint, use_reentrant=True)), spec("lotr"))
        with pytest.raises(
            UnsupportedError, match="gives a map that layers share wrong gradients where 2 proc"
        ):
            gradients(model, model)
    finally:
        distributed.destroy_process_group()


@SOME
def test_two_passes_before_one_backward(method: str) -> None:
    model = randomised(adapt(decoder(partial(checkpoint, use_reentrant=False)), spec(method)))
    twice = gradients(model, lambda x: model(x) + model(2 * x))
    plain = randomised(adapt(decoder(), spec(method)))
    for name, gradient in gradients(plain, lambda x: plain.forward(x) + plain.forward(2 * x)).items():
        assert close(twice[name], gradient)


def test_a_failed_pass_leaves_nothing_open() -> None:
    model = randomised(adapt(decoder(), spec("lotr")))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(2, WIDTH + 1))
    for _ in range(2):
        model.layers[0].q(batch()).sum().backward()  # each with a graph of its own


@SOME
def test_functional_calls_and_jacobians(method: str) -> None:
    model = randomised(adapt(decoder().double(), spec(method), dtype=torch.float64))
    own = {name: parameter.detach() for name, parameter in trained(model).items()}
    x = batch().double()
    found = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)).sum())(own)
    for name, gradient in zip(own, torch.autograd.grad(model(x).sum(), trained(model).values()), strict=True):
        assert close(found[name], gradient)
    doubled = {name: 2 * tensor for name, tensor in own.items()}
    with torch.no_grad():
        assert not torch.equal(torch.func.functional_call(model, doubled, (x,)), model(x))


@SOME
def test_copies_and_pickles_share_within_themselves(method: str) -> None:
    model = randomised(adapt(decoder(), spec(method)))
    model(batch()).sum().backward()
    wanted = model(batch())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch()), wanted)
        assert len(generators_of(twin)) == len(generators_of(model))
        assert not set(generators_of(twin)) & set(generators_of(model))
        for generator in generators_of(twin):
            with torch.no_grad():
                generator.weight.mul_(0)
        assert not torch.equal(twin(batch()), wanted)
    assert torch.equal(model(batch()), wanted)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = adapt(decoder(), spec(method))
    fresh.load_state_dict(torch.load(buffer))
    assert torch.equal(fresh(batch()), wanted)


@pytest.mark.parametrize("method", ["lotr", "joint"])
def test_compiles_into_one_graph(method: str) -> None:
    torch.compiler.reset()
    model = randomised(adapt(decoder(), spec(method)))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert close(compiled(batch()), model(batch()))
    wanted = gradients(model, model)
    for name, gradient in gradients(model, compiled).items():
        assert close(gradient, wanted[name])


def test_unloading_takes_the_pass_out() -> None:
    model = decoder()
    before = model(batch())
    randomised(adapt(model, spec("lotr")))
    assert any(
        isinstance(getattr(h, "__self__", None), ForwardPass) for h in model._forward_pre_hooks.values()
    )
    set_enabled(model, False)
    assert torch.equal(model(batch()), before)
    assert unload(model) is model
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert torch.equal(model(batch()), before)


# ΔW as one network is applied through its cut.


def test_a_delta_train_is_applied_as_core_by_core() -> None:
    """The published code contracts x with one core after the other; so does this, digit by digit."""
    map = FAMILY["delta train"]
    assert isinstance(map, DeltaTrain)
    layer = adapted(map, dtype=torch.float64, base=nn.Linear(6, 4, dtype=torch.float64))
    x = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cores = list(tensors_of(map)[0].values())
    state = x.reshape(7, *map.in_modes[::-1])  # the last digit is the least significant, and goes first
    state = state.unsqueeze(-1)  # (b, .., n_2, n_1, r)
    for core in cores[: len(map.in_modes)]:
        state = torch.einsum("b...nr,rns->b...s", state.movedim(-2, -2), core)
    for core in cores[len(map.in_modes) :]:
        state = torch.einsum("b...r,rns->b...ns", state, core)
    assert close(layer(x) - layer.base(x), state.reshape(7, 4))
    dense = delta_train_delta([core.numpy() for core in cores], map.in_modes, map.out_modes)
    assert close(layer.delta_weight(), torch.from_numpy(dense)[0])


def test_no_layer_forms_delta() -> None:
    """Neither forward nor backward has a tensor as large as ΔW."""
    map = LoTR(Stack(300, 200, layers=2), 2)
    layer = AdaptedLinear(nn.Linear(300, 200), FactorGenerator(map, *tensors_of(map, dtype=torch.float32)))
    assert isinstance(map, DeltaMap)
    sizes: list[int] = []

    def noted(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        y = layer(torch.ones(3, 300)) - layer.base(torch.ones(3, 300))
    y.sum().backward()
    assert sizes
    assert max(sizes) < 300 * 200
