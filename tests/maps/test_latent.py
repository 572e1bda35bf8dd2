"""The latent: golden values, a second implementation, and no dependence on any generator."""

import math

import pytest
import torch

from tntune.errors import SpecError
from tntune.maps import LATENT_ALGORITHM, Latent, gaussian_latent

GOLDEN = [
    ((2, 2), 0, [0.15853384137153625, 2.982879400253296, -1.9256919622421265, -0.8249255418777466]),
    (
        (5,),
        2**63 - 1,
        [
            0.1636718511581421,
            0.35691893100738525,
            -0.975475549697876,
            0.08317265659570694,
            0.48730960488319397,
        ],
    ),
]


@pytest.mark.parametrize(("modes", "seed", "values"), GOLDEN)
def test_golden_values(modes: tuple[int, ...], seed: int, values: list[float]) -> None:
    assert torch.equal(gaussian_latent(modes, seed), torch.tensor(values, dtype=torch.float32).reshape(modes))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5])
def test_the_stated_algorithm_by_hand(seed: int) -> None:
    words = [word for counter in (1, 2) for word in philox(seed, counter)]
    uniform = [((word >> 11) + 0.5) / 2**53 for word in words]
    wanted = []
    for first, second in zip(uniform[::2], uniform[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(first))
        wanted += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    assert torch.equal(gaussian_latent((2, 2, 2), seed).flatten(), torch.tensor(wanted, dtype=torch.float32))
    assert LATENT_ALGORITHM == "philox4x64-10/box-muller/float32"


def test_independent_of_every_generator() -> None:
    state = torch.get_rng_state()
    first = gaussian_latent((3, 4), 11)
    torch.rand(5)
    torch.set_rng_state(state)
    assert torch.equal(gaussian_latent((3, 4), 11), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shape_only_arranges_the_stream() -> None:
    stream = gaussian_latent((24,), 3)
    assert torch.equal(gaussian_latent((2, 3, 4), 3).flatten(), stream)
    assert torch.equal(gaussian_latent((7,), 3), stream[:7])


def test_moments() -> None:
    z = gaussian_latent((100_000,), 0).double()
    assert abs(z.mean()) < 4 / math.sqrt(100_000)
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / 100_000)
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96 / 100_000)


def test_power() -> None:
    assert Latent().power() == 1
    assert Latent("mean", (2, 3)).power() == 1
    assert Latent("resample", (2, 3)).power() == 6
    fixed = Latent("fixed", (2, 3), seed=4)
    assert fixed.power() == float(fixed.draw().double().square().sum())


def test_sizes() -> None:
    assert (Latent().size, Latent("fixed", (2, 3)).size) == (1, 6)
    assert [Latent(mode, (2,)).stored for mode in ("fixed", "resample", "mean")] == [True, True, False]
    assert Latent("fixed", [2, 3]) == Latent("fixed", (2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gaussian", (2,)), "latent mode must be one of none, fixed, resample, mean, not 'gaussian'"),
        (("none", (2,)), "mode 'none' has no modes"),
        (("none", None), "mode 'none' has no modes"),
        (("fixed", ()), "latent modes must be a non-empty list"),
        (("fixed", (2, 0)), r"latent modes\[1\] must be a positive integer, not 0"),
        (("fixed", (2.0,)), r"latent modes\[0\] must be a positive integer, not 2.0"),
        (("fixed", (2,), -1), "latent seed must be an integer"),
        (("fixed", (2,), 2**63), "latent seed must be an integer"),
        (("fixed", (2,), True), "latent seed must be an integer"),
    ],
)
def test_contradictions(arguments: tuple, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Latent(*arguments)


def philox(key: int, counter: int) -> list[int]:
    """One block of Philox 4x64 with 10 rounds, in integers: Salmon et al. (2011), section 4.3."""
    mask = 2**64 - 1
    low, high, words = key, 0, [counter, 0, 0, 0]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [second >> 64 ^ words[1] ^ low, second & mask, first >> 64 ^ words[3] ^ high, first & mask]
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return words
