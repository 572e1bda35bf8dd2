"""The kernel of one layer, by its structure and by torch.func over everything."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.maps import MAPS, tensors_of
from tests.support.strategies import regauged
from tests.support.tolerance import close, gap
from tntune.errors import DtypeError, ModeError, UnsupportedError
from tntune.maps import ACTIVATIONS, Geometry, Joined, LatentTrain, LoRA, Site, TensorGuide, TTLoRA
from tntune.theory import layer_ntk
from tntune.tt.train import cores, tt_tensor

SINGLE = {name: map for name, map in MAPS.items() if map.sites == 1}
PATTERNS = ("side f w", "f1 side f2 w1 w2", "w1 w2 io1 io2", "w side f1 f2", "io1 io2 io3 w", "w1 side w2 f")


def jacobian(site: Site, tensors: dict[str, Tensor], x: Tensor, gradients: Tensor | None = None) -> Tensor:
    """``(n, C, P)`` by reverse mode through the layer as it is written, nothing structured."""
    params = {name: tensors[name] for name in site.map.param_shapes}
    sigma = ACTIVATIONS[site.activation].function

    def outputs(own: dict[str, Tensor]) -> Tensor:
        down, up = site.map.factors(own, tensors)
        y = site.scale * sigma(x @ down[0].mT) @ up[0].mT
        return y if gradients is None else torch.einsum("icq,iq->ic", gradients, y)

    parts = torch.func.jacrev(outputs)(params).values()
    return torch.cat([part.flatten(2) for part in parts], dim=2)


def kernels(a: Tensor) -> dict[str, Tensor]:
    """All three outputs from the Jacobian."""
    whole = torch.einsum("icp,jdp->icjd", a, a)
    return {
        "full": whole.flatten(2).flatten(0, 1),
        "trace": torch.einsum("icjc->ij", whole),
        "per_class": torch.einsum("icjc->cij", whole),
    }


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.statement("N1")
@pytest.mark.statement("E11")
@pytest.mark.statement("E12")
@pytest.mark.parametrize("map", SINGLE.values(), ids=SINGLE)
def test_every_map_by_two_routes(map) -> None:
    params, fixed = tensors_of(map)
    site = Site(map, 0.7, "gelu" if map.factor_width == map.width else "identity")
    x, inside = normal(4, map.in_features), normal(4, 2, map.out_features, seed=1)
    for gradients in (None, inside):
        wanted = kernels(jacobian(site, {**params, **fixed}, x, gradients))
        for output, values in wanted.items():
            found = layer_ntk(site, {**params, **fixed}, x, output=output, gradients=gradients)
            assert close(found.values, values)
            assert close(sum(found.per_layer().values()), values)


@st.composite
def guides(draw: st.DrawFn) -> TensorGuide:
    """Joined maps whose features and width some bond parts; ranks are whatever they are, at the ends too."""
    sizes = Geometry(*(draw(st.integers(1, 6)) for _ in range(3)))
    layout = Joined.auto(draw(st.sampled_from(PATTERNS)), sizes)
    ranks = tuple(draw(st.integers(1, 3)) for _ in range(len(layout.modes) + 1))
    return TensorGuide(*sizes, layout, ranks, start="random")


@pytest.mark.statement("N2")
@given(guides(), st.sampled_from(sorted(ACTIVATIONS)), st.integers(0, 2**31))
def test_aligned_trains_by_two_routes(guide: TensorGuide, activation: str, seed: int) -> None:
    params, _ = tensors_of(guide, seed=seed)
    site, x = Site(guide, 1.3, activation), normal(3, guide.in_features, seed=seed)
    found = layer_ntk(site, params, x)
    assert found.route == "aligned"
    assert close(found.values, kernels(jacobian(site, params, x))["full"])


@pytest.mark.statement("N2")
@given(st.data())
def test_tt_lora_by_two_routes(data: st.DataObject) -> None:
    one, two, width, three, four = (data.draw(st.integers(1, 4)) for _ in range(5))
    r = [data.draw(st.integers(1, 3)) for _ in range(5)]
    down = LatentTrain((one, two, width), (1, r[0], r[1], 1))
    up = LatentTrain((width, three, four), (r[2], r[3], r[4], 1))
    site = Site(TTLoRA(one * two, three * four, width, down, up), activation="tanh")
    params, _ = tensors_of(site.map)
    x = normal(3, one * two)
    found = layer_ntk(site, params, x)
    assert found.route == "aligned"
    assert close(found.values, kernels(jacobian(site, params, x))["full"])


@pytest.mark.statement("N1")
def test_orthogonal_gauges_keep_the_kernel_and_others_do_not() -> None:
    guide = TensorGuide(6, 4, 3, Joined.auto("side f1 f2 w", Geometry(6, 4, 3)), (1, 2, 3, 3, 1))
    params, fixed = tensors_of(guide)
    site, x = Site(guide, activation="gelu"), normal(5, 6)
    train = tt_tensor(list(params.values()))
    before = layer_ntk(site, {**params, **fixed}, x).values

    def kernel(own: list[Tensor]) -> Tensor:
        return layer_ntk(site, {**dict(zip(params, own, strict=True)), **fixed}, x).values

    turn = torch.linalg.qr(normal(3, 3, seed=4))[0]
    turned = cores(train)
    turned[1], turned[2] = turned[1] @ turn, torch.tensordot(turn.T, turned[2], dims=1)
    assert close(kernel(turned), before)
    assert gap(kernel(cores(regauged(train, 3))), before) > 1e-3


@pytest.mark.statement("E24")
def test_lora_at_zero_up_has_a_kernel_of_rank_at_most_r_q() -> None:
    map = LoRA(9, 3, 2)
    params, _ = tensors_of(map)
    params["lora_up"].zero_()
    report = layer_ntk(Site(map), params, normal(8, 9)).spectrum(rank_bound=2 * 3)
    assert report.rank == 6
    assert report.lambda_min == 0.0


@pytest.mark.statement("E23")
def test_the_order_of_the_product_is_g_j_j_g() -> None:
    map = SINGLE["joined digits"]
    params, fixed = tensors_of(map)
    site, x = Site(map, activation="gelu"), normal(4, map.in_features)
    down, up = map.factors(params, fixed)
    free = LoRA(map.in_features, map.out_features, map.width)  # θ = w: its Jacobian is G
    g = jacobian(Site(free, activation="gelu"), {"lora_down": down[0], "lora_up": up[0]}, x).flatten(0, 1)
    parts = torch.func.jacrev(lambda own: torch.cat([f.flatten() for f in map.factors(own, fixed)]))(params)
    j = torch.cat([part.flatten(1) for part in parts.values()], dim=1)
    assert close(layer_ntk(site, {**params, **fixed}, x).values, g @ j @ j.T @ g.T)


def test_float32_follows_the_inputs() -> None:
    map = SINGLE["joined digits"]
    params, fixed = tensors_of(map)
    x = normal(4, map.in_features)
    wide = layer_ntk(Site(map), {**params, **fixed}, x).values
    narrow = layer_ntk(Site(map), {**params, **fixed}, x.float()).values
    assert narrow.dtype == torch.float32
    assert close(narrow, wide)


def test_errors() -> None:
    site, tensors = Site(LoRA(3, 2, 1)), tensors_of(LoRA(3, 2, 1))[0]
    with pytest.raises(ModeError, match=r"shape \(n, 3\), not \(4, 2\)"):
        layer_ntk(site, tensors, normal(4, 2))
    with pytest.raises(ModeError, match=r"shape \(4, C, 2\), not \(4, 2, 3\)"):
        layer_ntk(site, tensors, normal(4, 3), gradients=normal(4, 2, 3))
    with pytest.raises(DtypeError, match=r"float32 or float64, not torch\.int64"):
        layer_ntk(site, tensors, torch.ones(4, 3, dtype=torch.int64))
    many = MAPS["joined layers"]
    with pytest.raises(UnsupportedError, match="serves 6 layers"):
        layer_ntk(Site(many), tensors_of(many)[0], normal(4, 4))
