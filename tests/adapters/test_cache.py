"""FactorCache: kept factors are those that would be made, whatever changes in between."""

import copy
import pickle
from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from tests.support.maps import MAPS, TRANSFORMED, tensors_of
from tntune.adapters import FactorGenerator
from tntune.adapters.cache import FactorCache
from tntune.maps import Factors, WeightMap

MADE = {name: map for name, map in {**MAPS, **TRANSFORMED}.items() if map.is_generated}
ALL = pytest.mark.parametrize("map", MADE.values(), ids=MADE)
ONE = MADE["joined digits"]


def generator_of(map: WeightMap, dtype: torch.dtype = torch.float32) -> FactorGenerator:
    return FactorGenerator(map, *tensors_of(map, dtype=dtype)).eval()


def fresh(generator: FactorGenerator) -> Factors:
    """What the map makes of the generator's present tensors."""
    tensors = generator.tensors()
    return generator.map.factors(tensors, tensors)


def same(first: Factors, second: Factors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@ALL
@torch.no_grad()
def test_second_call_makes_nothing(map: WeightMap) -> None:
    generator = generator_of(map)
    assert generator() is generator()
    assert same(generator(), fresh(generator))


@ALL
@torch.no_grad()
def test_each_site_is_kept_by_itself(map: WeightMap) -> None:
    generator = generator_of(map)
    whole = generator()
    for site in range(map.sites):
        down, up = generator(site)
        assert generator(site).down is down
        assert down.shape == whole.down[:1].shape
        assert torch.allclose(down[0], whole.down[site])
        assert torch.allclose(up[0], whole.up[site])


def optimiser_step(generator: FactorGenerator) -> None:
    parameters = list(generator.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def loading(generator: FactorGenerator) -> None:
    generator.load_state_dict({name: tensor + 1 for name, tensor in generator.state_dict().items()})


def assigning(generator: FactorGenerator) -> None:
    state = {name: tensor + 1 for name, tensor in generator.state_dict().items()}
    generator.load_state_dict(state, assign=True)


def write_through_data(generator: FactorGenerator) -> None:
    generator.tt_core_0.data.add_(1)


def exchange_data(generator: FactorGenerator) -> None:
    generator.tt_core_0.data = generator.tt_core_0.data + 1


def in_place(generator: FactorGenerator) -> None:
    with torch.no_grad():
        generator.tt_core_1.mul_(2)


def new_parameter(generator: FactorGenerator) -> None:
    generator.tt_core_0 = nn.Parameter(generator.tt_core_0.detach() * 2)


def cast(generator: FactorGenerator) -> None:
    generator.to(torch.float64)


def cast_and_back(generator: FactorGenerator) -> None:
    generator.to(torch.bfloat16).to(torch.float32)


CHANGES = (
    optimiser_step,
    loading,
    assigning,
    write_through_data,
    exchange_data,
    in_place,
    new_parameter,
    cast,
    cast_and_back,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_change_is_noticed(change: Callable[[FactorGenerator], None], mode: Callable) -> None:
    generator = generator_of(ONE)
    with mode():
        before = generator()
    change(generator)
    with mode():
        after = generator()
        assert same(after, fresh(generator))
        assert after is not before


@torch.no_grad()
def test_a_latent_that_changes_is_noticed() -> None:
    generator = generator_of(MADE["concat fixed"])
    before = generator()
    generator.tt_latent.mul_(2)
    assert same(generator(), fresh(generator))
    assert not same(generator(), before)


def test_gradients_flow_where_they_are_wanted() -> None:
    generator = generator_of(ONE)
    with torch.no_grad():
        generator()
    first, second = generator(), generator()
    assert first is not second
    sum(factor.sum() for factor in first).backward()
    sum(factor.sum() for factor in second).backward()  # a kept graph would be freed by now
    assert all(p.grad is not None for p in generator.parameters())


def test_frozen_parameters_are_kept_with_gradients_on() -> None:
    generator = generator_of(ONE).requires_grad_(False)
    assert generator() is generator()


def test_kept_in_inference_mode_is_not_used_outside() -> None:
    generator = generator_of(ONE).requires_grad_(False)
    with torch.inference_mode():
        generator()
    x = torch.ones(3, ONE.in_features, requires_grad=True)
    (x @ generator().down[0].T).sum().backward()  # an inference tensor could not be saved for this
    assert x.grad is not None


def test_functional_calls_see_their_own_tensors() -> None:
    generator = generator_of(ONE)
    with torch.no_grad():
        generator()

        def norm(params: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(generator, params, ()).down.norm()

        params = {name: p.detach() for name, p in generator.named_parameters()}
        doubled = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
        once, twice = torch.vmap(norm)(doubled)
        assert torch.allclose(twice, once * 2 ** len(params))
        assert torch.allclose(norm({name: 2 * p for name, p in params.items()}), twice)


@torch.no_grad()
def test_resampled_latents_are_drawn_at_every_call() -> None:
    generator = generator_of(MADE["joined resample"]).train()
    assert not same(generator(), generator())
    assert same(generator.eval()(), generator())


@torch.no_grad()
def test_copies_and_pickles_are_empty() -> None:
    generator = generator_of(ONE)
    size = len(pickle.dumps(generator))
    kept = generator()
    assert len(pickle.dumps(generator)) == size
    for again in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        again.tt_core_0.add_(1)
        assert same(again(), fresh(again))
    assert generator() is kept


@torch.no_grad()
def test_a_change_of_mode_forgets() -> None:
    generator = generator_of(ONE)
    kept = generator()
    assert generator.eval()() is kept
    assert generator.train()() is not kept


def test_storage_that_is_freed_and_filled_again_is_noticed() -> None:
    """As FSDP does it with gathered tensors: being kept must not hinder it."""
    core, cache = nn.Parameter(torch.ones(3, 4)), FactorCache()

    def kept() -> Factors:
        return cache.factors([core], None, lambda: Factors(core.detach().clone(), core.detach().clone()))

    with torch.no_grad():
        first = kept()
        core.untyped_storage().resize_(0)
        assert cache.factors([core], None, lambda: first) is first  # made anew: nothing can be compared
        core.untyped_storage().resize_(48)
        core.data.fill_(2)
        assert torch.equal(kept().down, torch.full((3, 4), 2.0))
        assert kept() is kept()


def test_threads_that_want_gradients_disturb_no_others() -> None:
    """One clears what the other reads."""
    core, cache, failed = nn.Parameter(torch.ones(2, 2)), FactorCache(), []

    def work(mode: Callable) -> None:
        try:
            for _ in range(2000):
                with mode():
                    made = cache.factors([core], None, lambda: Factors(2 * core, 3 * core))
                assert torch.equal(made.down, 2 * torch.ones(2, 2))
        except Exception as error:
            failed.append(error)

    threads = [Thread(target=work, args=(mode,)) for mode in (torch.enable_grad, torch.no_grad) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
