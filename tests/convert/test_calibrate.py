"""Laws of calibration and divergence: what the model says, by another route."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.convert.sample import lora_folder
from tests.convert.shared import BLOCKS, NAMES, SIZE, Network, batches, shared_factors, shared_folder
from tests.support.tolerance import close
from tntune.checkpoint import Calibration
from tntune.convert import attached, calibrate, model_divergence
from tntune.convert.calibrate import lora_factors
from tntune.convert.form import Form
from tntune.convert.prediction import predict
from tntune.errors import CheckpointError, ModeError, NumericalError, SpecError, TargetError
from tntune.maps.base import Factors


def merged(seed: int = 0) -> Network:
    """The network with its LoRA (alpha / r = 8 / 3) added to the weights."""
    model = Network()
    for name, (down, up) in shared_factors(seed).items():
        model.get_submodule(name).weight.data += 8 / 3 * up.float() @ down.float()
    return model


def activations(model: nn.Module, name: str, runs: list[Tensor]) -> Tensor:
    """All inputs of one module."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, x, __: seen.append(x[0].detach()))
    for batch in runs:
        model(batch)
    handle.remove()
    return torch.cat(seen)


def test_attached_factors_compute_what_merged_weights_do() -> None:
    model = Network()
    factors = {n: Factors(down.float(), 8 / 3 * up.float()) for n, (down, up) in shared_factors().items()}
    (x,) = batches(1)
    before = model(x)
    with attached(model, factors):
        assert close(model(x), merged()(x))
    assert torch.equal(model(x), before)


def test_input_moments_are_those_of_the_adapted_models_activations(tmp_path: Path) -> None:
    found = calibrate(Network(), batches(), shared_folder(tmp_path / "lora"))
    for name in NAMES:
        x = activations(merged(), name, batches())
        assert close(found.moments(name)[0], x.T @ x / len(x))


def test_layers_that_read_the_same_share_a_moment(tmp_path: Path) -> None:
    found = calibrate(Network(), batches(), shared_folder(tmp_path / "lora"))
    assert len(found.inputs) == BLOCKS + 1
    assert found.input_of["h.1.o"] == found.input_of["h.1.q"]
    assert set(found.outputs) == set(NAMES)


def test_output_moments_are_those_of_the_backward_pass(tmp_path: Path) -> None:
    """At the last layer the gradient is that of the head alone, whatever random direction was drawn."""
    found = calibrate(Network(), batches(), shared_folder(tmp_path / "lora")).moments("up")[1]
    assert close(found, found.T)
    assert float(torch.linalg.eigvalsh(found.double())[0]) > -1e-6 * float(found.trace())
    model, x = merged(), torch.cat(batches())
    hidden = activations(model, "up", batches())
    slopes = torch.cos(model.up(hidden)).detach()  # (n, 9)
    logits = model(x).detach()
    chances = (logits.softmax(-1) + (logits / 4).softmax(-1)) / 2
    fisher = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    weights = model.head.weight.detach()  # (4, 9)
    expected = slopes[:, :, None] * (weights.T @ fisher @ weights) * slopes[:, None]
    many = torch.stack(
        [calibrate(Network(), batches(), tmp_path / "lora", seed=k).moments("up")[1] for k in range(60)]
    )
    spread = many.std(0) / 60**0.5
    assert bool(((many.mean(0) - expected.mean(0)).abs() < 5 * spread).all())


