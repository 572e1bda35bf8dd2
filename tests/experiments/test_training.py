"""Settings of a training: epochs, batches, rates and optimisers."""

import pytest
import torch

from tests.experiments.sample import method
from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.experiments.attach import attach
from tntune.experiments.planes import Planes
from tntune.experiments.training import OPTIMIZERS, Training, batches, optimizers


def test_an_epoch_sees_every_example_once_in_a_new_order() -> None:
    split = {"x": torch.arange(10), "y": torch.arange(10) * 2}
    endless = batches(split, 4, torch.Generator().manual_seed(0))
    epochs = [[next(endless) for _ in range(3)] for _ in range(2)]
    orders = [torch.cat([batch["x"] for batch in epoch]) for epoch in epochs]
    assert all(order.sort().values.tolist() == list(range(10)) for order in orders)
    assert orders[0].tolist() != orders[1].tolist()
    assert all(torch.equal(batch["y"], 2 * batch["x"]) for epoch in epochs for batch in epoch)


def test_rates_follow_their_schedules() -> None:
    total = 90
    rates = {
        name: [Training(steps=total, schedule=name).rate(k, total) for k in range(1, total + 1)]
        for name in ("constant", "cosine", "step")
    }
    assert set(rates["constant"]) == {1.0}
    assert rates["cosine"][0] == 1.0
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert rates["step"] == [1.0] * 60 + [0.1] * 30  # as StepLR(10, 0.1) in 15 epochs


def test_warmup_rises_to_the_peak_and_no_further() -> None:
    training = Training(steps=100, schedule="cosine", warmup=0.1)
    rates = torch.tensor([training.rate(k, 100) for k in range(1, 101)], dtype=torch.float64)
    assert bool((rates[:10].diff() > 0).all())
    assert close(rates.max(), torch.tensor(1.0, dtype=torch.float64))
    assert bool((rates > 0).all())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_that_trains_is_in_one_optimiser(name: str) -> None:
    task = Planes()
    model = task.model(0)
    attach(task, model, method("tensorguide"), budget=400, generator=torch.Generator().manual_seed(0))
    made = optimizers(model, Training(steps=1, optimizer=name))
    held = [id(p) for each in made for group in each.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give epochs or steps, not epochs=None and steps=None"),
        ({"epochs": 1, "steps": 1}, "give epochs or steps"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": 1, "optimizer": "sgd"}, "optimizer must be one of adam"),
        ({"steps": 1, "schedule": "linear"}, "schedule must be one of constant"),
        ({"steps": 1, "select": "first"}, "select must be one of best, last"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate is above 0"),
        ({"steps": 1, "warmup": 1.0}, "warmup in"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Training(**options)
