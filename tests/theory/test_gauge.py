"""T1, T2: canonical cores keep the function, and have the spectrum that the unfoldings say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.maps import MAPS, tensors_of
from tests.support.oracles import spectra_of
from tests.support.strategies import regauged
from tests.support.tolerance import close
from tests.theory.trains import Case, cases, plain
from tntune.errors import ModeError, UnsupportedError
from tntune.maps.lora import LoRA
from tntune.theory.gauge import canonicalize, gauge_fixed_spectrum, map_trains
from tntune.theory.jacobian import jacobian, map_jacobian
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.orthogonal import orthogonalize
from tntune.tt.train import cores, dense, tt_tensor

TRAINED = [name for name in MAPS if not name.startswith("lora")]


def gauge_fixed(own: list[Tensor], centre: int) -> Tensor:
    """Dense J on the steps of canonical cores that are orthogonal to those cores, away from the centre."""
    columns = torch.func.jacrev(lambda *c: dense(tt_tensor(c)).flatten(), argnums=tuple(range(len(own))))(
        *own
    )
    kept = []
    for k, (core, column) in enumerate(zip(own, columns, strict=True)):
        flat = core.flatten(0, 1) if k < centre else core.flatten(1).mT
        if k == centre:
            kept.append(column.flatten(1))
            continue
        free = torch.linalg.qr(flat, mode="complete").Q[:, flat.shape[1] :]
        if k < centre:
            kept.append((column.flatten(1, 2).mT @ free).flatten(1))
        else:
            kept.append((column.flatten(2) @ free).flatten(1))
    return torch.cat(kept, dim=1)


@pytest.mark.statement("T2")
@given(case=cases(latents=("none",), minimal=True), centre=st.integers(0, 3))
def test_gauge_fixed_values_are_those_of_the_unfoldings(case: Case, centre: int) -> None:
    x, c = tt_tensor(case.cores), min(centre, case.train.order - 1)
    found = gauge_fixed_spectrum(x, c)
    expected = torch.linalg.svdvals(gauge_fixed(cores(orthogonalize(x, c)), c))
    assert found.dimension == len(expected)
    assert close(found.expanded(), expected)
    assert close(torch.tensor(found.delta), expected[-1].square(), factor=1e3)


@pytest.mark.statement("T2")
@given(case=cases(latents=("none",), minimal=True))
def test_whole_jacobian_is_at_least_the_gauge_fixed_one(case: Case) -> None:
    own = cores(orthogonalize(tt_tensor(case.cores)))
    closed = gauge_fixed_spectrum(tt_tensor(own)).expanded()
    whole = TrainJacobian.plain(own).singular_values()[: len(closed)]
    assert bool((whole >= closed * (1 - 1e-10)).all())


@pytest.mark.statement("T2")
def test_two_cores_have_roots_of_one_plus_squares() -> None:
    own = cores(orthogonalize(tt_tensor(plain((5, 6), 3, seed=4))))
    sigma = torch.from_numpy(spectra_of(dense(tt_tensor(own)).numpy())[0][:3])
    whole = TrainJacobian.plain(own).singular_values()
    expected = torch.cat([sigma.repeat(2), torch.ones(9), (1 + sigma**2).sqrt().repeat(3)])
    assert close(whole, expected.sort(descending=True).values)


@pytest.mark.statement("T1")
@given(case=cases(latents=("none",), minimal=True), seed=st.integers(0, 2**31))
def test_rank_is_that_of_the_manifold_in_every_gauge(case: Case, seed: int) -> None:
    dimension = case.train.num_parameters - sum(rank**2 for rank in case.train.ranks[1:-1])
    assert gauge_fixed_spectrum(tt_tensor(case.cores)).dimension == dimension
    for own in (case.cores, cores(regauged(tt_tensor(case.cores), seed))):
        values = TrainJacobian.plain(own).singular_values()
        assert int((values > 1e-12 * values[0]).sum()) == dimension


@pytest.mark.statement("T2")
@given(case=cases(latents=("none",), minimal=True), seed=st.integers(0, 2**31))
def test_closed_form_does_not_depend_on_the_gauge(case: Case, seed: int) -> None:
    x = tt_tensor(case.cores)
    one, other = gauge_fixed_spectrum(x), gauge_fixed_spectrum(regauged(x, seed))
    assert one.counts == other.counts
    assert close(torch.tensor(one.values), torch.tensor(other.values), factor=100)


@pytest.mark.statement("T4")
@given(sizes=st.lists(st.tuples(st.integers(2, 4), st.integers(1, 3)), min_size=2, max_size=4))
def test_product_latent_scales_the_values(sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(len(sizes))
    own = cores(orthogonalize(tt_tensor(plain(tuple(mode for mode, _ in sizes), 3))))
    z = [torch.randn(legs, dtype=torch.float64, generator=generator) for _, legs in sizes]
    norms = [float(vector.norm()) for vector in z]
    wide, weights = [], []
    for core, vector in zip(
        own, z, strict=True
    ):  # G whose contraction with z is the core, and noise beside it
        noise = torch.randn(len(core), len(vector), *core.shape[1:], dtype=torch.float64, generator=generator)
        noise = noise - torch.einsum("anmb,n,p->apmb", noise, vector, vector) / vector.square().sum()
        wide.append(noise + torch.einsum("amb,n->anmb", core, vector) / vector.square().sum())
        weights.append(vector[None, :, None, None].expand(1, -1, core.shape[1], 1))
    J = TrainJacobian(tuple(wide), tuple(weights))
    fixed = []
    columns = torch.split(J.factor(), [core.numel() for core in wide], dim=1)
    for k, (block, core, vector) in enumerate(zip(columns, wide, z, strict=True)):
        lifted = torch.einsum("danmb,n->damb", block.reshape(-1, *core.shape), vector / vector.norm())
        flat = own[k].flatten(0, 1)
        free = torch.linalg.qr(flat, mode="complete").Q[:, flat.shape[1] :]
        steps = lifted.flatten(1, 2)
        steps = steps if k == len(own) - 1 else torch.einsum("dub,uf->dfb", steps, free)
        fixed.append(steps.flatten(1))
    found = gauge_fixed_spectrum(tt_tensor(own), latent_norms=norms)
    assert close(found.expanded(), torch.linalg.svdvals(torch.cat(fixed, dim=1))[: found.dimension])


@pytest.mark.statement("T1")
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("centre", [0, -1])
def test_canonical_cores_keep_the_function(name: str, centre: int) -> None:
    map = MAPS[name]
    params, fixed = tensors_of(map)
    before = {name: param.clone() for name, param in params.items()}
    made = canonicalize(map, params, fixed, centre=centre)
    assert {name: tuple(param.shape) for name, param in made.items()} == dict(map.param_shapes)
    assert all(torch.equal(params[name], before[name]) for name in params)
    for one, other in zip(map.factors(made, fixed), map.factors(params, fixed), strict=True):
        assert close(one, other)
    for train, prefix in map_trains(map):
        own = [made[name].flatten(1, -2) for name in train.names(prefix)]
        _check_orthogonal(own, centre % len(own))


def _check_orthogonal(own: list[Tensor], centre: int) -> None:
    """Columns before the centre and rows behind it are orthonormal, or zero where they were freed."""
    for k, core in enumerate(own):
        if k != centre:
            flat = core.flatten(0, 1) if k < centre else core.flatten(1).mT
            gram = flat.mT @ flat
            assert close(gram, torch.diag((gram.diagonal() > 0.5).double()))


@pytest.mark.statement("T1")
@pytest.mark.parametrize("name", ["concat random", "joined unequal primes", "tt_lora random"])
def test_canonical_maps_see_the_same_range(name: str) -> None:
    params, fixed = tensors_of(MAPS[name])
    made = canonicalize(MAPS[name], params, fixed)
    one, other = jacobian(MAPS[name], params, fixed), jacobian(MAPS[name], made, fixed)
    rank = int(torch.linalg.matrix_rank(one))
    assert map_jacobian(MAPS[name], made, fixed).effective_dimension == rank
    assert int(torch.linalg.matrix_rank(torch.cat([one, other], dim=1))) == rank


def test_zero_start_stays_zero_and_dtype_is_kept() -> None:
    map = MAPS["joined digits"]
    params, fixed = map.init(torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    made = canonicalize(map, params, fixed)
    assert all(param.dtype == torch.bfloat16 for param in made.values())
    assert float(map.delta(made, fixed).abs().max()) == 0.0


def test_what_has_no_gauge_is_refused() -> None:
    params, fixed = tensors_of(LoRA(3, 2, 1))
    with pytest.raises(UnsupportedError, match="lora"):
        canonicalize(LoRA(3, 2, 1), params, fixed)
    with pytest.raises(ModeError, match="centre 5"):
        gauge_fixed_spectrum(tt_tensor(plain((2, 2), 2)), 5)
    with pytest.raises(ModeError, match="1 latent norms do not fit 2 cores"):
        gauge_fixed_spectrum(tt_tensor(plain((2, 2), 2)), latent_norms=[1.0])
