"""Which tangent kernel is better conditioned at the start: a head of 16 -> 2 features, several seeds."""

import pytest
import torch
from torch import Tensor

from tests.support.kernels import normal
from tntune.maps import Concat, Latent, LoRA, Site, TensorGuide
from tntune.theory import SpectrumReport, layer_ntk

SEEDS = range(4)


def guide(start: str) -> TensorGuide:
    """The published network, small: width 32 and 576 entries, with its ranks and its latent."""
    return TensorGuide(16, 2, 32, Concat((8, 4, 9, 2)), (1, 2, 2, 1, 1), Latent("fixed", (1, 2, 2, 1)), start)


def spectrum(site: Site, params: dict[str, Tensor], fixed: dict[str, Tensor], seed: int) -> SpectrumReport:
    return layer_ntk(site, {**params, **fixed}, normal(4, 16, seed=seed).abs()).spectrum()


def of_guide(start: str, seed: int, scale: float) -> SpectrumReport:
    map = guide(start)
    params, fixed = map.init(torch.Generator().manual_seed(seed), dtype=torch.float64)
    return spectrum(Site(map, scale), params, fixed, seed)


def of_lora(seed: int, *, up: float) -> SpectrumReport:
    """The published LoRA: 0.01 randn in both factors, scale 8."""
    map = LoRA(16, 2, 4)
    params = {"lora_down": normal(4, 16, seed=seed) / 100, "lora_up": up * normal(2, 4, seed=seed + 1)}
    return spectrum(Site(map, 8.0), params, {}, seed)


@pytest.mark.statement("E29")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_published_lora_has_the_larger_least_eigenvalue(seed: int) -> None:
    lora, tensorguide = of_lora(seed, up=0.01), of_guide("published", seed, 0.01)
    assert lora.lambda_min is not None
    assert tensorguide.lambda_min_upper < 1e-3 * lora.lambda_min


@pytest.mark.statement("E29")
@pytest.mark.parametrize("seed", SEEDS)
def test_scale_alone_moves_the_least_eigenvalue_but_not_the_condition(seed: int) -> None:
    one, other = of_guide("paper", seed, 1.0), of_guide("paper", seed, 0.01)
    assert other.lambda_min_plus == pytest.approx(1e-4 * one.lambda_min_plus, rel=1e-6)
    assert other.cond_plus == pytest.approx(one.cond_plus, rel=1e-6)


@pytest.mark.statement("E29")
def test_a_lora_with_up_zero_is_singular_and_of_the_smaller_rank_at_step_0() -> None:
    map = LoRA(16, 2, 1)
    params = {"lora_down": normal(1, 16, seed=0), "lora_up": torch.zeros(2, 1, dtype=torch.float64)}
    report = layer_ntk(Site(map), params, normal(4, 16, seed=0).abs()).spectrum(rank_bound=2)
    assert (report.rank, report.lambda_min) == (2, 0.0)
    assert of_guide("paper", 0, 1.0).rank > report.rank
