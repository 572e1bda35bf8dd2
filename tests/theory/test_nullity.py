"""T1, T4: the formula of the nullity against the numerical rank of J."""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.support.maps import MAPS, tensors_of
from tests.theory.trains import Case, cases, latent
from tntune.errors import ModeError, RankError
from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain
from tntune.theory.jacobian import map_jacobian
from tntune.theory.nullity import Nullity, nullity


def counted(case: Case) -> int:
    """P less the numerical rank of the dense J."""
    return case.train.num_parameters - int(torch.linalg.matrix_rank(case.jacobian()))


@pytest.mark.statement("T1")
@given(case=cases(latents=("none",), minimal=True))
def test_without_latent_it_is_the_gauge(case: Case) -> None:
    found = nullity(case.train)
    assert found.total == counted(case) == sum(rank**2 for rank in case.train.ranks[1:-1])


@pytest.mark.statement("T4")
@given(case=cases(latents=("generic", "product"), minimal=True))
def test_generic_and_product_latents_attain_the_bound(case: Case) -> None:
    try:
        found = nullity(case.train, case.latent)
    except RankError:  # a latent whose own ranks the modes do not admit, even at TT-ranks 1
        return
    assert found.total == counted(case)


@pytest.mark.statement("T4")
@given(case=cases(latents=("low",), minimal=True))
def test_special_latents_have_at_least_so_many(case: Case) -> None:
    try:
        found = nullity(case.train, case.latent)
    except RankError:
        return
    assert found.total <= counted(case)


@pytest.mark.statement("T4")
def test_published_network_by_cause() -> None:
    train = LatentTrain((16, 8, 257, 16), (1, 2, 2, 1, 1), Latent("fixed", (1, 2, 2, 1)))
    assert nullity(train) == Nullity(modes=0, bonds=15, symmetries=6, excess=21)
    assert nullity(train).total == 21


@pytest.mark.statement("T4")
def test_excess_binds_where_merged_ranks_fill_the_modes() -> None:
    train = LatentTrain((8, 4, 6), (1, 3, 2, 1), Latent("fixed", (2, 3, 2)))
    z = latent("generic", (2, 3, 2), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    own = tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in train.core_shapes)
    found = nullity(train, z)
    assert found.modes + found.bonds + found.symmetries == 16
    assert found.total == found.excess == counted(Case(train, own, z)) == 28


@pytest.mark.statement("T4")
@pytest.mark.parametrize(
    ("z", "symmetries"),
    [
        (torch.eye(3), 9),
        (torch.eye(2)[:, :, None] * torch.eye(2), 4),
        (torch.ones(1, 1, 1), 2),
        (torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0)), 4),
    ],
    ids=["matrix", "diagonal", "product", "generic 2x2x2"],
)
def test_stabilisers_known_by_hand(z: Tensor, symmetries: int) -> None:
    order = z.ndim
    train = LatentTrain((9,) * order, (1,) * (order + 1), Latent("fixed", tuple(z.shape)))
    assert nullity(train, z).symmetries == symmetries


@pytest.mark.statement("T4")
def test_boundary_ranks_and_open_latents() -> None:
    for name in ("concat mean", "joined mean"):
        params, fixed = tensors_of(MAPS[name])
        assert nullity(MAPS[name].train).total == map_jacobian(MAPS[name], params, fixed).nullity
    train = LatentTrain((4, 4), (3, 2, 2))
    own = {f"tt_core_{k}": torch.randn(s, dtype=torch.float64) for k, s in enumerate(train.core_shapes)}
    case = Case(train, tuple(own.values()), None)
    assert nullity(train).total == train.num_parameters - 12
    assert counted(case) == nullity(train).total


def test_what_the_formula_does_not_cover_is_refused() -> None:
    train = LatentTrain((2, 2), (1, 2, 1), Latent("fixed", (2, 2)))
    with pytest.raises(RankError, match=r"modes \(2, 2\) do not admit the ranks \(1, 4, 1\) of w"):
        nullity(train)
    with pytest.raises(ModeError, match=r"the latent has shape \(3, 2\)"):
        nullity(train, torch.ones(3, 2))
