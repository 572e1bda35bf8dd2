"""FactorGenerator: the map's own factors, from parameters that keep their names, dtypes and sharing."""

import pytest
import tltorch
import torch
from torch import Tensor, nn

from tests.support.dense_maps import entries
from tests.support.maps import MAPS, concat, joined, tensors_of, tt_lora
from tests.support.tolerance import close
from tntune.adapters import FactorGenerator
from tntune.errors import DtypeError, ModeError, SpecError
from tntune.maps import LoRA, TTLoRA, WeightMap

ALL = pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)
LORA = {"lora_down": torch.ones(2, 4), "lora_up": torch.ones(3, 2)}


def generator_of(map: WeightMap, **options: torch.dtype) -> FactorGenerator:
    return FactorGenerator(map, *tensors_of(map, **options))


@ALL
def test_is_the_map(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    generator = FactorGenerator(map, params, fixed).eval()
    assert all(torch.equal(a, b) for a, b in zip(generator(), map.factors(params, fixed), strict=True))


@ALL
def test_names_are_the_maps(map: WeightMap) -> None:
    generator = generator_of(map)
    assert {name: tuple(p.shape) for name, p in generator.named_parameters()} == map.param_shapes
    assert {name: tuple(b.shape) for name, b in generator.named_buffers()} == map.fixed_shapes
    assert set(generator.state_dict()) == set(map.tensor_shapes) == set(generator.tensors())
    assert not list(generator.children())
    assert not any(tensor.requires_grad for tensor in generator.tensors().values())


@ALL
def test_params_are_not_copied(map: WeightMap) -> None:
    params, fixed = tensors_of(map)
    generator = FactorGenerator(map, params, fixed)
    assert all(getattr(generator, name).data_ptr() == tensor.data_ptr() for name, tensor in params.items())


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_casts_round_no_latent(map: WeightMap, dtype: torch.dtype, device: torch.device) -> None:
    generator = FactorGenerator.fresh(map).eval()
    latents = {name: getattr(generator, name).clone() for name in map.latent_names}
    generator.to(device, dtype).to(device, torch.float32).to(dtype)
    for name, z in latents.items():
        assert torch.equal(getattr(generator, name).cpu(), z)
    assert {p.dtype for p in generator.parameters()} == {dtype}
    assert {tensor.device.type for tensor in generator.state_dict().values()} == {device.type}
    assert {factor.dtype for factor in generator()} == {dtype}
    if map.start == "zero":
        assert not generator().up.any()


def test_resample_draws_in_training_only() -> None:
    map = concat(latent="resample", start="random")
    generator = generator_of(map)
    stored = generator.stored().down
    first, second = generator().down, generator().down
    assert not torch.equal(first, second)
    assert not torch.equal(first, stored)
    assert torch.equal(generator.stored().down, stored)
    assert torch.equal(generator.eval()().down, stored)
    assert torch.equal(generator().down, stored)


def test_resample_is_a_function_of_torchs_generator() -> None:
    generator = generator_of(joined("side f w", latent="resample"))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(generator().down)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_drawn_latent_is_standard_normal() -> None:
    """An entry of down is Σ z_n d_n, with d_n what basis vector n makes: of mean 0 and variance Σ d_n²."""
    map = joined("(side f w)", (1, 1, 1), latent="resample", start="random")
    generator = generator_of(map).requires_grad_(False)
    made = [map.factors(generator.tensors(), {"tt_latent": z}).down for z in torch.eye(2)]
    variance = float(sum(d.square() for d in made))
    draws = torch.stack([generator().down for _ in range(2000)])
    assert abs(draws.square().mean() / variance - 1) < 0.15
    assert abs(draws.mean()) < 4 * (variance / 2000) ** 0.5


@pytest.mark.parametrize("name", ["concat fixed", "joined unequal primes", "tt_lora", "joined mean"])
def test_autocast_does_not_reach_the_contraction(name: str, device: torch.device) -> None:
    generator = generator_of(MAPS[name], dtype=torch.float32).to(device)
    plain = generator()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = generator()
    assert all(torch.equal(a, b) for a, b in zip(inside, plain, strict=True))


@pytest.mark.parametrize(
    ("map", "params", "fixed", "error", "message"),
    [
        (LoRA(4, 3, 2), {}, {}, SpecError, r"params: missing \['lora_down', 'lora_up'\], unknown \[\]"),
        (
            LoRA(4, 3, 2),
            {**LORA, "z": torch.ones(1)},
            {},
            SpecError,
            r"params: missing \[\], unknown \['z'\]",
        ),
        (LoRA(4, 3, 2), LORA, {"z": torch.ones(1)}, SpecError, r"fixed: missing \[\], unknown \['z'\]"),
        (LoRA(5, 3, 2), LORA, {}, ModeError, r"lora_down has shape \(2, 4\), the map needs \(2, 5\)"),
        (
            LoRA(4, 3, 2),
            {**LORA, "lora_up": torch.ones(3, 2, dtype=torch.int64)},
            {},
            DtypeError,
            "lora_up is torch.int64, the map needs floats",
        ),
    ],
)
def test_refuses(
    map: WeightMap, params: dict[str, Tensor], fixed: dict[str, Tensor], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        FactorGenerator(map, params, fixed)


# The trains as tensorly-torch modules.


TRAINS = {
    "plain": concat(start="random"),
    "latent": concat(latent="fixed", start="random"),
    "joined": joined("side f1 f2 w", start="random"),
    "one core": joined("(side f w)", start="random"),
    "two trains": tt_lora(),
    "two latents": tt_lora(latent="fixed"),
}
SHARED = pytest.mark.parametrize("map", TRAINS.values(), ids=TRAINS)


@SHARED
def test_tensor_trains_share_the_parameters(map: WeightMap) -> None:
    generator = generator_of(map)
    shared = [factor for train in generator.tensor_trains() for factor in train.factors]
    assert [id(factor) for factor in shared] == [id(parameter) for parameter in generator.parameters()]
    assert all(isinstance(train, nn.Module) for train in generator.tensor_trains())


@SHARED
def test_an_optimiser_step_on_one_is_seen_by_the_other(map: WeightMap) -> None:
    generator = generator_of(map).eval()
    trains, before = generator.tensor_trains(), generator().down.clone()
    optimizer = torch.optim.SGD([p for train in trains for p in train.parameters()], lr=0.1)
    generator().down.square().sum().backward()
    optimizer.step()
    assert not torch.equal(generator().down, before)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    dense = dense_of(trains[0])
    generator().down.square().sum().backward()
    optimizer.step()
    assert not torch.equal(dense_of(trains[0]), dense)


@SHARED
def test_tensorly_generates_what_we_generate(map: WeightMap) -> None:
    """tensorly's dense tensor, contracted with z by hand, is the w that our formula makes from the cores."""
    generator = generator_of(map)
    prefixes = ("tt_down_", "tt_up_") if isinstance(map, TTLoRA) else ("tt_",)
    for train, prefix in zip(generator.tensor_trains(), prefixes, strict=True):
        cores = [p.detach().numpy() for name, p in generator.named_parameters() if name.startswith(prefix)]
        z = getattr(generator, f"{prefix}latent", None)
        w = torch.from_numpy(entries(cores, None if z is None else z.double().numpy())).flatten()
        dense = dense_of(train)
        assert close(dense if z is None else z.double().flatten() @ dense, w.reshape(-1))


def dense_of(train: nn.Module) -> Tensor:
    """Dense by tensorly: flat, or (latent, open) for a train with a latent."""
    dense = train.to_tensor().detach().clone()
    if isinstance(train, tltorch.TTTensor):
        return dense.flatten()
    return dense.reshape(train.shape)


def test_maps_that_have_no_tensorly_form() -> None:
    with pytest.raises(SpecError, match="a map of kind 'lora' has no tensor trains"):
        generator_of(LoRA(4, 3, 2)).tensor_trains()
    with pytest.raises(SpecError, match="tensorly trains have boundary ranks 1, not 2 and 2"):
        generator_of(MAPS["concat boundary"]).tensor_trains()


def test_prints_the_map() -> None:
    assert repr(generator_of(LoRA(4, 3, 2))) == f"FactorGenerator({LoRA(4, 3, 2)!r})"
