"""Layers with equal maps are generated together: values and gradients of layers alone, in fewer launches.

Every test of validity compares with the same layers called by ``model.forward``, where there is no pass.
"""

import copy
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.support.tolerance import close
from tntune.adapters import (
    AdapterSpec,
    FactorGenerator,
    adapt,
    adapted_layers,
    merge,
    set_enabled,
    unmerge,
)
from tntune.adapters.batch import CPU_ENTRIES, is_batched
from tntune.adapters.slices import Record, slices, stacked
from tntune.errors import UnsupportedError
from tntune.maps import Geometry, build_map
from tntune.maps.chain import Chains, generated_entries

SIZE, DEPTH = 12, 4
SPECS = {
    "tensorguide": AdapterSpec(width=4, start="random"),
    "subtracted": AdapterSpec(width=4, layout="concat"),
    "latent": AdapterSpec(width=4, latent="fixed", start="random"),
    "mean": AdapterSpec(width=2, latent="mean", start="random"),
    "products": AdapterSpec(width=40, rank=2, start="random"),
    "tt_lora": AdapterSpec(width=4, method="tt_lora", start="random"),
    "nonlinear": AdapterSpec(width=4, activation="silu", start="random"),
}
ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
ONE = SPECS["tensorguide"]
Run = Callable[..., Tensor]


class Tower(nn.Module):
    """Equal layers one after the other, of which some may be passed over, taken twice, or run otherwise."""

    def __init__(self, depth: int = DEPTH, run: Run | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(depth))
        self.order = list(range(depth))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        for i in self.order:
            layer = self.layers[i]
            x = torch.tanh(layer(x) if self.run is None else self.run(layer, x))
        return x


def tower(spec: AdapterSpec = ONE, depth: int = DEPTH, run: Run | None = None) -> Tower:
    """The same weights and params at every call, away from the start."""
    torch.manual_seed(0)
    model = adapt(Tower(depth, run), spec, dtype=torch.float64).double()
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch() -> Tensor:
    return torch.randn(3, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def generators(model: nn.Module) -> list[FactorGenerator]:
    return [layer.generator for _, layer in adapted_layers(model)]


def gradients(model: nn.Module, call: Run | None = None) -> dict[str, Tensor | None]:
    """Gradients of a loss of one call, by default one of the model itself, which is a pass."""
    model.zero_grad()
    (model if call is None else call)(batch().requires_grad_()).square().sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in trained(model).items()}


