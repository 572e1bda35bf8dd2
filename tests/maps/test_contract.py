"""What every map must do, whatever it is: one suite over the table of maps."""

import copy
import json
import pickle

import pytest
import torch
from torch import Tensor

from tests.support.maps import DTYPES, EVERY, TRANSFORMED, tensors_of, with_full_ranks
from tests.support.own_map import own_map
from tests.support.tolerance import close
from tntune.errors import ModeError
from tntune.maps import DeltaMap, Factors, NormBounded, WeightMap, decode_map, encode

QUICK = (
    *("lora", "tt_lora fixed", "concat mean", "joined unequal primes", "tenslora Att_QKV_Depth", "metatt"),
    *("gated", "norm bounded"),
)
"""Maps of every kind that also compile in the quick run; the others compile under `-m slow`."""

ROWS = {**EVERY, **TRANSFORMED, "own map": own_map()}
ALL = pytest.mark.parametrize("map", ROWS.values(), ids=ROWS)
ZERO = {name: map for name, map in ROWS.items() if map.start == "zero"}
AT_ZERO = pytest.mark.parametrize("map", ZERO.values(), ids=ZERO)


def moved(tensors: dict[str, Tensor], target: torch.device | torch.dtype | str) -> dict[str, Tensor]:
    return {name: tensor.to(target) for name, tensor in tensors.items()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@ALL
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_and_dtypes(map: WeightMap, dtype: torch.dtype) -> None:
    params, fixed = map.init(generator(), dtype=dtype)
    down, up = map.factors(params, fixed)
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == map.param_shapes
    assert {name: tuple(tensor.shape) for name, tensor in fixed.items()} == map.fixed_shapes
    assert map.tensor_shapes == {**map.param_shapes, **map.fixed_shapes}
    assert {tensor.dtype for tensor in params.values()} == {down.dtype} == {up.dtype} == {dtype}
    assert tuple(down.shape) == (map.sites, map.factor_width, map.in_features)
    assert tuple(up.shape) == (map.sites, map.out_features, map.factor_width)
    assert map.delta(params, fixed).shape == (map.sites, map.out_features, map.in_features)


@ALL
def test_one_site_is_its_slice_of_all(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    down, up = map.factors(params, fixed)
    for site in range(map.sites):
        own = map.site_factors(params, fixed, site)
        assert close(own.down, down[site : site + 1])
        assert close(own.up, up[site : site + 1])


@ALL
def test_num_parameters_counts_the_tensors(map: WeightMap) -> None:
    params, _ = map.init()
    assert map.num_parameters == sum(tensor.numel() for tensor in params.values())


@ALL
def test_init_is_a_function_of_the_generator(map: WeightMap) -> None:
    state = torch.get_rng_state()
    first, second, third = (map.init(generator(seed))[0] for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


@ALL
def test_purity(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    before = {name: tensor.clone() for name, tensor in {**params, **fixed}.items()}
    state = torch.get_rng_state()
    first, second = map.factors(params, fixed), map.factors(params, fixed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in {**params, **fixed}.items())
    assert torch.equal(torch.get_rng_state(), state)


@ALL
def test_gradcheck(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    leaves = [tensor.requires_grad_() for tensor in params.values()]
    assert torch.autograd.gradcheck(
        lambda *own: tuple(map.factors(dict(zip(params, own, strict=True)), fixed)), leaves, fast_mode=True
    )


@ALL
def test_vmap_over_a_batch_of_params(map: WeightMap) -> None:
    batch = [tensors_of(map, seed=seed) for seed in (0, 1, 2)]
    stacked = {name: torch.stack([params[name] for params, _ in batch]) for name in map.param_shapes}
    fixed = batch[0][1]
    found = torch.func.vmap(lambda params: map.factors(params, fixed))(stacked)
    for i, (params, _) in enumerate(batch):
        assert all(close(a[i], b) for a, b in zip(found, map.factors(params, fixed), strict=True))


@ALL
def test_jacrev_is_the_jacobian_of_autograd(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    jacobian = torch.func.jacrev(map.delta)(params, fixed)
    weights = torch.randn(map.delta(params, fixed).shape, dtype=torch.float64, generator=generator())
    leaves = [tensor.requires_grad_() for tensor in params.values()]
    gradients = torch.autograd.grad((map.delta(params, fixed) * weights).sum(), leaves)
    for name, gradient in zip(params, gradients, strict=True):
        assert close(torch.tensordot(weights, jacobian[name], dims=3), gradient)


@pytest.mark.parametrize(
    "map", [pytest.param(m, id=n, marks=() if n in QUICK else pytest.mark.slow) for n, m in ROWS.items()]
)
def test_compiles_into_one_graph(map: WeightMap) -> None:
    torch.compiler.reset()
    params, fixed = tensors_of(map, dtype=torch.float32)
    compiled = torch.compile(map.factors, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(params, fixed), map.factors(params, fixed), strict=True):
        assert close(a, b)


@ALL
def test_json_pickle_and_deepcopy_give_the_same_map(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    wanted = map.factors(params, fixed)
    text = json.dumps(encode(map), allow_nan=False)
    for twin in (decode_map(json.loads(text)), pickle.loads(pickle.dumps(map)), copy.deepcopy(map)):
        assert twin == map
        assert hash(twin) == hash(map)
        assert repr(twin) == repr(map)
        assert all(torch.equal(a, b) for a, b in zip(twin.factors(params, fixed), wanted, strict=True))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_coarser_params_are_contracted_in_float32(map: WeightMap, dtype: torch.dtype) -> None:
    params, fixed = tensors_of(map, dtype=dtype)
    found = map.factors(params, fixed)
    wide = map.factors(moved(params, torch.float64), fixed)
    assert all(close(a, b) for a, b in zip(found, wide, strict=True))


@ALL
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_latent_is_never_rounded(map: WeightMap, dtype: torch.dtype) -> None:
    _, fixed = map.init(generator(), dtype=dtype)
    assert all(fixed[name].dtype == torch.float32 for name in map.latent_names)
    assert set(map.resampled) <= set(map.latent_names) <= set(fixed)
    params, fixed = tensors_of(map, dtype=dtype)
    rounded = {**fixed, **{name: fixed[name].bfloat16() for name in map.latent_names}}
    differ = not torch.equal(map.factors(params, fixed).down, map.factors(params, rounded).down)
    assert differ == bool(map.latent_names)


@ALL
def test_meta_params_give_meta_factors(map: WeightMap) -> None:
    params, fixed = map.init()
    for others in (moved(fixed, "meta"), fixed):
        down, up = map.factors(moved(params, "meta"), others)
        assert down.is_meta
        assert up.is_meta
        assert tuple(down.shape) == (map.sites, map.factor_width, map.in_features)


@pytest.mark.parametrize("name", [name for name in ROWS if "norm bounded" not in name])
def test_affine_in_each_core(name: str) -> None:
    map = ROWS[name]
    params, fixed = tensors_of(map)
    others, _ = tensors_of(map, seed=7)
    for name in params:
        mixed = map.factors({**params, name: 3 * params[name] - 2 * others[name]}, fixed)
        first, second = map.factors(params, fixed), map.factors({**params, name: others[name]}, fixed)
        assert all(close(m, 3 * a - 2 * b) for m, a, b in zip(mixed, first, second, strict=True))


@ALL
def test_from_factors_is_exact_at_full_ranks(map: WeightMap) -> None:
    full = with_full_ranks(map)
    down = torch.randn(map.sites, map.width, map.in_features, dtype=torch.float64, generator=generator())
    up = torch.randn(map.sites, map.out_features, map.width, dtype=torch.float64, generator=generator(1))
    params, fixed = full.from_factors(down, up)
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == full.param_shapes
    assert {name: tuple(tensor.shape) for name, tensor in fixed.items()} == full.fixed_shapes
    assert close(full.delta(params, fixed), up @ down)
    if map.factor_width == map.width and not isinstance(getattr(map, "inner", map), DeltaMap | NormBounded):
        assert all(close(a, b) for a, b in zip(full.factors(params, fixed), (down, up), strict=True))


@pytest.mark.parametrize("name", ["lora", "tt_lora", "concat random", "joined", "joined io", "joined layers"])
def test_from_factors_finds_what_the_map_made(name: str) -> None:
    """Where no latent lifts the ranks, no start is subtracted and no padding is lost: the map's own range."""
    map = EVERY[name]
    down, up = map.factors(*tensors_of(map))
    found = map.factors(*map.from_factors(down, up))
    assert all(close(a, b) for a, b in zip(found, (down, up), strict=True))


@ALL
def test_from_factors_refuses_other_shapes(map: WeightMap) -> None:
    down, up = torch.ones(map.sites, map.width, map.in_features), torch.ones(1, 1, 1)
    with pytest.raises(
        ModeError, match=rf"{getattr(map, 'inner', map).kind} needs down .* and up .*\(1, 1, 1\)"
    ):
        map.from_factors(down, up)


@AT_ZERO
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_start_is_zero_exactly(map: WeightMap, dtype: torch.dtype) -> None:
    params, fixed = map.init(generator(), dtype=dtype)
    down, up = map.factors(params, fixed)
    turned = map.network.turned if isinstance(map, DeltaMap) else ()
    for site in range(map.sites):
        down_starts_at_zero = bool(turned) and site % map.network.stack_shape[1] in turned
        if isinstance(map, DeltaMap) and map.network.silent in map.network.down:
            down_starts_at_zero = not down_starts_at_zero
        assert bool(down[site].any()) is not down_starts_at_zero
        assert bool(up[site].any()) is down_starts_at_zero


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(ZERO)))
def test_other_starts_are_not_zero(name: str) -> None:
    assert EVERY[name].delta(*EVERY[name].init(generator())).any()


@AT_ZERO
def test_zero_start_trains(map: WeightMap) -> None:
    """Gradients are finite and not all zero at the start, and after one step no tensor is without."""
    params, fixed = map.init(generator(), dtype=torch.float64)
    weights = torch.randn(map.delta(params, fixed).shape, dtype=torch.float64, generator=generator())
    gradients = gradients_of(map, params, fixed, weights)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())
    stepped = {name: params[name] - gradients[name] for name in params}
    gradients = gradients_of(map, stepped, fixed, weights)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@ALL
def test_device(map: WeightMap, device: torch.device) -> None:
    params, fixed = tensors_of(map)
    wanted = map.factors(params, fixed)
    found = map.factors(moved(params, device), fixed)
    assert all(a.device.type == device.type and close(a, b) for a, b in zip(found, wanted, strict=True))


def gradients_of(
    map: WeightMap, params: dict[str, Tensor], fixed: dict[str, Tensor], weights: Tensor
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    found = torch.autograd.grad((map.delta(leaves, fixed) * weights).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def test_factors_are_named() -> None:
    down, up = torch.ones(1, 2, 5), torch.ones(1, 3, 2)
    assert Factors(down, up) == (down, up)
