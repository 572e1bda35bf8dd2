"""Law: the budget is met, the reported error is the whole change, and what survives is what counts most."""

import math

import pytest
import torch
from torch import Tensor

from tests.plugins.models import batch, loras, number, tower, trained
from tests.support.maps import EVERY, MAPS
from tests.support.tolerance import close
from tntune.adapters import AdapterSpec, adapt, adapted_layers, load_adapters, save_adapters
from tntune.errors import NumericalError, RankError, SpecError, UnsupportedError
from tntune.maps import Geometry, Group, Joined, LoRA, TensorGuide, WeightMap
from tntune.plugins import branches, prune_bonds
from tntune.plugins.prune_bonds import share_budget
from tntune.tt import ShrinkStep

MIXED: tuple[WeightMap, ...] = (
    LoRA(5, 5, 3),
    MAPS["joined digits"],
    MAPS["tt_lora fixed"],
)


def mixed() -> torch.nn.Module:
    """Maps of several kinds side by side."""
    return torch.nn.ModuleList(tower(map) for map in MIXED)


def deltas(model: torch.nn.Module) -> list[Tensor]:
    return [layer.delta_weight().detach() for _, layer in adapted_layers(model)]


@pytest.mark.parametrize("share", [0.9, 0.7, 0.55])
def test_the_report_is_what_happened(share: float) -> None:
    model = mixed()
    olds, total = deltas(model), sum(p.numel() for p in trained(model))
    report = prune_bonds(branches(model), int(share * total))
    assert report.params_before == total
    assert report.params == sum(p.numel() for p in trained(model)) <= int(share * total)
    changes = [(new - old).norm() for new, old in zip(deltas(model), olds, strict=True)]
    for change, made, old in zip(report.changes, changes, olds, strict=True):
        assert close(number(change.error) + 1, made / old.norm() + 1)
    whole = torch.stack(changes).norm() / torch.stack([old.norm() for old in olds]).norm()
    assert close(number(report.error), whole)
    for (_, layer), change in zip(adapted_layers(model), report.changes, strict=True):
        assert layer.spec.map is layer.generator.map
        assert layer.generator.map.num_parameters == change.params


def test_within_the_budget_nothing_moves() -> None:
    model = mixed()
    before = [p.detach().clone() for p in trained(model)]
    report = prune_bonds(branches(model), 10**6)
    assert report.error == 0
    assert all(torch.equal(a, b) for a, b in zip(trained(model), before, strict=True))


def test_layers_that_keep_their_ranks_keep_their_bits() -> None:
    model = loras(3, 3)
    with torch.no_grad():
        model[0].generator.lora_up.mul_(1e-3)
    kept = model[2].generator.lora_up
    prune_bonds(branches(model), 4 * 12)
    assert model[2].generator.lora_up is kept
    assert model[0].generator.map.width == 1


def test_among_loras_of_one_shape_the_largest_singular_values_stay() -> None:
    """The optimum: all truncations of one size cost the same."""
    model = loras(4, 3, 4)
    olds = deltas(model)
    values = torch.cat([torch.linalg.svdvals(delta) for delta in olds])
    kept = values.sort(descending=True).values[:7]
    assert all(float(torch.linalg.svdvals(delta)[0]) >= float(kept[-1]) for delta in olds)
    report = prune_bonds(branches(model), 7 * 12)
    assert report.params == 7 * 12
    found = torch.cat([torch.linalg.svdvals(delta) for delta in deltas(model)])
    assert close(found.sort(descending=True).values[:7], kept)
    assert close(number(report.error), (1 - kept.square().sum() / values.square().sum()).sqrt())


@pytest.mark.parametrize("name", ["joined digits", "joined interleaved", "tt_lora fixed", "delta train"])
def test_ranks_that_nothing_needs_go_without_a_loss(name: str) -> None:
    """A map of small ranks written into one of larger ranks comes out as it was."""
    model, x = tower(EVERY[name]), batch(EVERY[name].in_features)
    (small,) = branches(model)
    before, params = model(x), small.generator.map.num_parameters
    _widen(small.generator, 2)
    assert small.generator.map.num_parameters > params
    small.layers[0].spec = small.layers[0].spec.__class__(small.generator.map, small.layers[0].spec.scale)
    assert close(model(x), before)
    report = prune_bonds(branches(model), params)
    assert report.params <= params
    assert report.error < 1e-9
    assert close(model(x), before)


@torch.no_grad()
def _widen(generator, by: int) -> None:
    """Every inner rank larger by that, with random entries that a zero on the other side silences."""
    from tntune.plugins.branch import Branch, chains, with_ranks

    ranks = []
    for chain in chains(Branch("", generator)):
        wide = [r + by if 0 < k < len(chain.ranks) - 1 else r for k, r in enumerate(chain.ranks)]
        ranks.append(tuple(wide))
        for k, name in enumerate(chain.names):
            core = getattr(generator, name)
            new = torch.randn(wide[k], *core.shape[1:-1], wide[k + 1], dtype=core.dtype)
            new[core.shape[0] :] = 0
            new[: core.shape[0], ..., : core.shape[-1]] = core
            generator.register_parameter(name, torch.nn.Parameter(new))
    generator.map = with_ranks(generator.map, ranks)


