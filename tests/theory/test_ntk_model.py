"""The kernel of a whole model: routes, layers, outputs, precision, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.networks import VOCABULARY, adapted_transformer, seeded, tokens
from tests.support.tolerance import close
from tntune.adapters import adapt, adapted_layers
from tntune.errors import DtypeError, ModeError, NumericalError, SpecError, TargetError, UnsupportedError
from tntune.maps import Geometry, Site, build_map
from tntune.theory import last_token, layer_ntk, logits, loss, margin, ntk, ntk_operator, ntk_plan
from tntune.theory.ntk_gradients import function_of, looped_gradients, vmapped_gradients
from tntune.theory.ntk_rows import OUTPUTS

METHODS = ("lora", "tt_lora", "tensorguide")


def brute_force(model: nn.Module, batch: dict[str, Tensor], output_fn) -> Tensor:
    """One gradient at a time of the model as it stands: ``(n, C, P)``."""
    own = [param for param in model.parameters() if param.requires_grad]
    out = output_fn(model, batch)
    out = out.reshape(len(out), -1)
    grads = [torch.autograd.grad(entry, own, retain_graph=True) for entry in out.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads]).unflatten(0, out.shape)


@pytest.mark.statement("N3")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_transformer_by_two_routes(method: str, output: str) -> None:
    model, batch = adapted_transformer(method), tokens()
    a = brute_force(model, batch, last_token)
    whole = torch.einsum("icp,jdp->icjd", a, a)
    rule = {"full": "icjd->icjd", "trace": "icjc->ij", "per_class": "icjc->cij"}[output]
    found = ntk(model, batch, last_token, output=output)
    assert found.route == "vmap"
    assert (found.samples, found.outputs) == (3, VOCABULARY)
    assert close(found.values, torch.einsum(rule, whole).reshape(found.values.shape))


@pytest.mark.statement("N3")
@pytest.mark.parametrize(
    "output_fn", [loss, last_token, lambda model, batch: model(batch["input_ids"])[:, 0, :2]]
)
def test_every_output_function(output_fn) -> None:
    model, batch = adapted_transformer(), tokens()
    a = brute_force(model, batch, output_fn).flatten(0, 1)
    assert close(ntk(model, batch, output_fn).values, a @ a.T)


@pytest.mark.statement("N3")
def test_loop_and_vmap_give_the_same_gradients() -> None:
    function = function_of(adapted_transformer(), tokens(), last_token)
    part = function.part(slice(1, 3))
    one, other = vmapped_gradients(function, part), looped_gradients(function, part)
    assert one.keys() == other.keys()
    assert all(close(one[name], other[name]) for name in one)


class Branching(nn.Module):
    """What vmap cannot trace: a branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [(self.one if row.sum().item() > 0 else self.two)(row) for row in x]
        return torch.stack(rows)


@pytest.mark.statement("N3")
def test_where_vmap_fails_the_loop_takes_over_and_says_so() -> None:
    model, x = seeded(Branching(), 0), torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator())
    found = ntk(model, x, logits)
    assert found.route.startswith("loop, since vmap failed: ")
    a = brute_force(model, x, logits).flatten(0, 1)
    assert close(found.values, a @ a.T)


@pytest.mark.statement("N3")
def test_layers_add_up_and_are_the_kernels_of_their_own_parameters() -> None:
    model, batch = adapted_transformer(), tokens()
    found = ntk(model, batch, last_token)
    parts = found.per_layer()
    assert list(parts) == ["blocks.0.q.generator", "blocks.1.v.generator"]
    assert close(sum(parts.values()), found.values)
    for name, part in parts.items():
        alone = ntk(model, batch, last_token, params=lambda key, _, name=name: key.startswith(name))
        assert close(alone.values, part)
    with pytest.raises(TargetError, match=r"no layer 'head'.*blocks\.0\.q\.generator"):
        found.layer("head")