def equal(own: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> bool:
    assert own.keys() == other.keys()
    return all(
        (mine is None and wanted is None)
        or (mine is not None and wanted is not None and bool(wanted.any()) and close(mine, wanted))
        for mine, wanted in zip(own.values(), other.values(), strict=True)
    )


def agrees(model: Tower) -> bool:
    """Whether a pass has the values and gradients of its layers alone."""
    alone = gradients(model, model.forward)
    return close(model(batch()), model.forward(batch())) and equal(gradients(model), alone)


class Alone:
    """How often each generator of a model makes its factors by itself."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = [0] * len(generators(model))
        for i, generator in enumerate(generators(model)):
            monkeypatch.setattr(generator, "_factors", partial(self.count, i, generator._factors))
            monkeypatch.setattr(generator, "_products", partial(self.count, i, generator._products))

    def count(self, i: int, make: Callable[..., Any], *arguments: object) -> Any:
        self.counts[i] += 1
        return make(*arguments)


# The same function.


@ALL
def test_a_pass_has_the_values_and_gradients_of_its_layers(
    spec: AdapterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tower(spec)
    wanted, alone = model.forward(batch()), gradients(model, model.forward)
    counted = Alone(model, monkeypatch)
    for _ in range(2):
        assert close(model(batch()), wanted)
        assert equal(gradients(model), alone)
    assert counted.counts == [0] * DEPTH


def test_derivatives_of_gradients() -> None:
    """A gradient penalty: the backward of a backward goes through stacks and slices."""
    model = tower()

    def penalty(call: Run) -> list[Tensor]:
        x = batch().requires_grad_()
        params = list(trained(model).values())
        first = torch.autograd.grad(call(x).sum(), [x, *params], create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), params))

    assert all(map(close, penalty(model), penalty(model.forward)))


@ALL
def test_functional_calls_generate_layer_by_layer(spec: AdapterSpec) -> None:
    model = tower(spec)
    own = {name: parameter.detach() for name, parameter in trained(model).items()}
    call = partial(torch.func.functional_call, model)
    found = torch.func.grad(lambda params: call(params, (batch(),)).square().sum())(own)
    assert equal(found, gradients(model, model.forward))
    doubled = {name: 2 * tensor for name, tensor in own.items()}
    other = copy.deepcopy(model)
    other.load_state_dict(doubled, strict=False)
    assert close(call(doubled, (batch(),)), other.forward(batch()))


# What changes in between.


def double(model: Tower) -> None:
    with torch.no_grad():
        generators(model)[1].tt_core_0.mul_(2)


def step(model: Tower) -> None:
    gradients(model)
    torch.optim.Adam(trained(model).values(), lr=0.1).step()


def load(model: Tower) -> None:
    model.load_state_dict({name: tensor + 0.1 for name, tensor in model.state_dict().items()})


def assign(model: Tower) -> None:
    model.load_state_dict({n: t + 0.1 for n, t in model.state_dict().items()}, assign=True)


def replace(model: Tower) -> None:
    generators(model)[2].tt_core_0 = nn.Parameter(2 * generators(model)[2].tt_core_0.detach())


def freeze_one(model: Tower) -> None:
    generators(model)[1].requires_grad_(False)


def freeze_a_core(model: Tower) -> None:
    generators(model)[1].tt_core_0.requires_grad_(False)


def cast_one(model: Tower) -> None:
    generators(model)[1].to(torch.float32)


def skip_one(model: Tower) -> None:
    model.order = [0, 1, 3]


def only_one(model: Tower) -> None:
    model.order = [2]


def take_one_twice(model: Tower) -> None:
    model.order = [0, 1, 1, 3, 2]


def switch_one_off(model: Tower) -> None:
    model.layers[1].enabled = False


def merge_one(model: Tower) -> None:
    model.layers[1].merge()


def evaluate(model: Tower) -> None:
    model.eval()
    with torch.no_grad():
        model(batch())


def nothing(model: Tower) -> None: ...


CHANGES = [
    nothing, double, step, load, assign, replace, freeze_one, freeze_a_core, cast_one, skip_one, only_one,
    take_one_twice, switch_one_off, merge_one, evaluate,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_passes_is_seen(change: Callable[[Tower], None]) -> None:
    model = tower()
    assert agrees(model)
    change(model)
    assert agrees(model)
    double(model)
    assert agrees(model)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_forwards_of_one_backward_is_seen(change: Callable[[Tower], None]) -> None:
    """The first forward keeps what it used: its params as they were."""
    model = tower()

    def both(call: Run, x: Tensor) -> Tensor:
        with torch.no_grad():
            generators(model)[1].tt_core_0.fill_(0.5)
        first = call(x)
        change(model)
        return first.detach() + call(x)

    before = copy.deepcopy(model)
    together = gradients(model, partial(both, model))
    model = before
    assert equal(together, gradients(model, partial(both, model.forward)))


def test_a_param_that_changes_inside_of_a_pass_is_seen() -> None:
    model = tower()

    def changing(layer: nn.Module, x: Tensor) -> Tensor:
        if layer is model.layers[1]:
            with torch.no_grad():
                model.layers[2].generator.tt_core_0.mul_(2)
        return layer(x)

    start = copy.deepcopy(model.state_dict())
    model.run = changing
    found = model(batch())
    model.load_state_dict(start)
    assert close(found, model.forward(batch()))
    model.load_state_dict(start)
    model.run = None
    assert not torch.equal(found, model.forward(batch()))


def test_a_pass_is_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread would go backward through a graph that is not its own."""
    model = tower()
    counted = Alone(model, monkeypatch)
    with ThreadPoolExecutor(1) as pool:

        def elsewhere(layer: nn.Module, x: Tensor) -> Tensor:
            pool.submit(lambda: layer(x.detach()).sum().backward()).result()
            return layer(x)

        model.run = elsewhere
        loss = model(batch()).square().sum()
        assert counted.counts == [1] * DEPTH
        loss.backward()


def test_a_layer_that_a_pass_leaves_out_has_no_gradient() -> None:
    """None, and not zeros, by which an optimiser with momentum or decay would move it."""
    model = tower()
    gradients(model)
    skip_one(model)
    for _ in range(2):  # in the first pass its slices are made, in the second no more
        found = gradients(model)
        assert all((gradient is None) == name.startswith("layers.2.") for name, gradient in found.items())


def test_what_is_never_asked_for_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower()
    made: list[int] = []
    monkeypatch.setattr(torch.func, "vmap", noting_stacks(made, torch.func.vmap))
    gradients(model)
    set_enabled(model, False)
    model(batch())
    set_enabled(model, True)
    model.order = [0, 1, 2]
    gradients(model)
    gradients(model)
    model.order = [0, 1, 2, 3]
    gradients(model)  # the last generates alone, and is asked
    gradients(model)
    with torch.no_grad():
        model(batch())
    model.eval()
    model(batch())
    assert made == [4, 4, 3, 3, 4, 4]


def noting_stacks(made: list[int], vmap: Callable[..., Any]) -> Callable[..., Any]:
    """``vmap``, with a note of how many layers each call is for."""

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(params: dict[str, Tensor], fixed: dict[str, Tensor]) -> Any:
            made.append(len(next(iter(params.values()))))
            return vmap(function)(params, fixed)

        return run

    return noting


def test_merging_and_switching_return_to_the_same_bits() -> None:
    model = tower()
    before = model(batch())
    merge(model)
    model(batch())
    unmerge(model)
    assert torch.equal(model(batch()), before)
    set_enabled(model, False)
    model(batch())
    set_enabled(model, True)
    assert torch.equal(model(batch()), before)


def test_a_pass_with_gradient_forgets_what_evaluation_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a layer alone does: an optimiser that writes through ``.data`` leaves no trace on an accelerator."""
    monkeypatch.setattr("tntune.adapters.cache._comparison", lambda tensor: None)
    model = tower()
    with torch.no_grad():
        before = model(batch())
    model(batch())
    generators(model)[1].tt_core_0.data.mul_(2)
    with torch.no_grad():
        after = model(batch())
        assert not torch.equal(after, before)
        assert close(after, model.forward(batch()))


def test_a_pass_without_gradient_launches_nothing_where_nothing_is_shared() -> None:
    """Nor does a later call of a layer generate: what it applies is kept."""
    model, x = tower(), batch()
    model.order = []
    with torch.no_grad(), Launches() as mode:
        model(x)
    assert mode.count == 0


@pytest.mark.parametrize("method", ["lotr", "joint"])
def test_a_pass_without_gradient_makes_shared_sites_once(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    sites = FactorGenerator._sites
    monkeypatch.setattr(FactorGenerator, "_sites", lambda *args: made.append(1) or sites(*args))
    model = tower(AdapterSpec(width=None if method == "lotr" else 4, rank=2, method=method, start="random"))
    with torch.no_grad():
        first = model(batch())
        assert torch.equal(model(batch()), first)
        assert len(made) == 1
        next(iter(trained(model).values())).data.mul_(2)  # without a trace but in the bytes
        assert not torch.equal(model(batch()), first)
        assert close(model(batch()), model.forward(batch()))
    assert len(made) == 2


# Recomputation.

CHECKPOINTS = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "non-reentrant": partial(checkpoint, use_reentrant=False),
}
KINDS = pytest.mark.parametrize("run", CHECKPOINTS.values(), ids=CHECKPOINTS)


@ALL
@KINDS
def test_checkpointing_changes_no_gradient(
    spec: AdapterSpec, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = tower(spec, run=run), tower(spec)
    wanted = gradients(plain, plain.forward)
    counted = Alone(model, monkeypatch)
    for passes in (1, 2):
        assert equal(gradients(model), wanted)
        assert counted.counts == [passes if run is CHECKPOINTS["reentrant"] else 0] * DEPTH


@KINDS
def test_two_passes_before_one_backward(run: Run) -> None:
    model, plain = tower(run=run), tower()
    twice = gradients(model, lambda x: model(x) + model(2 * x))
    assert equal(twice, gradients(plain, lambda x: plain.forward(x) + plain.forward(2 * x)))


@KINDS
def test_a_graph_that_is_kept_goes_backward_twice(run: Run) -> None:
    model, plain = tower(run=run), tower()
    wanted = gradients(plain, plain.forward)
    loss = model(batch().requires_grad_()).square().sum()
    if run is CHECKPOINTS["non-reentrant"]:
        loss.backward(retain_graph=True)
        model.zero_grad()
    loss.backward()
    assert equal({name: p.grad for name, p in trained(model).items()}, wanted)


@KINDS
def test_a_checkpoint_around_the_whole_model(run: Run) -> None:
    model = tower()
    wanted = gradients(model, model.forward)
    for _ in range(2):
        assert equal(gradients(model, partial(run, model)), wanted)


def test_some_layers_of_one_kind_some_of_the_other() -> None:
    kinds = [*CHECKPOINTS.values(), None, CHECKPOINTS["non-reentrant"]]
    model = tower()
    layers = list(model.layers)
    model.run = lambda layer, x: kind(layer, x) if (kind := kinds[layers.index(layer)]) else layer(x)
    plain = tower()
    assert equal(gradients(model), gradients(plain, plain.forward))


def test_a_param_that_changes_before_the_recomputation_is_no_silent_error() -> None:
    model = tower(run=CHECKPOINTS["non-reentrant"])
    loss = model(batch()).square().sum()
    double(model)
    with pytest.raises(torch.utils.checkpoint.CheckpointError, match="different"):
        loss.backward()


def test_nothing_is_kept_after_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    records = recorded(monkeypatch)
    model = tower(run=CHECKPOINTS["non-reentrant"])
    loss = model(batch()).square().sum()
    assert [len(record.stacks) for record in records] == [2]
    loss.backward()
    assert [record.stacks for record in records] == [()]
    model(batch())  # a forward whose result nobody keeps
    gc.collect()
    assert all(
        made.record() is None or made.record() in records for made in generators(model)[0]._generation._made
    )


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The records of all passes from now on."""
    records: list[Record] = []

    def noted() -> Record:
        records.append(Record())
        return records[-1]

    monkeypatch.setattr("tntune.adapters.batch.Record", noted)
    return records


def test_a_recomputed_slice_has_no_backward() -> None:
    record, core = Record(), torch.ones(2, 3, requires_grad=True)
    slices(record, [2 * core])
    (again,) = record.again(1)
    assert torch.equal(again, torch.full((3,), 2.0))
    with pytest.raises(UnsupportedError, match="called with a gradient in its forward is called again"):
        again.sum().backward()


# Around the model.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_contraction(dtype: torch.dtype) -> None:
    model = tower().float()
    with torch.autocast("cpu", dtype):
        model.layers[0].register_forward_pre_hook(lambda *_: found.append(generators(model)[0](0, Chains)))
        found: list[Chains] = []
        model(batch().float())
    assert close(found[0].down[0], generators(model)[0](0, Chains).down[0])
    assert found[0].down[0].dtype == torch.float32


def test_compiled_layers_generate_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    model, plain = tower(), tower()
    made: list[int] = []
    monkeypatch.setattr(torch.func, "vmap", noting_stacks(made, torch.func.vmap))
    for layer in model.layers[:2]:
        layer.compile(fullgraph=True, backend="aot_eager")
    wanted = gradients(plain, plain.forward)
    for _ in range(3):
        assert equal(gradients(model), wanted)
    assert made == [4, 2, 2]  # the compiled ones are not asked for, so not made again


def test_the_whole_model_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    model = tower()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert equal(gradients(model, compiled), gradients(model, model.forward))


def test_params_that_are_not_whole_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As FSDP leaves them: a part of a tensor, or a plain tensor in the place of a parameter."""
    model = tower()
    made: list[int] = []
    monkeypatch.setattr(torch.func, "vmap", noting_stacks(made, torch.func.vmap))
    first, second = generators(model)[:2]
    flat = nn.Parameter(first.tt_core_0.detach().flatten())
    whole = first.tt_core_0.detach().clone()

    def gather(module: FactorGenerator, inputs: object) -> None:
        module.tt_core_0 = nn.Parameter(whole)

    first.tt_core_0 = flat
    first.register_forward_pre_hook(gather)
    del second._parameters["tt_core_0"]
    second.tt_core_0 = whole * 1
    model(batch())
    assert made == [2]


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("run", "unused"), [(None, False), (None, True), *((run, False) for run in CHECKPOINTS.values())]
)
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_has_the_gradients(run: Run | None, unused: bool) -> None:
    """Of one process; two are in test_training. With layers left out, it must be told to look for them."""
    model, plain = tower(run=run), tower()
    wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
    for skipping in (False, unused):
        if skipping:
            skip_one(model)
            skip_one(plain)
        assert equal(gradients(model, wrapped), gradients(plain, plain.forward))


# Launches.


class Launches(TorchDispatchMode):
    """Counts the operations of aten that compute: those whose result is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(result.alias_info for result in func._schema.returns)
        return func(*args, **(kwargs or {}))


def launches(depth: int, spec: AdapterSpec) -> int:
    """Of a forward and backward of the second pass."""
    model = tower(spec, depth)
    gradients(model)
    model.zero_grad()
    x = batch()
    with Launches() as mode:
        model(x).sum().backward()
    return mode.count


@pytest.mark.parametrize("name", ["tensorguide", "subtracted", "products", "tt_lora"])
def test_the_number_of_launches_of_generation_does_not_depend_on_depth(name: str) -> None:
    """A layer more launches what a LoRA layer launches; products have two more to apply."""
    spec = SPECS[name]
    shallow, deep = launches(3, spec), launches(7, spec)
    lora = AdapterSpec(width=4, method="lora", start="random")
    applied = launches(7, lora) - launches(3, lora)
    assert 0 < deep - shallow <= (2 if name == "products" else 1) * applied
    assert begun(3, spec) == begun(7, spec) > 0


def begun(depth: int, spec: AdapterSpec) -> int:
    """Launches of what comes before the first layer of a pass."""
    model = tower(spec, depth)
    model.order = []
    with Launches() as mode:
        model(batch())
    return mode.count


# The rule.


def test_the_rule_is_of_entries_on_a_cpu_and_none_elsewhere() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    maps = [build_map("tensorguide", Geometry(4096, 4096, width)) for width in (8, 16, 20, 64)]
    for map in maps:
        assert is_batched(map, cpu) == (generated_entries(map) <= CPU_ENTRIES)
        assert is_batched(map, cuda)
    assert len({is_batched(map, cpu) for map in maps}) == 2
    lora = build_map("lora", Geometry(8, 8, 2))
    assert not is_batched(lora, cuda)


def test_generated_entries_are_counted() -> None:
    for spec in SPECS.values():
        generator = generators(tower(spec))[0]
        made = generator(0, Chains)
        matrices = {matrix.data_ptr(): matrix.numel() for matrix in (*made.down, *made.up)}
        assert generated_entries(generator.map) == sum(matrices.values())


def test_a_stack_without_any_gradient_has_none() -> None:
    record, params = Record(), [torch.ones(3, requires_grad=True) for _ in range(2)]
    other = torch.ones(3, requires_grad=True)
    pairs = slices(record, [2 * stacked(record, params), torch.stack([other, other])])
    pairs[1][1].sum().backward()
    assert params[0].grad is None
    assert params[1].grad is None
    assert other.grad.tolist() == [1, 1, 1]
