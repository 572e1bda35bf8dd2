"""AdaptedLinear: the formula, the identity at step 0, dtypes, merging, and what a module must survive."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.support.maps import MAPS, joined, tensors_of, tt_lora
from tests.support.models import Conv1D, adapted
from tests.support.tolerance import close
from tntune.adapters import AdaptedLinear, AdapterSpec, FactorGenerator, adapt
from tntune.errors import ModeError, NumericalError, SpecError, TargetError, UnsupportedError
from tntune.maps import ACTIVATIONS, LoRA, WeightMap

SINGLE = {name: map for name, map in MAPS.items() if map.sites == 1}
ZERO = {name: map for name, map in SINGLE.items() if map.start == "zero"}
LINEAR = pytest.mark.parametrize("map", SINGLE.values(), ids=SINGLE)
SAMPLE = ("lora random", "tt_lora fixed", "concat fixed", "concat mean", "joined unequal primes")
SAMPLED = pytest.mark.parametrize("map", [MAPS[name] for name in SAMPLE], ids=SAMPLE)
GUIDE = MAPS["joined unequal primes"]
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def inputs(map: WeightMap, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Tensor:
    return torch.randn(2, 3, map.in_features).to(device, dtype)


def formula(layer: AdaptedLinear, x: Tensor) -> Tensor:
    """base(x) + s * up σ(down x), sample by sample, with explicit matrices in double precision."""
    (down,), (up,) = (factor.detach().double() for factor in layer.generator.stored())
    weight, bias = layer.base.weight.detach().double(), layer.base.bias
    weight = weight.T if type(layer.base).__name__ == "Conv1D" else weight
    sigma = ACTIVATIONS[layer.spec.activation].function
    rows = [
        weight @ row + layer.spec.scale * up @ sigma(down @ row) for row in x.double().flatten(0, -2).unbind()
    ]
    y = torch.stack(rows).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias.detach().double()


# The formula.


@LINEAR
def test_formula_of_every_map(map: WeightMap, device: torch.device) -> None:
    layer = adapted(map, scale=-0.7).eval().to(device)
    x = inputs(map, device=device)
    assert close(layer(x), formula(layer, x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("base", [nn.Linear(7, 5), nn.Linear(7, 5, bias=False), Conv1D(5, 7)], ids=repr)
def test_formula_of_every_activation_and_base(activation: str, base: nn.Module) -> None:
    layer = adapted(GUIDE, base=copy.deepcopy(base), scale=0.3, activation=activation)
    x = inputs(GUIDE)
    assert close(layer(x), formula(layer, x))


@pytest.mark.peft
def test_transformers_own_conv1d() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    base = pytorch_utils.Conv1D(5, 7)
    layer = adapted(GUIDE, base=base, activation="gelu")
    x = inputs(GUIDE)
    assert close(layer(x), formula(layer, x))


@pytest.mark.parametrize("map", ZERO.values(), ids=ZERO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_identity_at_the_start(map: WeightMap, dtype: torch.dtype) -> None:
    base = nn.Linear(map.in_features, map.out_features).to(dtype)
    nonlinear = "identity" if map.factor_width > map.width else "softplus"
    x = inputs(map, dtype)
    for activation in ("identity", nonlinear):
        layer = AdaptedLinear(base, FactorGenerator.fresh(map), activation=activation)
        assert torch.equal(layer(x), base(x))
        assert torch.equal(layer.eval()(x), base(x))


@pytest.mark.parametrize("map", ZERO.values(), ids=ZERO)
def test_merging_the_start_changes_nothing(map: WeightMap) -> None:
    layer = AdaptedLinear(nn.Linear(map.in_features, map.out_features), FactorGenerator.fresh(map))
    kept = layer.base.weight.clone()
    layer.merge()
    assert torch.equal(layer.base.weight, kept)


@pytest.mark.parametrize("map", [MAPS["joined layers"], MAPS["joined layers io"]], ids=["layers", "io"])
def test_each_site_has_its_own_factors(map: WeightMap) -> None:
    generator = FactorGenerator(map, *tensors_of(map, dtype=torch.float32))
    down, up = generator()
    x = inputs(map)
    for site in range(map.sites):
        layer = AdaptedLinear(nn.Linear(map.in_features, map.out_features), generator, site=site)
        assert close(layer(x) - layer.base(x), x @ down[site].T @ up[site].T)
        assert close(layer.delta_weight(), up[site] @ down[site])


@SAMPLED
def test_disabled_is_the_base(map: WeightMap) -> None:
    layer, x = adapted(map), inputs(map)
    layer.enabled = False
    assert torch.equal(layer(x), layer.base(x))


# Dtypes.


@SAMPLED
@HALF
def test_half_precision_base_with_float32_cores(
    map: WeightMap, dtype: torch.dtype, device: torch.device
) -> None:
    layer = adapted(map, base=nn.Linear(map.in_features, map.out_features).to(dtype)).to(device)
    x = inputs(map, dtype, device)
    y = layer(x)
    assert y.dtype == dtype
    assert close(y, formula(layer, x))
    y.float().mean().backward()
    for parameter in layer.generator.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@SAMPLED
def test_autocast(map: WeightMap, device: torch.device) -> None:
    layer = adapted(map).to(device)
    x = inputs(map, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = layer(x)
        delta = layer.delta_weight()
    assert y.dtype == torch.bfloat16
    assert close(y, formula(layer, x))
    assert torch.equal(delta, layer.delta_weight())


def test_casting_keeps_the_latent_and_the_zero_start() -> None:
    for name in ("concat fixed", "joined io digits", "tt_lora fixed"):
        map = MAPS[name]
        layer = AdaptedLinear(nn.Linear(map.in_features, map.out_features), FactorGenerator.fresh(map))
        latents = {latent: getattr(layer.generator, latent).clone() for latent in map.latent_names}
        layer.to(torch.bfloat16)
        assert latents
        assert all(torch.equal(getattr(layer.generator, latent), z) for latent, z in latents.items())
        x = inputs(map, torch.bfloat16)
        assert torch.equal(layer(x), layer.base(x))


# What a module must survive.


def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    layer = adapted(GUIDE, activation="gelu")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = inputs(GUIDE)
    y = compiled(x)
    assert close(y, layer(x))
    y.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.generator.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert all(close(g, p.grad) for g, p in zip(gradients, layer.generator.parameters(), strict=True))


def test_a_resampled_layer_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    layer = adapted(joined("side f w", latent="resample", start="random"))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 5)
    assert not torch.equal(compiled(x), compiled(x))
    layer.eval()
    assert close(compiled(x), layer(x))


def test_autocast_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    layer = adapted(GUIDE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = inputs(GUIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(compiled(x), layer(x))


def saved(layer: AdaptedLinear) -> AdaptedLinear:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x)), "torch.save": saved}


@SAMPLED
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "apart"])
def test_copies_are_equal_and_independent(map: WeightMap, copied: object, merged: bool) -> None:
    layer, x = adapted(map, scale=2.0), inputs(map)
    before = layer(x)
    if merged:
        layer.merge()
    twin = copied(layer)
    twin.unmerge()
    assert torch.equal(twin(x), before)
    assert twin.spec == layer.spec
    with torch.no_grad():
        for parameter in twin.generator.parameters():
            parameter.zero_()
    layer.unmerge()
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin(x), before)


@SAMPLED
def test_state_dict_names(map: WeightMap) -> None:
    layer = adapted(map)
    names = {"base.weight", "base.bias"} | {f"generator.{name}" for name in map.tensor_shapes}
    assert set(layer.state_dict()) == names
    layer.merge()
    assert set(layer.state_dict()) == names
    assert {name for name, _ in layer.named_parameters()} <= names
    layer.unmerge()
    assert set(layer.state_dict()) == names


def test_a_state_dict_goes_into_another_layer() -> None:
    first, second = adapted(GUIDE), AdaptedLinear(nn.Linear(7, 5), FactorGenerator.fresh(GUIDE))
    second.load_state_dict(first.state_dict())
    x = inputs(GUIDE)
    assert torch.equal(first(x), second(x))


def test_only_the_generator_trains() -> None:
    layer = adapted(GUIDE)
    trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert trained == {f"generator.{name}" for name in GUIDE.param_shapes}


def test_asked_for_its_weight_it_shows_the_bases() -> None:
    layer = adapted(GUIDE)
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias
    assert "enabled" in repr(layer)


# Merging.


@LINEAR
def test_delta_weight_is_what_the_adapter_adds(map: WeightMap) -> None:
    layer = adapted(map, dtype=torch.float64, scale=-1.5).double().eval()
    x = inputs(map, torch.float64)
    assert close(layer(x) - layer.base(x), x @ layer.delta_weight().T)


@SAMPLED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_merge_and_unmerge(map: WeightMap, dtype: torch.dtype, device: torch.device) -> None:
    base = nn.Linear(map.in_features, map.out_features).to(dtype)
    layer, weight, kept = adapted(map, base=base, scale=0.5).to(device), base.weight, base.weight.clone()
    x = inputs(map, dtype, device)
    y = layer(x)
    layer.merge()
    assert layer.merged
    assert torch.equal(layer(x), base(x))
    assert close(layer(x), y)
    exact = (kept.double() + layer.delta_weight().double()).to(dtype)  # one rounding
    assert close(base.weight, exact)
    assert base.weight.dtype == dtype
    layer.merge()
    assert close(base.weight, exact)
    layer.unmerge()
    assert not layer.merged
    assert base.weight is weight
    assert torch.equal(base.weight, kept)
    assert torch.equal(layer(x), y)
    layer.unmerge()
    assert base.weight is weight


def test_merging_adds_in_float32() -> None:
    """In bfloat16 a small ΔW is added once and rounded once, not rounded by itself."""
    base = nn.Linear(4, 3, bias=False).bfloat16()
    layer = adapted(LoRA(4, 3, 2), base=base, scale=0.01)
    wide = (base.weight.float() + layer.delta_weight()).bfloat16()
    layer.merge()
    assert layer.delta_weight().dtype == torch.float32
    assert torch.equal(base.weight, wide)


def test_merging_a_transposed_base() -> None:
    layer = adapted(GUIDE, base=Conv1D(5, 7))
    x = inputs(GUIDE)
    y, weight = layer(x), layer.base.weight
    layer.merge()
    assert close(layer(x), y)
    layer.unmerge()
    assert layer.base.weight is weight


def test_training_merges_the_stored_latent() -> None:
    layer = adapted(joined("side f w", latent="resample", start="random")).train()
    x = torch.randn(4, 5)
    evaluated = layer.eval()(x)
    layer.train()
    assert torch.equal(layer.delta_weight(), layer.delta_weight())
    layer.merge()
    assert close(layer(x), evaluated)


def test_a_tied_weight_stays_with_its_other_owner() -> None:
    embedding, base = nn.Embedding(5, 7), nn.Linear(7, 5)
    base.weight = embedding.weight
    kept = embedding.weight.clone()
    layer = adapted(GUIDE, base=base)
    layer.merge()
    assert torch.equal(embedding.weight, kept)
    assert not torch.equal(base.weight, kept)
    both = nn.ModuleList([embedding, layer]).to(torch.float64)
    assert both[0].weight.dtype == torch.float64
    layer.unmerge()
    assert base.weight is embedding.weight
    assert torch.equal(base.weight, kept.double())


def test_a_merged_layer_is_cast_with_the_weight_that_waits() -> None:
    layer = adapted(GUIDE)
    weight, kept = layer.base.weight, layer.base.weight.clone()
    layer.merge()
    layer.double().unmerge()
    assert layer.base.weight is weight
    assert weight.dtype == torch.float64
    assert torch.equal(weight, kept.double())


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"identity"}))
def test_nonlinear_adapters_are_not_matrices(activation: str) -> None:
    layer = adapted(GUIDE, activation=activation)
    kept = layer.base.weight.clone()
    with pytest.raises(UnsupportedError, match=f"an adapter with activation '{activation}' is not a matrix"):
        layer.delta_weight()
    with pytest.raises(UnsupportedError, match=f"an adapter with activation '{activation}' is not a matrix"):
        layer.merge()
    assert not layer.merged
    assert torch.equal(layer.base.weight, kept)


def test_a_merge_that_overflows_changes_nothing() -> None:
    layer = adapted(LoRA(4, 3, 2), base=nn.Linear(4, 3).half(), scale=1e6)
    kept = layer.base.weight.clone()
    with pytest.raises(NumericalError, match="the merged weight has 12 non-finite entries"):
        layer.merge()
    assert not layer.merged
    assert torch.equal(layer.base.weight, kept)


def test_merges_that_make_no_sense() -> None:
    layer = adapted(GUIDE)
    layer.enabled = False
    with pytest.raises(UnsupportedError, match="the adapter is switched off"):
        layer.merge()
    computed = adapted(GUIDE, base=parametrizations.orthogonal(nn.Linear(7, 5)))
    with pytest.raises(
        UnsupportedError, match="the weight of ParametrizedLinear is computed, not a parameter"
    ):
        computed.merge()


# What is refused.


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (nn.Conv2d(7, 5, 1), "Conv2d cannot be adapted: it is neither nn.Linear nor Conv1D"),
        (nn.Conv1d(7, 5, 1), "Conv1d cannot be adapted: it is neither nn.Linear nor Conv1D"),
        (nn.Embedding(7, 5), "Embedding cannot be adapted"),
        (nn.LazyLinear(5), "LazyLinear cannot be adapted before its first call"),
        (nn.Identity(), "Identity cannot be adapted"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_bases_that_are_refused(base: nn.Module, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        adapted(GUIDE, base=base)


def test_integer_weights_are_refused() -> None:
    base = nn.Linear(7, 5)
    base.weight = nn.Parameter(torch.ones(5, 7, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TargetError, match=r"Linear cannot be adapted: its weight is torch.int8 of \(5, 7\)"):
        adapted(GUIDE, base=base)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"base": nn.Linear(5, 7)}, ModeError, "the base maps 5 features to 7, the map 7 to 5"),
        ({"base": Conv1D(7, 5)}, ModeError, "the base maps 5 features to 7, the map 7 to 5"),
        ({"activation": "swish"}, SpecError, "unknown activation 'swish'"),
        ({"scale": float("nan")}, SpecError, "scale must be a finite number, not nan"),
    ],
)
def test_misfits_are_refused(options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        adapted(GUIDE, **options)


@pytest.mark.parametrize("site", [-1, 1])
def test_sites_outside_the_map_are_refused(site: int) -> None:
    with pytest.raises(ModeError, match=f"site {site} is outside the 1 sites of the map"):
        AdaptedLinear(nn.Linear(6, 4), FactorGenerator.fresh(tt_lora()), site=site)


def test_a_mean_has_no_nonlinear_layer() -> None:
    with pytest.raises(SpecError, match="the mean over a latent is exact only for a linear activation"):
        adapted(MAPS["concat mean"], activation="relu")


def test_a_weight_that_is_tied_to_the_layer_is_the_bases() -> None:
    model = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9))
    adapt(model, AdapterSpec(("1",), width=2, start="random"))
    model[1].weight = model[0].weight
    assert model[1].base.weight is model[0].weight
    assert "weight" not in model[1]._parameters
    x = torch.ones(1, 5)
    down, up = model[1].factors()
    wanted = x @ model[0].weight.mT + model[1].base.bias + x @ down.mT @ up.mT
    assert close(model[1](x), wanted)
    model[1].merge()
    with pytest.raises(UnsupportedError, match="the adapter is merged; unmerge it before its weight"):
        model[1].weight = model[0].weight