@pytest.mark.statement("N1")
@pytest.mark.statement("N3")
@given(st.sampled_from(METHODS), st.sampled_from(("identity", "gelu")), st.integers(0, 2**31))
def test_a_layer_inside_a_network_by_structure(method: str, activation: str, seed: int) -> None:
    """Chain rule: the layer's inputs and the gradients at its outputs are all that the kernel needs."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    map = build_map(method, Geometry(6, 5, 2), start="random")
    adapt(model, {"0": Site(map, 0.6, activation)}, generator=torch.Generator().manual_seed(0))
    seeded(model, seed)
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (_, layer), *_ = adapted_layers(model)
    after = torch.func.vmap(torch.func.jacrev(model[1:]))(model[0](x))  # (n, C, Q)
    tensors = layer.generator.tensors()
    by_structure = layer_ntk(layer.spec, tensors, x, gradients=after.detach())
    assert close(ntk(model, x, logits).values, by_structure.values)


@pytest.mark.statement("N4")
@pytest.mark.parametrize("method", METHODS)
def test_the_operator_is_the_matrix(method: str) -> None:
    model, batch = adapted_transformer(method), tokens()
    dense = ntk(model, batch, last_token).values
    operator = ntk_operator(model, batch, last_token, block_size=2)
    assert operator.shape == tuple(dense.shape)
    assert close(torch.from_numpy(operator @ np.eye(len(dense))), dense)
    with pytest.raises(SpecError, match="block_size must be at least 1, not 0"):
        ntk_operator(model, batch, last_token, block_size=0)


def test_float64_on_request_leaves_the_model_alone() -> None:
    model, batch = adapted_transformer(dtype=torch.float32), tokens()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ntk(model, batch, last_token, dtype=torch.float64)
    assert found.values.dtype == torch.float64
    assert close(found.values, ntk(copy.deepcopy(model).double(), batch, last_token).values)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert close(ntk(model, batch, last_token).values, found.values)


def test_the_plan_says_what_the_run_makes() -> None:
    model, batch = adapted_transformer(), tokens()
    plan = ntk_plan(model, batch, last_token, block_size=2)
    seen: list[tuple[int, int]] = []
    found = plan.run(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]
    assert plan.shape == tuple(found.values.shape)
    assert plan.kernel_bytes == found.values.nbytes
    assert plan.gradient_bytes == found.factor().nbytes
    assert plan.activation_bytes > 0
    assert plan.total_bytes == plan.kernel_bytes + plan.gradient_bytes + plan.block_bytes
    assert "33 outputs" not in str(plan)
    assert str(plan).startswith("3 samples, 11 outputs, ")
    whole = ntk_plan(model, batch, last_token)
    assert whole.block_size == 3
    assert close(whole.run().values, found.values)


def test_a_block_is_as_large_as_its_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = adapted_transformer(), tokens()
    one = ntk_plan(model, batch, last_token, block_size=1).block_bytes
    for allowed, size in ((0, 1), (one, 1), (2 * one, 2), (3 * one - 1, 2), (99 * one, 3)):
        monkeypatch.setattr("tntune.theory.ntk_model._BLOCK_BYTES", allowed)
        assert ntk_plan(model, batch, last_token).block_size == size


@pytest.mark.parametrize("output", ["full", "trace"])
def test_the_spectrum_is_that_of_the_kernel(output: str) -> None:
    found = ntk(adapted_transformer(), tokens(), last_token, output=output)
    report = found.spectrum()
    wanted = torch.linalg.eigvalsh(found.values).flip(0)[: report.rank]
    assert close(torch.tensor(report.eigenvalues, dtype=torch.float64), wanted)
    with pytest.raises(UnsupportedError, match="has C spectra"):
        ntk(adapted_transformer(), tokens(), last_token, output="per_class").spectrum()


def test_the_last_token_is_the_last_that_counts() -> None:
    model, batch = adapted_transformer(), tokens()
    out = last_token(model, batch)
    scores = logits(model, batch)
    assert close(out[0], scores[0, 2])  # two positions of sample 0 are padding
    assert close(out[1:], scores[1:, -1])


def test_margin_is_the_distance_to_the_best_other_class() -> None:
    model = seeded(nn.Linear(3, 4), 0)
    batch = {"input": torch.eye(3, dtype=torch.float64), "labels": torch.tensor([0, 3, 1])}
    scores = logits(model, batch)
    wanted = [
        row[label] - max(row[c] for c in range(4) if c != label)
        for row, label in zip(scores, batch["labels"], strict=True)
    ]
    assert close(margin(model, batch), torch.stack(wanted))
    a = brute_force(model, batch, margin).flatten(0, 1)
    assert close(ntk(model, batch, margin).values, a @ a.T)


def test_loss_is_the_mean_over_tokens_that_count() -> None:
    model, batch = adapted_transformer(), tokens()
    scores = logits(model, batch)
    for i in range(3):
        wanted = nn.functional.cross_entropy(scores[i, :-1], batch["labels"][i, 1:], ignore_index=-100)
        assert close(loss(model, batch)[i], wanted)


def test_what_is_refused() -> None:
    model, batch = adapted_transformer(), tokens()
    with pytest.raises(UnsupportedError, match=r"training mode.*model\.eval\(\)"):
        ntk(copy.deepcopy(model).train(), batch, last_token)
    with pytest.raises(TargetError, match="no parameter of Transformer is chosen"):
        ntk(model, batch, last_token, params=lambda name, param: False)
    with pytest.raises(
        ModeError, match=r"one positive number of samples first, not \{'input_ids': 3, 'x': 2\}"
    ):
        ntk(model, {"input_ids": batch["input_ids"], "x": torch.ones(2)}, last_token)
    with pytest.raises(SpecError, match="output must be one of"):
        ntk(model, batch, last_token, output="diagonal")
    with pytest.raises(SpecError, match="block_size must be at least 1"):
        ntk_plan(model, batch, last_token, block_size=0)
    with pytest.raises(DtypeError, match=r"bfloat16; ask for dtype float32 or float64"):
        ntk(adapted_transformer(dtype=torch.bfloat16), batch, last_token)
    with pytest.raises(SpecError, match="does not depend on the chosen parameters"):
        ntk(model, batch, lambda model, batch: batch["input_ids"].double())
    with pytest.raises(NumericalError, match=r"gradients of weight are not finite"):
        ntk(seeded(nn.Linear(2, 1), 0), torch.full((2, 2), torch.inf, dtype=torch.float64), logits)
    with pytest.raises(SpecError, match="needs a batch with a tensor 'labels'"):
        ntk(seeded(nn.Linear(2, 1), 0), torch.ones(2, 2, dtype=torch.float64), loss)
    with pytest.raises(SpecError, match=r"margin needs logits \(n, C\), not \(1, 5, 11\)"):
        ntk(model, batch, margin)
    with pytest.raises(SpecError, match=r"last_token needs logits \(n, T, V\), not \(2, 1\)"):
        last_token(seeded(nn.Linear(2, 1), 0), torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(SpecError, match="must be a tensor or have logits, not tuple"):
        logits(nn.LSTM(2, 2), torch.ones(1, 2))


class Checkpointed(nn.Module):
    """A layer that is recomputed in the backward pass, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=False)


@pytest.mark.statement("N3")
def test_recomputed_activations_change_nothing() -> None:
    model, x = seeded(Checkpointed(), 0), torch.eye(3, dtype=torch.float64)
    a = brute_force(model, x, logits).flatten(0, 1)
    assert close(ntk(model, x, logits).values, a @ a.T)


@pytest.mark.statement("N3")
def test_tied_parameters_count_once_and_buffers_are_cast() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    seeded(model, 0, torch.float32)
    x = torch.eye(3) + 0.5
    a = brute_force(copy.deepcopy(model).double(), x.double(), logits).flatten(0, 1)
    assert close(ntk(model, x, logits, dtype=torch.float64).values, a @ a.T)
    with torch.no_grad():
        assert close(ntk(model, x, logits).values, a @ a.T)
