"""Joint maps: each is its formula, each is a case of another, and each finds again what it made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.cp_tensor import CPTensor
from tensorly.tucker_tensor import TuckerTensor
from torch import Tensor

from tests.support.dense_maps import (
    delta_train_delta,
    fact_tucker_delta,
    full_tensor,
    lorta_delta,
    lotr_delta,
    metatt_delta,
    tenslora_delta,
)
from tests.support.maps import FAMILY, FLAT, SQUARE, tensors_of, with_full_ranks
from tests.support.tolerance import close
from tntune.errors import ModeError, RankError, SpecError
from tntune.maps import (
    DeltaMap,
    DeltaTrain,
    FacT,
    JointMap,
    LoRA,
    LoRETTA,
    LoRTA,
    LoTR,
    MetaTT,
    Stack,
    TensLoRA,
    TTLoRA,
)
from tntune.tt import dense

NETWORKS = {name: map for name, map in FAMILY.items() if isinstance(map, DeltaMap)}
TRAINS_AND_TUCKER = {
    name: map
    for name, map in NETWORKS.items()
    if not isinstance(map, LoRTA) and not (isinstance(map, TensLoRA) and map.form == "cp")
}

stacks = st.builds(
    Stack, st.integers(1, 5), st.integers(1, 5), layers=st.integers(1, 3), projections=st.integers(1, 3)
)
square_stacks = st.integers(1, 3).flatmap(
    lambda half: st.builds(
        Stack, st.just(2 * half), st.just(2 * half), layers=st.integers(1, 3), projections=st.integers(1, 3)
    )
)
ranks = st.integers(1, 4)
seeds = st.integers(0, 2**31)


def oracle(map: DeltaMap, params: dict[str, Tensor]) -> np.ndarray:
    """ΔW of every site, by the formula of the method."""
    nodes = {name: tensor.numpy() for name, tensor in params.items()}
    if isinstance(map, DeltaTrain):
        return delta_train_delta(list(nodes.values()), map.in_modes, map.out_modes)
    stack = (map.stack.layers, map.stack.projections)
    if isinstance(map, TensLoRA):
        order = "head dh" if "head" in map.modes and map.compat == "none" else "as is"
        return tenslora_delta(nodes, list(map.modes), stack, order, map.input_heads)
    if isinstance(map, LoRTA):
        return lorta_delta(nodes, stack, map.input_heads)
    if isinstance(map, MetaTT):
        return metatt_delta(nodes, stack, map.input_heads)
    return fact_tucker_delta(nodes) if "tn_site" in nodes else lotr_delta(nodes)


@pytest.mark.parametrize("map", NETWORKS.values(), ids=NETWORKS)
def test_is_its_formula(map: DeltaMap) -> None:
    params, fixed = tensors_of(map)
    assert close(map.delta(params, fixed), torch.from_numpy(oracle(map, params)))


@pytest.mark.parametrize("map", NETWORKS.values(), ids=NETWORKS)
def test_nothing_has_both_in_and_out_legs(map: DeltaMap) -> None:
    """No intermediate is larger than the largest of what goes in and what comes out."""
    down, up = map.factors(*tensors_of(map))
    nodes = [np.prod(shape) for shape in map.param_shapes.values()]
    assert max(plan.peak for plan in map.plans) <= max(down.numel(), up.numel(), *nodes)


def test_a_published_size_never_meets_its_dense_tensor() -> None:
    map = TensLoRA(Stack(768, 768, layers=12, projections=3), "QKV_Depth", (60, 60, 3, 12))
    assert max(plan.peak for plan in map.plans) == 36 * 768 * 60  # up, which all sites need
    assert map.in_features * map.out_features * map.sites == 21_233_664


@pytest.mark.parametrize("name", TRAINS_AND_TUCKER)
def test_from_factors_finds_what_the_map_made(name: str) -> None:
    map = TRAINS_AND_TUCKER[name]
    down, up = map.factors(*tensors_of(map))
    assert close(map.delta(*map.from_factors(down, up)), up @ down)


@pytest.mark.parametrize("name", TRAINS_AND_TUCKER)
def test_from_factors_is_quasi_optimal(name: str) -> None:
    """The error is at most the root of the number of nodes times what optimisation finds."""
    map = TRAINS_AND_TUCKER[name]
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(map.sites, 3, map.in_features, dtype=torch.float64, generator=generator)
    up = torch.randn(map.sites, map.out_features, 3, dtype=torch.float64, generator=generator)
    error = float((map.delta(*map.from_factors(down, up)) - up @ down).norm())
    best = min(float((map.delta(*refined(map, down, up, seed)) - up @ down).norm()) for seed in range(3))
    assert error <= len(map.param_shapes) ** 0.5 * best + 1e-9


def refined(
    map: DeltaMap, down: Tensor, up: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters by LBFGS from a random start."""
    start, fixed = tensors_of(map, seed=seed)
    params = {name: (0.5 * tensor).requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.LBFGS(list(params.values()), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (map.delta(params, fixed) - up @ down).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return {name: tensor.detach() for name, tensor in params.items()}, fixed


@pytest.mark.parametrize(
    "name", ["lorta", "lorta input heads", "tenslora cp Att_QKV_Depth", "tenslora cp Depth"]
)
def test_cp_fits_no_worse_than_zero_and_better_with_rank(name: str) -> None:
    map = FAMILY[name]
    down, up = map.factors(*tensors_of(map))
    single = replace(map, rank=1) if isinstance(map, LoRTA) else replace(map, ranks=(1,))
    errors = [
        float((m.delta(*m.from_factors(down, up)) - up @ down).norm() / (up @ down).norm())
        for m in (single, map, with_full_ranks(map))
    ]
    assert 1 > errors[0] > errors[1] >= errors[2]


def test_any_inner_width_can_be_fitted() -> None:
    """A LoRA of rank 2 goes into a train of width 4, and is found again."""
    map = LoTR(FLAT, 4)
    down, up = LoTR(FLAT, 2).factors(*tensors_of(LoTR(FLAT, 2)))
    assert close(map.delta(*map.from_factors(down, up)), up @ down)


# Every method is a case of another.


@given(stack=stacks, rank=ranks, seed=seeds)
def test_lotr_is_tucker_with_an_identity_for_the_layers(stack: Stack, rank: int, seed: int) -> None:
    stack = replace(stack, projections=1)
    lotr, tucker = LoTR(stack, rank), TensLoRA(stack, "Depth", (rank, rank, stack.layers))
    params, _ = tensors_of(lotr, seed=seed)
    same = {
        "tn_in": params["tn_in"][None],
        "tn_out": params["tn_out"][None],
        "tn_layer": torch.eye(stack.layers, dtype=torch.float64)[None],
        "tn_core": params["tn_core"].permute(1, 2, 3, 0),
    }
    assert close(tucker.delta(same, {}), lotr.delta(params, {}))


@given(stack=stacks, rank=ranks, seed=seeds)
def test_fact_tt_is_lotr(stack: Stack, rank: int, seed: int) -> None:
    params, _ = tensors_of(LoTR(stack, rank), seed=seed)
    assert close(FacT(stack, rank).delta(params, {}), LoTR(stack, rank).delta(params, {}))


@given(stack=stacks, rank=ranks, seed=seeds)
def test_fact_tucker_is_lotr_with_mixed_cores(stack: Stack, rank: int, seed: int) -> None:
    fact = FacT(stack, rank, form="tucker")
    params, _ = tensors_of(fact, seed=seed)
    mixed = torch.einsum("abc,lpc->lpab", params["tn_core"], params["tn_site"])
    same = {"tn_in": params["tn_in"], "tn_core": mixed, "tn_out": params["tn_out"]}
    assert close(LoTR(stack, rank).delta(same, {}), fact.delta(params, {}))


@given(stack=square_stacks, rank=ranks, seed=seeds, turn=st.booleans())
def test_lorta_is_tucker_with_a_super_diagonal_core(stack: Stack, rank: int, seed: int, turn: bool) -> None:
    turned = (stack.projections - 1,) if turn else ()
    lorta = LoRTA(stack, rank, heads=2, input_heads=turned)
    tucker = TensLoRA(stack, "Att_QKV_Depth", (rank,) * 5, heads=2, input_heads=turned)
    params, _ = tensors_of(lorta, seed=seed)
    core = torch.zeros((rank,) * 5, dtype=torch.float64)
    core[(torch.arange(rank),) * 5] = 1
    assert close(tucker.delta({**params, "tn_core": core}, {}), lorta.delta(params, {}))
    cp = replace(tucker, form="cp", ranks=(rank,))
    assert close(cp.delta(params, {}), lorta.delta(params, {}))


@given(stack=square_stacks, rank=ranks, seed=seeds, turn=st.booleans())
def test_lorta_is_a_train_with_diagonal_cores(stack: Stack, rank: int, seed: int, turn: bool) -> None:
    turned = (stack.projections - 1,) if turn else ()
    lorta = LoRTA(stack, rank, heads=2, input_heads=turned)
    train = MetaTT(stack, rank, heads=2, input_heads=turned)
    params, _ = tensors_of(lorta, seed=seed)
    inner = {
        name: torch.diag_embed(params[name]).movedim(0, 1) for name in ("tn_layer", "tn_proj", "tn_head")
    }
    same = {"tn_in": params["tn_in"], **inner, "tn_dh": params["tn_dh"].mT}
    assert close(train.delta(same, {}), lorta.delta(params, {}))


@given(stack=stacks, rank=ranks, seed=seeds)
def test_metatt_is_lotr_with_products_for_cores(stack: Stack, rank: int, seed: int) -> None:
    train = MetaTT(stack, rank)
    params, _ = tensors_of(train, seed=seed)
    products = torch.einsum("alb,bpc->lpac", params["tn_layer"], params["tn_proj"])
    same = {"tn_in": params["tn_in"], "tn_core": products, "tn_out": params["tn_out"].mT}
    assert close(LoTR(stack, rank).delta(same, {}), train.delta(params, {}))


@given(sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)), rank=ranks, seed=seeds)
def test_a_delta_train_of_two_cores_is_lora(sizes: tuple[int, int], rank: int, seed: int) -> None:
    train, lora = DeltaTrain(sizes[:1], sizes[1:], (1, rank, 1)), LoRA(*sizes, rank)
    params, _ = tensors_of(train, seed=seed)
    same = {"lora_down": params["tt_core_0"][0].mT, "lora_up": params["tt_core_1"][..., 0].mT}
    pairs = zip(train.factors(params, {}), lora.factors(same, {}), strict=True)
    assert all(close(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in FAMILY if name.startswith("loretta")])
