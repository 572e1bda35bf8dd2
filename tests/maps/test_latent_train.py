"""LatentTrain: what it refuses, and the lift of a plain train into one with a latent."""

import pytest
import torch

from tests.support.dense_maps import entries
from tests.support.strategies import random_train
from tests.support.tolerance import close
from tntune.errors import RankError, SpecError
from tntune.maps import Latent, LatentTrain
from tntune.tt import dense


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ((2, 3), (1, 2)),
            RankError,
            r"2 modes have 1 bonds between them, and 3 ranks with both ends, not 2: \(1, 2\)",
        ),
        (((2, 3), (1, 0, 1)), SpecError, r"ranks\[1\] must be a positive integer, not 0"),
        (((), (1,)), SpecError, "modes must be a non-empty list"),
        (((2, "3"), (1, 2, 1)), SpecError, r"modes\[1\] must be a positive integer, not '3'"),
        (
            ((2, 3), (1, 2, 1), Latent("fixed", (2,))),
            SpecError,
            r"the latent has 1 modes \(2,\), the train has 2",
        ),
        (((2, 3), (1, 2, 1), "fixed"), SpecError, "latent must be a Latent, not 'fixed'"),
    ],
)
def test_refuses(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LatentTrain(*arguments)


@pytest.mark.parametrize("mode", ["none", "fixed", "resample", "mean"])
@pytest.mark.parametrize("ranks", [(1, 2, 3, 1), (1, 3, 3, 1), (2, 2, 4, 3)])
def test_lift_generates_the_train_whatever_the_latent(mode: str, ranks: tuple[int, ...]) -> None:
    train = LatentTrain((2, 3, 4), ranks, Latent(mode, () if mode == "none" else (2, 1, 3), seed=3))
    given = random_train((2, 3, 4), (1, 2, 3, 1), dtype=torch.float64, seed=0)
    cores = train.lift(given)
    assert [tuple(core.shape) for core in cores] == list(train.core_shapes)
    z = {"none": None, "mean": torch.ones(2, 1, 3)}.get(
        mode, train.latent.draw() if train.latent.stored else None
    )
    w = entries([core.numpy() for core in cores], None if z is None else z.double().numpy())
    assert close(torch.from_numpy(w), dense(given))


def test_lift_refuses_higher_ranks() -> None:
    given = random_train((2, 3, 4), (1, 2, 3, 1), dtype=torch.float64, seed=0)
    with pytest.raises(RankError, match=r"ranks \(1, 2, 3, 1\) does not fit into ranks \(1, 2, 2, 1\)"):
        LatentTrain((2, 3, 4), (1, 2, 2, 1)).lift(given)


def test_a_plan_costs_a_few_flops_per_entry() -> None:
    """The halves are joined last, over the lifted bond 8 x 2; no intermediate is larger than the result."""
    train = LatentTrain((1, 8, 13, 25, 157), (1, 8, 8, 8, 8, 1), Latent("fixed", (2,) * 5))
    run = train.contraction([[(f"m{k}", m)] for k, m in enumerate(train.modes)], [f"m{k}" for k in range(5)])
    assert 2 * 16 * train.num_entries < run.flops < 1.2 * 2 * 16 * train.num_entries
    assert run.peak == train.num_entries