def test_training_goes_on_with_the_optimiser() -> None:
    model, x = tower(*MIXED[:2]), batch(5)
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    steps = [optimizer.state[p]["step"].clone() for p in trained(model)]
    prune_bonds(branches(model), 70, optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in trained(model)}
    assert [optimizer.state[p]["step"] for p in trained(model)] == steps
    for parameter in trained(model):
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    optimizer.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    optimizer.step()
    assert model(x).square().sum() < loss


def test_an_old_graph_does_not_disturb_the_new_params() -> None:
    """A loss that is still held when ranks change, as in any plain loop."""
    model, x = loras(3, 3), batch(6)
    loss = model(x).sum()
    loss.backward()
    prune_bonds(branches(model), 40)
    again = model(x).sum()
    again.backward()
    assert all(p.grad.shape == p.shape for p in trained(model))
    del loss


def test_it_is_saved_and_loaded(tmp_path) -> None:
    model = tower(MAPS["joined digits"])
    prune_bonds(branches(model), 30)
    save_adapters(model, tmp_path / "adapter")
    other = torch.nn.Sequential(model[0].base, torch.nn.Tanh())
    assert torch.equal(load_adapters(other, tmp_path / "adapter")(batch(5)), model(batch(5)))


def test_what_it_refuses() -> None:
    model = loras(3, 3)
    with pytest.raises(RankError, match="a budget of 23 parameters is too small; the least possible is 24"):
        prune_bonds(branches(model), 23)
    with pytest.raises(SpecError, match="lacks 2 of the 4 params"):
        prune_bonds(branches(model), 30, optimizer=torch.optim.SGD(trained(model[0])))
    with pytest.raises(UnsupportedError, match="keeps 'sum'"):
        prune_bonds(branches(model), 30, optimizer=torch.optim.Adagrad(trained(model)))
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.generator.lora_up.zero_()
    with pytest.raises(NumericalError, match="every adapter is zero"):
        prune_bonds(branches(model), 30)


# One budget over several paths.


def path(*points: tuple[int, float]) -> list[ShrinkStep]:
    return [ShrinkStep((len(points) - k,), *point) for k, point in enumerate(points)]


def test_the_budget_goes_where_it_costs_least() -> None:
    cheap, dear = path((30, 0.0), (20, 1.0), (10, 3.0)), path((30, 0.0), (20, 5.0), (10, 20.0))
    assert [step.params for step in share_budget([cheap, dear], 60)] == [30, 30]
    assert [step.params for step in share_budget([cheap, dear], 50)] == [20, 30]
    assert [step.params for step in share_budget([cheap, dear], 31)] == [10, 20]
    assert [step.params for step in share_budget([cheap, dear], 20)] == [10, 10]


def test_a_costly_step_does_not_hide_a_cheap_one() -> None:
    """10 for the first parameter, then almost nothing: together cheaper than the other path."""
    hidden = path((30, 0.0), (29, 10.0), (10, 10.5))
    plain = path((30, 0.0), (20, 9.0), (10, 18.0))
    assert [step.params for step in share_budget([hidden, plain], 40)] == [10, 30]


def test_the_last_move_goes_only_as_far_as_it_must() -> None:
    convex = path((30, 0.0), (20, 8.0), (10, 9.0))
    assert [step.params for step in share_budget([convex], 25)] == [20]


def test_the_norm_of_errors_is_bounded_by_the_paths() -> None:
    model = loras(4, 4)
    olds = deltas(model)
    report = prune_bonds(branches(model), 60)
    whole = math.hypot(*(float(old.norm()) for old in olds))
    lost = [torch.linalg.svdvals(old)[c.after[0][1] :] for old, c in zip(olds, report.changes, strict=True)]
    assert close(number(report.error * whole), torch.cat(lost).norm())


def test_shared_maps_and_wide_ones() -> None:
    """One train for many layers; and a width at which layers apply products, before and after."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8)).double()
    layout = Joined.auto("layer f1 f2 (side w)", Geometry(8, 8, 4), layers=2)
    map = TensorGuide(8, 8, 4, layout, (1, 2, 8, 8, 1), start="random")
    adapt(model, {"all": Group(map, ("0", "2"), (0.5, 2.0))}, dtype=torch.float64)
    wide = torch.nn.Sequential(torch.nn.Linear(64, 64)).double()
    adapt(wide, AdapterSpec(width=48, rank=20, start="random"), dtype=torch.float64)
    for one, features in ((model, 8), (wide, 64)):
        x, olds = batch(features), deltas(one)
        report = prune_bonds(branches(one), int(0.6 * sum(p.numel() for p in trained(one))))
        assert 0 < report.error < 1
        changes = torch.stack([new - old for new, old in zip(deltas(one), olds, strict=True)])
        assert close(number(report.error), changes.norm() / torch.stack(olds).norm())
        for _, layer in adapted_layers(one):
            seen = batch(features)
            assert close(layer(seen), layer.base(seen) + seen @ layer.delta_weight().T)
        one(x).sum().backward()
        assert all(bool(p.grad.any()) for p in trained(one))