def test_loretta_is_tt_lora_without_a_latent(name: str) -> None:
    map = FAMILY[name]
    params, fixed = tensors_of(map)
    assert isinstance(map.trains, TTLoRA)
    assert not map.trains.down_train.has_latent
    pairs = zip(map.factors(params, fixed), map.trains.factors(params, fixed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# As tensorly's types.


@pytest.mark.parametrize(
    "name", [name for name in FAMILY if name.startswith("tenslora") and "input" not in name]
)
def test_tensors_of_tenslora_are_tensorlys(name: str) -> None:
    """Their entries, in the order of the sites that read them, are those of ΔW."""
    map = FAMILY[name]
    params, fixed = tensors_of(map)
    found = map.tensors(params)
    assert all(tensor.shape == tuple(map.modes.values()) for tensor in found)
    entries = [dense_of(tensor) for tensor in found]
    total = sum(float(tensor.square().sum()) for tensor in entries)
    assert abs(total / float(map.delta(params, fixed).square().sum()) - 1) < 1e-9
    if len(found) == map.sites:  # one site each
        first = entries[-1].movedim(2, 1) if map.compat == "none" and "head" in map.modes else entries[-1]
        assert close(first.flatten(1).mT, map.delta(params, fixed)[-1])


def dense_of(tensor: TuckerTensor | CPTensor) -> Tensor:
    weights, factors = tensor
    core = weights.numpy() if isinstance(tensor, TuckerTensor) else None
    return torch.from_numpy(full_tensor([factor.numpy() for factor in factors], core))


@pytest.mark.parametrize("name", ["metatt", "metatt heads", "delta train", "delta train random"])
def test_trains_are_tensorlys(name: str) -> None:
    map = FAMILY[name]
    params, fixed = tensors_of(map)
    train = map.tensor_train(params)
    entries = dense(train)
    if isinstance(map, MetaTT):
        assert tuple(entries.shape) == tuple(map.modes.values())
        entries = entries.permute(1, 2, 0, *range(3, entries.ndim)).flatten(3).flatten(0, 1).mT
    else:
        order = len(map.in_modes)
        entries = entries.permute(*range(order - 1, -1, -1), *range(order, entries.ndim))
        entries = entries.reshape(1, map.in_features, map.out_features).mT
    assert close(entries, map.delta(params, fixed))


# Gauge.


@pytest.mark.parametrize("name", ["delta train", "metatt", "lotr"])
def test_a_gauge_on_the_cut_changes_no_delta(name: str) -> None:
    """G and its inverse between down and up: other factors, the same ΔW."""
    map = FAMILY[name]
    params, fixed = tensors_of(map)
    rank = map.width
    gauge = torch.eye(rank).double() + 0.3 * torch.ones(rank, rank).double()
    left, right = {
        "delta train": ("tt_core_1", "tt_core_2"),
        "metatt": ("tn_in", "tn_layer"),
        "lotr": ("tn_in", "tn_core"),
    }[name]
    axis = map.network.nodes[right].legs.index("width")
    turned = {
        **params,
        left: params[left] @ gauge,
        right: torch.tensordot(torch.linalg.inv(gauge), params[right].movedim(axis, 0), dims=1).movedim(
            0, axis
        ),
    }
    assert not torch.allclose(map.factors(turned, fixed).down, map.factors(params, fixed).down)
    assert close(map.delta(turned, fixed), map.delta(params, fixed))


@given(modes=st.lists(st.integers(2, 3), min_size=2, max_size=4), rank=st.integers(1, 3), seed=seeds)
def test_the_jacobian_of_a_train_lacks_its_gauge(modes: list[int], rank: int, seed: int) -> None:
    """``rank J == P - Σ r_k²`` at admissible ranks and generic cores."""
    cut = len(modes) // 2
    map = with_full_ranks(DeltaTrain(modes[:cut], modes[cut:], (1, *[1] * (len(modes) - 1), 1)))
    map = replace(map, ranks=tuple(min(rank, r) for r in map.ranks))
    params, fixed = tensors_of(map, seed=seed)
    jacobian = torch.func.jacrev(map.delta)(params, fixed)
    J = torch.cat([part.reshape(map.in_features * map.out_features, -1) for part in jacobian.values()], 1)
    spectrum = torch.linalg.svdvals(J)
    found = int((spectrum > 1e-9 * spectrum[0]).sum())
    assert found == map.num_parameters - sum(r * r for r in map.ranks[1:-1])


# Starts and refusals.


def test_strided_heads_are_a_permutation_of_aligned_ones() -> None:
    aligned = FAMILY["tenslora Att_Depth"]
    strided = replace(aligned, compat="tenslora")
    params, _ = tensors_of(aligned)
    heads, dh = aligned.modes["head"], aligned.modes["dh"]
    shuffled = aligned.delta(params, {}).reshape(-1, heads, dh, aligned.in_features).transpose(1, 2)
    assert close(strided.delta(params, {}), shuffled.reshape(strided.delta(params, {}).shape))


def test_factors_of_a_tucker_start_orthonormal_and_replicas_differ() -> None:
    params, _ = FAMILY["tenslora Depth"].init(torch.Generator().manual_seed(0), dtype=torch.float64)
    u = params["tn_in"]  # (proj, in, width)
    assert close(u.mT @ u, torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    assert not torch.allclose(u[0], u[1])


def test_the_published_start_of_a_delta_train_has_unit_cores() -> None:
    map = DeltaTrain((16, 8), (8, 16), (1, 5, 5, 5, 1), start="published")
    params, fixed = map.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    for core in params.values():
        assert close(core.norm(), torch.ones((), dtype=torch.float64))
    assert 0 < float(map.delta(params, fixed).norm()) <= 1


def test_the_published_start_of_loretta_has_the_stated_variance() -> None:
    map = LoRETTA(12, 20, 4, (6, 8), (8, 10), 3, "published")
    drawn = [map.factors(*map.init(torch.Generator().manual_seed(seed))) for seed in range(400)]
    for k, features in ((0, 12), (1, 20)):
        square = torch.stack([factors[k] for factors in drawn]).square().mean()
        assert abs(float(square) * (4 + features) - 1) < 0.15


@pytest.mark.parametrize("name", ["metatt", "delta train"])
def test_down_starts_with_the_variance_of_loras(name: str) -> None:
    map = FAMILY[name]
    drawn = [map.factors(*map.init(torch.Generator().manual_seed(seed))).down for seed in range(2000)]
    assert abs(float(torch.stack(drawn).square().mean()) * 3 * map.in_features - 1) < 0.15


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TensLoRA(FLAT, "Width", (2,)), SpecError, "construction must be one of Att, QKV, .*'Width'"),
        (lambda: TensLoRA(FLAT, ["QKV"], (2,)), SpecError, "construction must be one of"),
        (lambda: TensLoRA("flat", "QKV", (2,)), SpecError, "a joint map needs a Stack, not 'flat'"),
        (lambda: TensLoRA(FLAT, "QKV", (2, 2)), RankError, r"form 'tucker' needs 3 ranks here, not \(2, 2\)"),
        (lambda: TensLoRA(FLAT, "QKV", (2, 2), form="cp"), RankError, "form 'cp' needs 1 ranks"),
        (lambda: TensLoRA(FLAT, "QKV", (2, 2, 2), form="tt"), SpecError, "form must be one of tucker, cp"),
        (lambda: TensLoRA(FLAT, "QKV", (2, 0, 2)), SpecError, r"ranks\[1\] must be a positive integer"),
        (lambda: TensLoRA(FLAT, "QKV", (2, 2, 2), 2), SpecError, "has no head mode, but heads=2 was given"),
        (lambda: TensLoRA(FLAT, "Att", (2, 2, 2), 3), ModeError, "3 heads do not divide 4 features"),
        (
            lambda: TensLoRA(FLAT, "QKV", (2, 2, 2), compat="tenslora"),
            SpecError,
            "compat='tenslora' were given",
        ),
        (lambda: TensLoRA(FLAT, "Att", (2, 2, 2), 2, compat="ours"), SpecError, "compat must be one of none"),
        (lambda: TensLoRA(FLAT, "Att", (2,) * 3, 2, input_heads=(1,)), ModeError, "square sites, not 5 x 4"),
        (
            lambda: TensLoRA(SQUARE, "QKV", (2,) * 3, input_heads=(1,)),
            SpecError,
            r"input_heads=\(1,\), compat",
        ),
        (lambda: LoTR(FLAT, 0), SpecError, "rank must be a positive integer, not 0"),
        (lambda: LoTR(None, 2), SpecError, "a joint map needs a Stack"),
        (lambda: LoTR(FLAT, 2, start="paper"), SpecError, "start must be one of zero, random, not 'paper'"),
        (lambda: LoRTA(SQUARE, 2, 2, (3,)), SpecError, r"different projections below 3, not \(3,\)"),
        (lambda: LoRTA(SQUARE, 2, 2, (0, 0)), SpecError, "different projections below 3"),
        (lambda: LoRTA(SQUARE, 2, 2, (True,)), SpecError, "different projections below 3"),
        (lambda: LoRTA(SQUARE, 2, 3), ModeError, "3 heads do not divide 4 features"),
        (lambda: FacT(FLAT, 2, form="cp"), SpecError, "form must be one of tt, tucker, not 'cp'"),
        (lambda: MetaTT(SQUARE, 2, input_heads=(1,)), SpecError, "there is no head mode: heads=1"),
        (lambda: DeltaTrain((2,), (3,), (1, 2)), RankError, r"modes \(2, 3\) need 3 ranks with 1 at both"),
        (lambda: DeltaTrain((2,), (3,), (2, 2, 1)), RankError, "with 1 at both ends"),
        (lambda: DeltaTrain((), (3,), (1, 1)), SpecError, "in_modes must be a non-empty list"),
        (lambda: LoRETTA(4, 4, 2, (4, 3), (8,), 2), ModeError, "down_train has modes .* its factor has 8"),
        (lambda: LoRETTA(4, 4, 2, (4, 2), (8,), 2, "paper"), SpecError, "one of zero, random, published"),
    ],
)
def test_refuses(make: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_joint_maps_are_those_with_a_stack() -> None:
    assert {map.kind for map in NETWORKS.values() if not isinstance(map, JointMap)} == {"delta_train"}
