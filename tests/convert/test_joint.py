"""Laws of joint fits: monotone, exact where they can be, stationary, blind to gauge, honest about errors."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.convert.sample import same
from tests.convert.shared import RANK, SIZE, of_one_shape
from tests.support.tolerance import close
from tntune.convert import joint_side
from tntune.convert.form import Form
from tntune.convert.joint import JointProblem
from tntune.convert.joint_train import JOINT_LAYOUT, JointTrain
from tntune.convert.norm import LayerNorm
from tntune.errors import NumericalError
from tntune.maps import Joined, TensorGuide
from tntune.maps.base import Factors


def norms(count: int, seed: int = 0, *, inside: int = SIZE, outside: int = SIZE) -> list[LayerNorm]:
    """Random norms; every other layer shares the inputs of the one before."""
    draw = torch.Generator().manual_seed(seed)

    def form(size: int) -> Form:
        moment = torch.randn(size, size, generator=draw, dtype=torch.float64) * 0.7 ** torch.arange(size)
        return Form(size, moment @ moment.T, 0.05)

    made: list[LayerNorm] = []
    for i in range(count):
        made.append(LayerNorm(made[-1].inputs if i % 2 else form(inside), form(outside)))
    return made


def squared_error(train: JointTrain, own: list[Factors], given: list[LayerNorm]) -> float:
    """Relative to all ΔW, measured layer by layer on the result."""
    pairs = list(zip(own, given, strict=True))
    lost = sum(norm.squared_distance(each, train.factors(i)) for i, (each, norm) in enumerate(pairs))
    return lost / sum(norm.squared(each) for each, norm in pairs)


@given(seed=st.integers(0, 99), rank=st.integers(1, 6), width=st.integers(1, 4))
def test_the_error_never_rises_and_is_what_the_result_has(seed: int, rank: int, width: int) -> None:
    own, given = of_one_shape(seed), norms(10, seed)
    train, history = JointProblem(own, given).fit(rank, min(rank, width), sweeps=4)
    slack = 1e-11  # of a Cholesky factor that is lifted from zero
    assert all(after <= before + slack for before, after in pairwise(history))
    assert same(1 + squared_error(train, own, given), 1 + history[-1], factor=100)


def test_layers_that_share_their_directions_are_stored_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, outputs, mixes = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((2, 9), (8, 2), (6, 2, 2))
    )
    own = [Factors(inputs, outputs @ mix) for mix in mixes]
    given = norms(6, inside=9, outside=8)
    train = JointProblem(own, given).fit(2, 2).train
    for i, each in enumerate(own):
        made = train.factors(i)
        assert close(made.up @ made.down, each.up @ each.down, factor=100)


def test_at_full_rank_nothing_is_lost() -> None:
    own, given = of_one_shape(), norms(10)
    problem = JointProblem(own, given)
    assert problem.max_rank == SIZE
    assert same(1 + squared_error(problem.fit(SIZE, RANK).train, own, given), 1.0, factor=100)


@given(seed=st.integers(0, 99))
def test_the_gauge_of_the_layers_is_not_seen(seed: int) -> None:
    own, given = of_one_shape(seed), norms(10, seed)
    draw = torch.Generator().manual_seed(seed)
    turned = []
    for down, up in own:
        gauge = torch.eye(RANK) + 0.3 * torch.randn(RANK, RANK, generator=draw).double()
        turned.append(Factors(gauge @ down, up @ torch.linalg.inv(gauge)))
    first, second = (JointProblem(each, given).fit(3, 2, sweeps=2).history[-1] for each in (own, turned))
    assert same(1 + first, 1 + second, factor=1e4)


def test_the_end_is_a_stationary_point_of_the_objective() -> None:
    own, given = of_one_shape(), norms(10)
    train = JointProblem(own, given).fit(4, 3, sweeps=3000, tolerance=1e-14).train
    leaves = [core.clone().requires_grad_() for core in train]

    def objective(inputs: Tensor, outputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, (each, norm) in enumerate(zip(own, given, strict=True)):
            gap = each.up @ each.down - outputs @ up[i] @ down[i].T @ inputs.T
            total = total + (norm.outputs.apply(gap) * norm.inputs.apply(gap.T).T).sum()
        return total

    start = [torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1)).double() for leaf in leaves]
    for core in start:
        core.requires_grad_()
    slopes, typical = (torch.autograd.grad(objective(*cores), cores) for cores in (leaves, start))
    for slope, usual in zip(slopes, typical, strict=True):
        assert close(usual + 1e-2 * slope, usual, factor=1e4)


def test_a_task_norm_is_served_better_by_fitting_it() -> None:
    own, given = of_one_shape(), norms(10)
    plain = [LayerNorm(Form(SIZE), Form(SIZE))] * 10
    fitted, unaware = (JointProblem(own, each).fit(3, 2).train for each in (given, plain))
    assert squared_error(fitted, own, given) < squared_error(unaware, own, given)
    assert squared_error(unaware, own, plain) < squared_error(fitted, own, plain)


def test_the_cores_are_those_of_a_tensorguide_over_the_layers() -> None:
    train = JointProblem(of_one_shape(), norms(10)).fit(4, 3).train
    layout = Joined(JOINT_LAYOUT, (2 * SIZE, 10, 2, 3))
    guide = TensorGuide(SIZE, SIZE, 3, layout, (1, 4, 1))
    cores = dict(zip(guide.param_shapes, train.cores(), strict=True))
    downs, ups = guide.factors(cores, {})
    for i in range(10):
        assert close(downs[i], train.factors(i).down)
        assert close(ups[i], train.factors(i).up)


def test_many_features_are_reduced_to_the_directions_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    wide = [
        Factors(*(torch.randn(shape, generator=draw).double() for shape in ((2, 60), (9, 2))))
        for _ in range(4)
    ]
    given = norms(4, inside=60, outside=9)
    whole = JointProblem(wide, given).fit(4, 3)
    monkeypatch.setattr(joint_side, "CAP", 24)
    problem = JointProblem(wide, given)
    assert problem.inputs.forms.shape[1:] == (24, 24)
    train, history = problem.fit(4, 3)
    assert same(1 + squared_error(train, wide, given), 1 + history[-1], factor=1e4)
    assert history[-1] < 2 * whole.history[-1]


def test_a_rank_beyond_all_directions_is_refused() -> None:
    own = of_one_shape()[:1]
    with pytest.raises(NumericalError, match="all layers together span 3 directions, fewer than 5"):
        JointProblem(own, norms(1)).fit(5, 3)
