"""T3': preconditioned steps do not depend on the gauge, and the optimisers are torch's own kind."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from tests.support.maps import MAPS, tensors_of
from tests.support.strategies import regauged
from tests.support.tolerance import close
from tests.theory.trains import Case, cases, plain, spread
from tntune.errors import ModeError, NumericalError, RankError, SpecError
from tntune.maps.lora import LoRA
from tntune.theory.bounds import preconditioning
from tntune.theory.gauge import canonicalize
from tntune.theory.precondition import ScaledAdamW, ScaledGD, core_groups, scaled_gradients
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.train import cores, dense, tt_tensor

pytestmark = pytest.mark.statement("T3'")

OPTIMISERS: list[Callable[[list[dict[str, object]]], Optimizer]] = [
    lambda groups: ScaledGD(groups, lr=0.003, momentum=0.8),
    lambda groups: ScaledGD(groups, lr=0.004),
    lambda groups: ScaledAdamW(groups, lr=0.02, weight_decay=0.01),
]


def moved(own: list[Tensor], target: Tensor, *, damping: float) -> Tensor:
    """The first-order change of the train by one preconditioned step towards a target."""
    leaves = [core.clone().requires_grad_() for core in own]
    loss = (dense(tt_tensor(leaves)) - target).square().sum() / 2
    gradients = torch.autograd.grad(loss, leaves)
    steps = scaled_gradients(leaves, gradients, damping=damping)
    parts = [[*own[:k], step, *own[k + 1 :]] for k, step in enumerate(steps)]
    return torch.stack([dense(tt_tensor(part)) for part in parts]).sum(0)


@given(case=cases(latents=("none",), minimal=True), seed=st.integers(0, 2**31))
def test_step_of_the_train_does_not_depend_on_the_gauge(case: Case, seed: int) -> None:
    own = plain(case.train.modes, max(case.train.ranks), seed=seed)
    target = torch.randn(case.train.modes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    other = cores(regauged(tt_tensor(own), seed))
    assert close(moved(other, target, damping=0.0), moved(own, target, damping=0.0), factor=1e4)


def path(own: list[Tensor], goal: Tensor) -> Tensor:
    """The train after ten steps of undamped descent with momentum."""
    leaves = [core.clone().requires_grad_() for core in own]
    optimiser = ScaledGD([{"params": leaves}], lr=0.02, damping=0.0, momentum=0.5)
    for _ in range(10):
        optimiser.zero_grad()
        ((dense(tt_tensor(leaves)) - goal).square().sum() / 2).backward()
        optimiser.step()
    return dense(tt_tensor(leaves)).detach()


@pytest.mark.parametrize("seed", range(4))
def test_path_of_the_train_does_not_depend_on_the_gauge(seed: int) -> None:
    own = plain((4, 3, 2, 4), 3, seed=seed)
    goal = dense(tt_tensor(plain((4, 3, 2, 4), 3, seed=seed + 10)))
    start, found = dense(tt_tensor(own)), path(own, goal)
    assert close(path(cores(regauged(tt_tensor(own), seed)), goal), found, factor=1e3)
    assert float((found - start).norm()) > 0.01  # it did move


def test_scaling_bonds_changes_nothing_even_with_damping() -> None:
    own = plain((4, 3, 5), 3)
    target = torch.ones(4, 3, 5, dtype=torch.float64)
    other = [own[0] * 100, own[1] / 1000, own[2] * 10]
    assert close(moved(other, target, damping=1e-2), moved(own, target, damping=1e-2))


@given(case=cases(latents=("none",), minimal=True))
def test_eigenvalues_lie_between_one_and_the_number_of_cores(case: Case) -> None:
    own = plain(case.train.modes, max(case.train.ranks))
    bounds = preconditioning(TrainJacobian.plain(spread(own, 0.1)))
    assert all(bound.holds for bound in bounds)
    assert bounds[1].slack < 1 + 1e-6  # attained, at w itself


def test_singular_environments_and_weights_are_refused() -> None:
    with pytest.raises(RankError, match="an environment is singular"):
        preconditioning(TrainJacobian.plain([torch.zeros(1, 2, 2), torch.ones(2, 2, 1)]))
    core = torch.ones(1, 2, 2, 1)
    with pytest.raises(RankError, match="bounded for plain trains"):
        preconditioning(TrainJacobian((core, core), (core, core)))


def quadratic(name: str) -> tuple[dict[str, Tensor], Callable[[], Tensor], list[dict[str, object]]]:
    """Params of a map, a loss of its delta, and their groups."""
    map = MAPS[name]
    params, fixed = map.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = {key: param.clone().requires_grad_() for key, param in params.items()}
    delta = torch.ones(map.sites, map.out_features, map.in_features, dtype=torch.float64)
    return leaves, lambda: (map.delta(leaves, fixed) - delta).square().sum(), core_groups(map, leaves)


def run(optimiser: Optimizer, loss: Callable[[], Tensor], steps: int) -> float:
    """The loss before the last of so many steps."""
    value = torch.zeros(())
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
    return value.item()


@pytest.mark.parametrize("make", OPTIMISERS)
@pytest.mark.parametrize("name", ["lora", "tt_lora", "tt_lora fixed", "joined", "concat", "joined digits"])
def test_loss_falls_from_the_zero_start(make: Callable[..., Optimizer], name: str) -> None:
    leaves, loss, groups = quadratic(name)
    start = float(loss().detach())
    assert run(make(groups), loss, 60) < start
    assert all(bool(torch.isfinite(leaf).all()) for leaf in leaves.values())


@pytest.mark.parametrize("make", OPTIMISERS)
def test_state_round_trip_continues_bit_for_bit(make: Callable[..., Optimizer]) -> None:
    leaves, loss, groups = quadratic("joined")
    optimiser = make(groups)
    run(optimiser, loss, 5)
    saved, values = copy.deepcopy(optimiser.state_dict()), {k: v.detach().clone() for k, v in leaves.items()}
    run(optimiser, loss, 5)
    other, other_loss, other_groups = quadratic("joined")
    with torch.no_grad():
        for key, value in values.items():
            other[key].copy_(value)
    resumed = make(other_groups)
    resumed.load_state_dict(saved)
    run(resumed, other_loss, 5)
    assert all(torch.equal(other[key], leaves[key]) for key in leaves)


def test_lora_step_is_that_of_scaled_gradient_descent() -> None:
    params, _ = tensors_of(LoRA(5, 4, 2))
    down, up = params["lora_down"].requires_grad_(), params["lora_up"].requires_grad_()
    (up @ down).square().sum().backward()
    expected = [
        up.detach() - 0.1 * up.grad @ torch.linalg.inv(down.detach() @ down.detach().mT),
        down.detach() - 0.1 * torch.linalg.inv(up.detach().mT @ up.detach()) @ down.grad,
    ]
    ScaledGD(core_groups(LoRA(5, 4, 2), params), lr=0.1, damping=0.0).step()
    assert close(up.detach(), expected[0])
    assert close(down.detach(), expected[1])


def test_closure_and_missing_gradients() -> None:
    leaves, loss, groups = quadratic("tt_lora")
    optimiser = ScaledGD(groups, lr=0.004)
    before = {key: leaf.detach().clone() for key, leaf in leaves.items()}
    optimiser.step()  # no gradient, no step
    assert all(torch.equal(leaves[key], before[key]) for key in leaves)

    def closure() -> float:
        value = loss()
        value.backward()
        return value.item()

    zero_start = float(MAPS["tt_lora"].in_features * MAPS["tt_lora"].out_features)
    assert optimiser.step(closure) == zero_start
    assert loss().item() < zero_start


def test_half_precision_is_computed_in_single() -> None:
    params, _ = tensors_of(MAPS["joined"], dtype=torch.bfloat16)
    leaves = {key: param.requires_grad_() for key, param in params.items()}
    sum(leaf.float().square().sum() for leaf in leaves.values()).backward()
    ScaledAdamW(core_groups(MAPS["joined"], leaves), lr=0.01).step()
    assert all(leaf.dtype == torch.bfloat16 for leaf in leaves.values())
    assert all(bool(torch.isfinite(leaf).all()) for leaf in leaves.values())


def test_canonical_cores_make_no_difference_to_the_step() -> None:
    map = MAPS["joined"]
    params, fixed = tensors_of(map)
    made = []
    for start in (params, canonicalize(map, params, fixed)):
        leaves = {key: value.clone().requires_grad_() for key, value in start.items()}
        map.delta(leaves, fixed).square().sum().backward()
        optimiser = ScaledGD(core_groups(map, leaves), lr=1e-5, damping=0.0)
        optimiser.step()
        made.append(map.delta(leaves, fixed).detach() - map.delta(params, fixed))
    assert close(made[0], made[1], factor=1e6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be in"),
        ({"damping": -1.0}, "damping must be"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ScaledGD([{"params": [torch.ones(1, 2, 1, requires_grad=True)]}], **settings)
    with pytest.raises(SpecError, match="second beta"):
        ScaledAdamW([{"params": [torch.ones(1, 2, 1, requires_grad=True)]}], betas=(0.9, 1.0))


def test_diverged_cores_are_refused() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        scaled_gradients([torch.full((1, 2, 1), torch.inf)], [torch.ones(1, 2, 1)], damping=0.0)


def test_groups_that_are_no_train_are_refused() -> None:
    two = [torch.ones(1, 2, 3, requires_grad=True), torch.ones(2, 2, 1, requires_grad=True)]
    with pytest.raises(ModeError, match="one train in order"):
        ScaledGD([{"params": two}])
    leaves = [torch.ones(1, 2, 2, requires_grad=True), torch.ones(2, 2, 1, requires_grad=True)]
    leaves[0].square().sum().backward()
    with pytest.raises(SpecError, match="1 of the 2 cores"):
        ScaledGD([{"params": leaves}]).step()
