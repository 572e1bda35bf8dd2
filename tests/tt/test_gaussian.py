"""Gaussian trains have entries of mean zero and the stated variance, whatever ranks, dtype and device."""

import pytest
import torch

from tests.support.strategies import HALF
from tests.support.tolerance import close
from tntune.errors import DtypeError, ModeError, RankError
from tntune.tt.gaussian import gaussian
from tntune.tt.train import cores, dense, modes, ranks, to


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("drawn", [(1, 1), (7, 2), (3, 5)])
def test_entries_have_mean_zero_and_the_variance(drawn: tuple[int, int], dtype: torch.dtype) -> None:
    generator = seeded()
    draws = torch.stack(
        [
            dense(gaussian((4, 3, 4), drawn, variance=0.25, generator=generator, dtype=dtype))
            for _ in range(2000)
        ]
    )
    assert abs(draws.mean()) < 0.05 * 0.5
    assert 0.22 < draws.abs().square().mean() < 0.28
    assert draws.abs().square().mean(0).min() > 0.05


def test_the_variance_only_scales() -> None:
    small, large = (
        gaussian((4, 3, 4), 2, variance=v, generator=seeded(), dtype=torch.float64) for v in (1, 9)
    )
    assert close(3 * dense(small), dense(large))
    assert not dense(gaussian((4, 3), 2, variance=0.0)).any()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_the_dtype_only_rounds(dtype: torch.dtype) -> None:
    wide = gaussian((4, 3), 2, generator=seeded(), dtype=torch.float64)
    narrow = gaussian((4, 3), 2, generator=seeded(), dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(cores(narrow), cores(to(wide, dtype=dtype)), strict=True))


def test_the_device_is_that_asked_for() -> None:
    assert {core.device.type for core in cores(gaussian((4, 3), 2, device="meta"))} == {"meta"}


def test_equal_generators_draw_equal_trains() -> None:
    first, again, other = (gaussian((4, 3), 2, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(dense(first), dense(again))
    assert not torch.equal(dense(first), dense(other))


def test_without_a_generator_it_is_that_of_torch() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(dense(gaussian((4, 3), 2)), dense(gaussian((4, 3), 2, generator=seeded())))


def test_sizes_are_those_asked_for() -> None:
    x = gaussian(((2, 3), (4, 5), (1, 2)), (3, 2), generator=seeded())
    assert modes(x) == ((2, 3), (4, 5), (1, 2))
    assert ranks(x) == ranks(gaussian(modes(x), ranks(x))) == (1, 3, 2, 1)
    assert ranks(gaussian((2, 3, 4), 5)) == (1, 5, 5, 1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ModeError, match=r"at least one mode is needed and none below 1, got \(\)"):
        gaussian((), 1)
    with pytest.raises(ModeError, match=r"got \(3, 0\)"):
        gaussian((3, 0), 1)
    with pytest.raises(RankError, match=r"ranks must be at least 1"):
        gaussian((3, 4), 0)
    with pytest.raises(RankError, match=r"variance at least 0, got \(2,\) and -1.0"):
        gaussian((3, 4), 2, variance=-1.0)
    with pytest.raises(RankError, match=r"are no ranks of 2 cores"):
        gaussian((3, 4), (2, 2))
    with pytest.raises(DtypeError, match=r"torch.int64 is not supported"):
        gaussian((3, 4), 2, dtype=torch.int64)
