"""Law: σ_i(ΔW) <= bounds_i whatever the params; every ΔW within the bounds is reached."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from tests.support.maps import tensors_of
from tests.support.models import adapted
from tests.support.tolerance import close
from tntune.adapters import adapt, adapted_layers
from tntune.errors import ModeError, SpecError
from tntune.maps import NormBounded, Site
from tntune.maps.norm_bounded import cayley, inverse_cayley

BOUNDS = (3.0, 1.0, 0.25)
MAP = NormBounded(7, 5, 3, BOUNDS)


def test_two_thousand_draws_stay_within_the_bounds() -> None:
    """At scales from 1/100 to 100; some come close, so the bound is not loose."""
    generator = torch.Generator().manual_seed(0)
    free = torch.randn(2000, 12, 3, dtype=torch.float64, generator=generator)
    free = free * 10 ** (4 * torch.rand(2000, 1, 1, dtype=torch.float64, generator=generator) - 2)
    deltas = torch.stack(
        [MAP.delta({"free_down": each[:7].mT, "free_up": each[7:].mT}, {})[0] for each in free]
    )
    ratios = torch.linalg.svdvals(deltas)[:, :3] / torch.tensor(BOUNDS, dtype=torch.float64)
    assert float(ratios.max()) < 1 + 1e-12
    assert float(ratios[:, 0].max()) > 0.9


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_columns_are_orthonormal(scale: float) -> None:
    q = cayley(scale * torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert close(q.mT @ q, torch.eye(4, dtype=torch.float64))


def test_the_inverse_transform_finds_any_columns_up_to_signs() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64, generator=generator))[0]
        found = cayley(inverse_cayley(q))
        signs = (found * q).sum(0).sign()
        assert close(found, q * signs)


def bases(seed: int) -> list[torch.Tensor]:
    """Three orthonormal columns of 5 rows, and of 7."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (5, 7)]
    return [torch.linalg.qr(each)[0] for each in drawn]


def test_a_matrix_within_the_bounds_is_reached() -> None:
    left, right = bases(0)
    values = torch.tensor([2.9, 1.0, 0.1], dtype=torch.float64)
    params, fixed = MAP.from_factors(right.mT[None], (left * values)[None])
    assert close(MAP.delta(params, fixed)[0], (left * values) @ right.mT, factor=1e3)  # σ = bound: a root


def test_other_matrices_are_cut_to_the_bounds() -> None:
    left, right = bases(1)
    values = torch.tensor([9.0, 0.5, 0.4], dtype=torch.float64)
    cut = torch.minimum(values, torch.tensor(BOUNDS, dtype=torch.float64))
    params, fixed = MAP.from_factors(right.mT[None], (left * values)[None])
    assert close(MAP.delta(params, fixed)[0], (left * cut) @ right.mT, factor=1e3)


def test_the_start_is_zero_with_a_gradient() -> None:
    params, fixed = MAP.init(torch.Generator().manual_seed(0))
    assert not MAP.delta(params, fixed).any()
    jacobian = jacrev(lambda own: MAP.delta(own, fixed))(params)
    assert jacobian["free_up"].any()
    assert (
        NormBounded(7, 5, 3, start="random")
        .delta(*NormBounded(7, 5, 3, start="random").init(torch.Generator().manual_seed(0)))
        .any()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_factors_have_the_dtype_of_the_params(dtype: torch.dtype) -> None:
    params, fixed = tensors_of(MAP, dtype=dtype)
    factors = MAP.factors(params, fixed)
    assert {factor.dtype for factor in factors} == {dtype}
    wide = {name: tensor.double() for name, tensor in params.items()}
    assert close(factors.up @ factors.down, MAP.delta(wide, fixed))


def test_gradients() -> None:
    params, _ = tensors_of(MAP)
    own = [tensor.requires_grad_() for tensor in params.values()]
    names = tuple(params)
    assert torch.autograd.gradcheck(lambda *t: MAP.delta(dict(zip(names, t, strict=True)), {}), own)


def test_it_trains_and_merges_as_any_map() -> None:
    """Towards a matrix of larger norm: the bound is reached, never passed."""
    model = nn.Sequential(nn.Linear(7, 5, bias=False))
    nn.init.zeros_(model[0].weight)
    adapt(model, {"0": Site(MAP)}, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    target = 10 * torch.eye(5, 7)
    for _ in range(200):
        optimizer.zero_grad()
        (model(torch.eye(7)).T - target).square().sum().backward()
        optimizer.step()
        found = torch.linalg.svdvals(model[0].delta_weight().detach())
        assert float(found[0]) < 3.0001
    assert float(found[0]) > 2.9
    before = model(torch.eye(7))
    ((_, layer),) = adapted_layers(model)
    layer.merge()
    assert close(model(torch.eye(7)), before)


def test_one_bound_serves_all() -> None:
    assert NormBounded(7, 5, 3, (2.0,)) == NormBounded(7, 5, 3, (2.0, 2.0, 2.0))
    assert adapted(MAP).spec.map.num_parameters == 3 * 12
    layer = adapted(MAP, dtype=torch.float64)
    assert functional_call(layer, dict(layer.named_parameters()), torch.ones(2, 7)).shape == (2, 5)


def test_what_it_refuses() -> None:
    with pytest.raises(ModeError, match="width 6 exceeds"):
        NormBounded(7, 5, 6)
    for bounds in ((1.0, 2.0, 3.0), (1.0, 1.0), (1.0, 1.0, 0.0), (-1.0,)):
        with pytest.raises(SpecError, match="positive numbers that fall"):
            NormBounded(7, 5, 3, bounds)
    with pytest.raises(SpecError, match="one of zero, random"):
        NormBounded(7, 5, 3, start="paper")