def test_how_inputs_are_batched_and_padded_does_not_matter(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")

    (x,) = batches(1)
    mask = torch.ones(4, 8, dtype=torch.long)
    padded = torch.cat([x.reshape(4, 8, SIZE), 1e3 * torch.ones(4, 3, SIZE)], dim=1)
    hidden = torch.cat([mask, torch.zeros(4, 3, dtype=torch.long)], dim=1)
    plain = calibrate(Network(), [x], source)
    split = calibrate(Network(), list(x.split(8)), source)
    masked = calibrate(Network(), [{"x": padded, "attention_mask": hidden}], source)
    assert plain.notes["tokens"] == split.notes["tokens"] == masked.notes["tokens"] == 32
    assert plain.notes["predictions"] == masked.notes["predictions"] == 32
    for name in NAMES:
        for other in (split, masked):
            assert close(other.moments(name)[0], plain.moments(name)[0])


def test_a_sketch_stands_for_the_whole_moment(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")
    whole = calibrate(Network(), batches(), source)
    draws = [calibrate(Network(), batches(), source, limit=6, seed=k).moments("up")[0] for k in range(40)]
    assert draws[0].shape == (6, SIZE)
    unit = torch.eye(SIZE)
    many = torch.stack([Form(SIZE, rows, 0.0).gram(unit) for rows in draws])
    spread = many.std(0) / 40**0.5
    assert bool(((many.mean(0) - whole.moments("up")[0]).abs() < 5 * spread).all())


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = Network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, batches(), shared_folder(tmp_path / "lora"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_models_can_be_calibrated(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")
    frozen = Network().requires_grad_(False)
    one, two = (calibrate(model, batches(), source) for model in (frozen, Network()))
    assert all(close(a, b) for n in NAMES for a, b in zip(one.moments(n), two.moments(n), strict=True))


def layers(path: Path, *names: str, size: int = 6) -> Path:
    """A LoRA for layers of that size."""
    made = {name: (torch.ones(1, size) / 8, torch.ones(size, 1) / 8) for name in names}
    return lora_folder(path, made=made, target_modules=list(names), r=1, rank_pattern={})


def same_moments(one: Calibration, other: Calibration) -> bool:
    return all(
        close(mine, theirs)
        for name in one.names
        for mine, theirs in zip(one.moments(name), other.moments(name), strict=True)
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_that_the_model_changes_in_place_are_known_as_they_were(tmp_path: Path, frozen: bool) -> None:
    source, runs = layers(tmp_path / "lora", "0", "2"), [torch.randn(9, 6), torch.randn(4, 6)]
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace), nn.Linear(6, 6), nn.ReLU(inplace))
        found.append(calibrate(model.requires_grad_(not frozen), runs, source))
    assert same_moments(*found)


class Residual(nn.Module):
    """Two layers that read x, before and after it is changed, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.inplace = nn.Linear(6, 6), nn.Linear(6, 6), inplace
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        h = torch.tanh(self.a(input=x))
        x = x.add_(h) if self.inplace else x + h
        return self.b(input=x)


def test_an_input_that_is_changed_in_place_is_another(tmp_path: Path) -> None:
    source, runs = layers(tmp_path / "lora", "a", "b"), [torch.randn(9, 6)]
    found = [calibrate(Residual(inplace), runs, source) for inplace in (False, True)]
    assert found[1].input_of == {"a": "a", "b": "b"}
    assert same_moments(*found)


class Twice(nn.Module):
    """A layer that is called twice, and one that reads the first of its inputs, or both."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 6), nn.Linear(6, 6), both

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) + torch.tanh(self.b(x))
        again = 10 * h
        return self.a(again) + (self.b(again) if self.both else 0)


def test_layers_share_a_moment_only_where_they_read_the_same_at_every_call(tmp_path: Path) -> None:
    source = layers(tmp_path / "lora", "a", "b")
    assert calibrate(Twice(True), [torch.randn(9, 6)], source).input_of == {"a": "a", "b": "a"}
    with pytest.raises(SpecError, match="b: reads what a reads at some of its calls, 1 against 2"):
        calibrate(Twice(False), [torch.randn(9, 6)], source)


def test_the_mode_of_the_caller_does_not_matter(tmp_path: Path) -> None:
    source, model, runs, found = shared_folder(tmp_path / "lora"), Network(), batches(), []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            found.append(calibrate(model, runs, source))
    assert same_moments(found[0], found[1])
    assert same_moments(found[0], found[2])


def test_factors_keep_their_digits(tmp_path: Path) -> None:
    for dtype, kept in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        folder = lora_folder(tmp_path / str(dtype), dtype=dtype)
        assert {part.dtype for pair in lora_factors(folder).values() for part in pair} == {kept}


def test_divergence_is_the_mean_kl_of_predictions(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")
    divergence = model_divergence(Network(), batches(), source)
    factors = lora_factors(source)
    assert divergence(factors) < 1e-6
    half = {name: Factors(down, up / 2) for name, (down, up) in factors.items()}
    x = torch.cat(batches())
    halved = Network()
    for name, (down, up) in half.items():
        halved.get_submodule(name).weight.data += up @ down
    one, two = (model(x).log_softmax(-1).detach() for model in (merged(), halved))
    expected = (one.exp() * (one - two)).sum(-1).mean()
    assert close(torch.tensor(divergence(half)), expected, factor=10)
    alone = (one.exp() * (one - Network()(x).log_softmax(-1).detach())).sum(-1).mean()
    assert close(torch.tensor(divergence({})), alone, factor=10)


def test_logits_come_from_models_of_any_habit() -> None:
    class Output:
        logits = torch.arange(12.0).reshape(1, 3, 4)

    class Habit(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
            return Output()

    mask = torch.tensor([[1, 0, 1]])
    rows = predict(Habit(), {"input_ids": mask, "attention_mask": mask})
    assert torch.equal(rows, Output.logits[0, [0, 2]])
    with pytest.raises(SpecError, match="the model returns Tensor, not logits"):
        predict(nn.Identity(), torch.ones(3, 4, dtype=torch.long))
    with pytest.raises(SpecError, match="the model returns Tensor, not logits"):
        predict(nn.Flatten(0), torch.ones(3, 4))


def test_what_has_no_prediction_has_no_divergence(tmp_path: Path) -> None:
    nothing = {"x": torch.ones(1, 3, SIZE), "attention_mask": torch.zeros(1, 3)}
    divergence = model_divergence(Network(), [nothing], shared_folder(tmp_path / "lora"))
    with pytest.raises(SpecError, match="1 batches have no prediction to compare: is every token masked"):
        divergence({})


def test_a_layer_without_a_tensor_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc([x])[0]

    model, factors = Odd(), {"fc": Factors(torch.ones(1, 3), torch.ones(3, 1))}
    with attached(model, factors), pytest.raises(TargetError, match="fc: was called with list, and layers"):
        model(torch.ones(2, 3))


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")
    with pytest.raises(SpecError, match="0 predictions were made"):
        calibrate(Network(), [], source)
    with pytest.raises(SpecError, match="limit must be at least 1, not 0"):
        calibrate(Network(), batches(), source, limit=0)
    with pytest.raises(TargetError, match=r"Linear has no modules \['h.0.o'"):
        calibrate(nn.Linear(3, 3), batches(), source)
    with pytest.raises(CheckpointError, match="cannot be read"):
        calibrate(Network(), batches(), tmp_path / "none")
    with pytest.raises(SpecError, match="there is no batch to compare predictions on"):
        model_divergence(Network(), [], source)
    model, wrong = Network(), {"up": Factors(torch.ones(1, 3), torch.ones(9, 1))}
    with attached(model, wrong), pytest.raises(ModeError, match="up: maps 14 to 9 features, its adapter 3"):
        model(batches(1)[0])
    blind = Network()
    blind.head.weight.data.zero_()
    with pytest.raises(NumericalError, match="all gradients are zero"):
        calibrate(blind, batches(), source)
