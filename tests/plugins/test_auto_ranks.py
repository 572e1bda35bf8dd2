"""Law: after the last step the budget is met; between prunings training is plain training."""

import pytest
import torch

from tests.plugins.models import batch, loras, number, trained
from tests.support.tolerance import close
from tntune.adapters import AdapterSpec, adapt
from tntune.adapters.spec import BOND_METHODS, HEADROOM
from tntune.errors import RankError, SpecError, UnsupportedError
from tntune.maps import METHODS
from tntune.plugins import AutoRanks, auto_ranks, branches, prune_bonds


def run(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, after=lambda: None) -> list:
    """Some steps of training, with what is to be done after each."""
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch(6)).square().sum().backward()
        optimizer.step()
        found.append(after())
    return found


def test_budgets_fall_geometrically_to_the_last() -> None:
    model = loras(6, 6, 6)  # 216 parameters
    optimizer = torch.optim.Adam(trained(model), lr=1e-3)
    auto = AutoRanks(branches(model), optimizer, budget=27, at=(2, 3, 5))
    with pytest.raises(RankError, match="the least possible is 36"):
        run(model, optimizer, 5, auto.step)
    assert [report.params <= most for report, most in zip(auto.reports, (108, 54), strict=True)] == [True] * 2


def test_it_is_training_with_pruning_in_between() -> None:
    """By hand, bit for bit."""
    one, other = loras(4, 4), loras(4, 4)
    first, second = (torch.optim.AdamW(trained(model), lr=0.01) for model in (one, other))
    auto = AutoRanks(branches(one), first, budget=48, at=(3,))
    reports = run(one, first, 6, auto.step)
    run(other, second, 3)
    by_hand = prune_bonds(branches(other), 48, optimizer=second)
    run(other, second, 3)
    assert [report is not None for report in reports] == [False, False, True, False, False, False]
    assert auto.reports == [by_hand]
    assert torch.equal(one(batch(6)), other(batch(6)))
    assert sum(p.numel() for p in trained(one)) <= 48


def test_the_function_jumps_by_the_reported_error_alone() -> None:
    model = loras(4, 4)
    optimizer = torch.optim.Adam(trained(model), lr=0.01)
    auto = AutoRanks(branches(model), optimizer, budget=60, at=(3,))
    jumps = []

    def after() -> None:
        before = [model[k].delta_weight().detach() for k in (0, 2)]
        auto.step()
        changed = [model[k].delta_weight() - old for k, old in zip((0, 2), before, strict=True)]
        whole = torch.stack(before).norm()
        jumps.append(torch.stack(changed).norm().detach() / whole)

    run(model, optimizer, 5, after)
    assert close(jumps[2], number(auto.reports[0].error))
    assert [float(jump) for k, jump in enumerate(jumps) if k != 2] == [0.0] * 4


# By a specification.


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6)).double()


@pytest.mark.parametrize("method", BOND_METHODS)
def test_a_specification_starts_above_its_budget_and_ends_within(method: str) -> None:
    wide = {} if method in ("lora", "delta_train") else {"width": 4}
    spec = AdapterSpec(method=method, ranks="auto", params=60, **wide)
    model = adapt(network(), spec, dtype=torch.float64)
    assert 60 < sum(p.numel() for p in trained(model)) <= HEADROOM * 60
    optimizer = torch.optim.Adam(trained(model), lr=0.01)
    auto = auto_ranks(model, spec, optimizer, steps=10)
    reports = run(model, optimizer, 10, auto.step)
    assert [report is not None for report in reports] == [True, True, True, *[False] * 7]
    assert sum(p.numel() for p in trained(model)) == auto.reports[-1].params <= 60


def test_it_is_the_schedule_by_hand() -> None:
    spec = AdapterSpec(ranks="auto", params=60, width=4)
    results = []
    for by_hand in (False, True):
        drawn = torch.Generator().manual_seed(0)
        model = adapt(network(), spec.started if by_hand else spec, generator=drawn, dtype=torch.float64)
        optimizer = torch.optim.Adam(trained(model), lr=0.01)
        if by_hand:
            auto = AutoRanks(branches(model), optimizer, budget=60, at=(2, 4, 6))
        else:
            auto = auto_ranks(model, spec, optimizer, steps=20)
        run(model, optimizer, 20, auto.step)
        results.append(model(batch(6)))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranks": "auto"}, "found within a budget: give params"),
        ({"ranks": "many", "params": 9}, "not ranks='many'"),
        ({"ranks": "auto", "params": 9, "rank": 2}, "rank=2 and params=9 both set the size"),
        *(
            ({"ranks": "auto", "params": 9, "method": method}, f"method '{method}' has no bonds")
            for method in METHODS
            if method not in BOND_METHODS
        ),
        ({"ranks": "auto", "params": 9, "layout": "concat"}, "subtracts a frozen train"),
    ],
)
def test_specifications_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        AdapterSpec(**fields)


def test_what_the_schedule_refuses() -> None:
    spec = AdapterSpec(ranks="auto", params=60, width=4)
    model = adapt(network(), spec)
    optimizer = torch.optim.SGD(trained(model))
    with pytest.raises(SpecError, match="no automatic ranks"):
        auto_ranks(model, AdapterSpec(params=60, width=4), optimizer, steps=10)
    with pytest.raises(SpecError, match="3 steps are too few"):
        auto_ranks(model, spec, optimizer, steps=3)
    flat = adapt(network(), AdapterSpec(layout="concat", width=4))
    with pytest.raises(UnsupportedError, match="frozen train"):
        auto_ranks(flat, spec, torch.optim.SGD(trained(flat)), steps=10)


def test_what_it_refuses() -> None:
    model = loras(3)
    optimizer = torch.optim.SGD(trained(model))
    with pytest.raises(SpecError, match="must rise"):
        AutoRanks(branches(model), optimizer, budget=20, at=(5, 5))
    with pytest.raises(SpecError, match="at must be a non-empty list"):
        AutoRanks(branches(model), optimizer, budget=20, at=())
    with pytest.raises(RankError, match="not below the 36"):
        AutoRanks(branches(model), optimizer, budget=36, at=(5,))
