"""T0: JᵀJ, its factor and its products by environments, against autodiff, and where no dense J exists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tolerance import close
from tests.theory.trains import Case, cases, plain, spread
from tntune.errors import ModeError, RankError
from tntune.maps.latent_train import LatentTrain
from tntune.theory.environment import embedded, left_overlaps, merged, pulled_back, right_overlaps
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.train import dense, tt_tensor

pytestmark = pytest.mark.statement("T0")


@given(case=cases())
def test_gram_and_factor_are_those_of_the_dense_jacobian(case: Case) -> None:
    J, found = case.jacobian(), TrainJacobian(case.wide, case.weights)
    gram = J.mT @ J
    assert found.num_parameters == len(gram)
    assert found.modes == case.train.modes
    assert close(found.gram(), gram)
    C = found.factor()
    assert close(C.mT @ C, gram)


@given(case=cases(), seed=st.integers(0, 2**31))
def test_products_are_those_of_the_gram(case: Case, seed: int) -> None:
    found = TrainJacobian(case.wide, case.weights)
    shape = (2, 3, found.num_parameters)
    v = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert close(found.matvec(v), v @ case.jacobian().mT @ case.jacobian(), factor=10)
    assert close(found.matvec(v[0, 0]), found.matvec(v)[0, 0])


@given(case=cases())
def test_singular_values_are_those_of_the_dense_jacobian(case: Case) -> None:
    values = torch.linalg.svdvals(case.jacobian())
    found = TrainJacobian(case.wide, case.weights).singular_values()
    kept = min(len(values), len(found))
    assert close(found[:kept], values[:kept])
    rest = torch.cat([values[kept:], found[kept:]])
    assert close(values[0] + rest, values[0].expand(len(rest)))


@given(case=cases())
def test_merged_cores_are_w(case: Case) -> None:
    assert close(dense(tt_tensor(merged(case.wide, case.weights))).flatten(), case.entries(*case.wide))


@given(case=cases(), seed=st.integers(0, 2**31))
def test_pulling_back_is_the_transpose_of_embedding(case: Case, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for core, weight in zip(case.wide, case.weights, strict=True):
        image = embedded(core, weight)
        hole = torch.randn(image.shape, dtype=image.dtype, generator=generator)
        assert close((image * hole).sum(), (core * pulled_back(hole, weight)).sum(), factor=100)


def test_overlaps_are_those_of_dense_interfaces() -> None:
    one, other = plain((3, 2, 4), 3, seed=0), plain((3, 2, 4), 2, seed=1)
    left = [
        torch.tensordot(core[0], core[1], dims=1).flatten(0, 1)
        for core in ([x[0][0], x[1]] for x in (one, other))
    ]
    assert close(left_overlaps(one, other)[2], left[0].mT @ left[1])
    right = [torch.tensordot(x[1], x[2][..., 0], dims=1).flatten(1) for x in (one, other)]
    assert close(right_overlaps(one, other)[1], right[0] @ right[1].mT)
    assert close(left_overlaps(one, other)[3], right_overlaps(one, other)[0])


def test_ill_conditioned_cores_keep_their_rank_without_squaring() -> None:
    own = spread(plain((4, 4, 4, 4, 4), 4), 1e-3)
    jacobian = TrainJacobian.plain(own)
    dimension = jacobian.num_parameters - sum(len(core) ** 2 for core in own[1:])
    values = jacobian.singular_values()[:dimension]
    assert float(values[0] / values[-1]) > 1e9
    train = LatentTrain((4,) * 5, (1, *(len(core) for core in own[1:]), 1))
    expected = torch.linalg.svdvals(Case(train, tuple(own), None).jacobian())[:dimension]
    assert close(values.log(), expected.log(), factor=1e4)
    squared = torch.linalg.eigvalsh(jacobian.gram()).flip(0)[dimension - 1]
    assert abs(float(squared / values[-1] ** 2) - 1) > 1  # the Gram has lost the smallest one


def test_two_to_the_forty_entries_cost_nothing() -> None:
    own = plain((4,) * 20, 3)
    jacobian = TrainJacobian.plain(own)
    gram, C = jacobian.gram(), jacobian.factor()
    assert close(C.mT @ C, gram)
    v = torch.linspace(-1, 1, len(gram), dtype=torch.float64)
    assert close(jacobian.matvec(v), gram @ v)
    # J applied to the cores themselves is K w, so that |J θ|² = K² |w|²
    theta = torch.cat([core.flatten() for core in own])
    norm = right_overlaps(own, own)[0].squeeze()
    assert close(theta @ gram @ theta, 400 * norm)
    values = torch.linalg.svdvals(C)
    assert len(values) == jacobian.num_parameters - sum(len(core) ** 2 for core in own[1:])
    assert float(values[-1]) > 0


def test_single_precision_cores_are_computed_in_double() -> None:
    own = [core.float() for core in plain((3, 4, 2), 2)]
    assert TrainJacobian.plain(own).gram().dtype == torch.float64


def test_what_is_no_chain_is_refused() -> None:
    core = torch.ones(1, 1, 2, 1)
    with pytest.raises(ModeError, match="cores are 4-way"):
        TrainJacobian((core[0],), (core,))
    with pytest.raises(ModeError, match=r"modes \[\(1, 2\)\], their weights \[\(1, 3\)\]"):
        TrainJacobian((core,), (torch.ones(1, 1, 3, 1),))
    with pytest.raises(RankError, match=r"cores\[0\] ends with rank 1, the next starts with 2"):
        TrainJacobian((core, torch.ones(2, 1, 2, 1)), (core, core))
    with pytest.raises(ModeError, match="2 parameters is needed"):
        TrainJacobian((core,), (core,)).matvec(torch.ones(3))
