"""The loop: repeatable, traceless, and left in the state that was chosen."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.experiments.sample import method
from tntune.errors import NumericalError
from tntune.experiments.attach import attach
from tntune.experiments.loop import MAX_POINTS, History, train
from tntune.experiments.planes import Planes
from tntune.experiments.task import Split
from tntune.experiments.training import Training


def trained(training: Training, *, seed: int = 0, **options: object) -> tuple[Planes, nn.Module, History]:
    task = Planes()
    model = task.model(0)
    attach(
        task, model, method("tensorguide", **options), budget=400, generator=torch.Generator().manual_seed(0)
    )
    return task, model, train(task, model, training, seed=seed)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_repeats_order_dropout_and_latents() -> None:
    training = Training(steps=8, learning_rate=1e-2)
    one, same, other = (state(trained(training, seed=s, latent="resample")[1]) for s in (0, 0, 1))
    assert equal(one, same)
    assert not equal(one, other)


def test_torchs_own_generator_is_as_it_was() -> None:
    task, model, _ = trained(Training(steps=1), latent="resample")
    before = torch.get_rng_state()
    train(task, model, Training(steps=3), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchs_own_generator_does_not_matter() -> None:
    training = Training(steps=4, learning_rate=1e-2)
    with torch.random.fork_rng():
        one = state(trained(training, latent="resample")[1])
        torch.rand(3)
        assert equal(one, state(trained(training, latent="resample")[1]))


def test_the_best_state_is_left() -> None:
    task, model, history = trained(Training(steps=60, learning_rate=0.1, evaluations=20))
    scores = {step: scores["accuracy"] for step, scores in history.scores}
    assert history.best_step == max(scores, key=lambda step: scores[step])
    assert task.evaluate(model, task.data.validation) == dict(history.scores)[history.best_step]
    assert scores[history.best_step] > scores[60]  # the rate is too high on purpose


def test_the_last_state_is_left_where_that_is_asked_for() -> None:
    task, model, history = trained(Training(steps=20, learning_rate=0.1, select="last"))
    assert history.best_step == 20
    assert task.evaluate(model, task.data.validation) == history.scores[-1][1]


def test_curves_are_thinned_and_their_means_are_of_all_steps() -> None:
    _, _, history = trained(Training(steps=130, evaluations=7))
    steps = [step for step, _ in history.losses]
    assert len(steps) == MAX_POINTS
    assert steps == sorted(set(steps))
    assert steps[-1] == history.steps == 130
    assert [step for step, _ in history.scores] == [0, *(130 - k * 130 // 7 for k in range(6, -1, -1))]


def test_validation_is_scored_at_the_start() -> None:
    task = Planes()
    fresh = task.evaluate(task.model(0), task.data.validation)
    assert trained(Training(steps=2))[2].scores[0] == (0, fresh)


class Exploding(Planes):
    """A loss that is not finite from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        self.calls += 1
        return super().loss(model, batch) * (float("nan") if self.calls > 2 else 1.0)


def test_a_loss_that_is_not_finite_ends_the_training_in_a_finite_state() -> None:
    task = Exploding()
    model = task.model(0)
    history = train(task, model, Training(steps=9, evaluations=9), seed=0)
    assert (history.diverged, history.steps, len(history.scores)) == (True, 2, 3)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


class Hopeless(Planes):
    """A validation loss that is never finite."""

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        return {**super().evaluate(model, split), "loss": float("inf")}


def test_a_start_without_a_score_is_refused() -> None:
    task = Hopeless()
    with pytest.raises(NumericalError, match="planes: a validation score is not finite before the first"):
        train(task, task.model(0), Training(steps=2), seed=0)


def test_frozen_weights_stay() -> None:
    task = Planes()
    model = task.model(0)
    frozen = copy.deepcopy({name: p for name, p in model.named_parameters() if not p.requires_grad})
    train(task, model, Training(steps=5, learning_rate=0.1), seed=0)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
