"""Quantum dots: the physics of the diagrams, their noise, the published files, and the task."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.tolerance import close
from tntune.errors import CheckpointError, ModeError, SpecError
from tntune.experiments.quantum_dots.backbone import CONV1
from tntune.experiments.quantum_dots.noise import LEVELS, Noise, blur, pink, telegraph
from tntune.experiments.quantum_dots.pictures import draw_diagrams
from tntune.experiments.quantum_dots.published import load_published
from tntune.experiments.quantum_dots.sample import Device, diagrams, double_dot, single_dot
from tntune.experiments.quantum_dots.simulate import BOLTZMANN, Dots, energy, ground_state, mean_charge
from tntune.experiments.quantum_dots.task import DotTask, quantum_dot_task

SEEDS = st.integers(0, 10**6)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kinds(seed: int) -> list[Device]:
    return [single_dot(rng(seed), pixels=9), double_dot(rng(seed), pixels=9)]


# The model


@given(SEEDS)
def test_ground_state_is_the_argmin_over_a_larger_range(seed: int) -> None:
    for device in kinds(seed):
        gate_charge = device.dots.gate_charge(device.window.voltages()).flatten(0, 1)
        found = ground_state(device.dots, gate_charge)
        every = torch.tensor(list(product(range(-4, 24), repeat=device.dots.count))).double()
        energies = energy(device.dots, every, gate_charge.unsqueeze(1))
        assert close(energy(device.dots, found, gate_charge), energies.min(1).values)


@given(SEEDS)
def test_energy_is_the_published_sum(seed: int) -> None:
    """E_C1 x1²/2 + E_C2 x2²/2 + E_Cm x1 x2: van der Wiel et al. (2002), eqs. 1 and A7, term by term."""
    dots = double_dot(rng(seed)).dots
    (c1, minus), (_, c2) = dots.capacitance.tolist()
    unit = 160.2176634 / (1 - minus**2 / (c1 * c2))
    x, y = torch.rand(2, 5, generator=rng(seed), dtype=torch.float64)
    expected = unit * (x**2 / (2 * c1) + y**2 / (2 * c2) - minus * x * y / (c1 * c2))
    assert close(energy(dots, torch.stack([x, y], dim=1), torch.zeros(2).double()), expected)


@given(SEEDS)
def test_single_dot_is_constant_along_its_lines(seed: int) -> None:
    dots = single_dot(rng(seed)).dots
    start = 100 * torch.rand(20, 2, generator=rng(seed), dtype=torch.float64)
    first, second = dots.gates[0].tolist()
    along = start + torch.linspace(-50, 50, 20).double().unsqueeze(1) * torch.tensor(
        [second, -first], dtype=torch.float64
    )
    charges = [mean_charge(dots, dots.gate_charge(v), temperature=0.3) for v in (start, along)]
    assert close(*charges)


def corners(charges: Tensor) -> Tensor:
    """Number of different charge states in each square of four neighbours."""
    code = 1000 * charges[..., 0] + (charges[..., 1] if charges.shape[-1] == 2 else 0)
    squares = (
        torch.stack([code[:-1, :-1], code[:-1, 1:], code[1:, :-1], code[1:, 1:]], dim=-1).sort(-1).values
    )
    return 1 + (squares.diff(dim=-1) != 0).sum(-1)


@pytest.mark.parametrize("seed", range(8))
def test_three_states_meet_in_a_honeycomb_and_never_between_parallel_lines(seed: int) -> None:
    one, two = single_dot(rng(seed), pixels=200), double_dot(rng(seed), pixels=200)
    states = [ground_state(d.dots, d.dots.gate_charge(d.window.voltages())) for d in (one, two)]
    assert corners(states[0]).max() == 2
    assert (corners(states[1]) == 3).any()


def test_triple_point_is_where_three_energies_agree() -> None:
    """Solved by hand from U(0,0) = U(1,0) = U(0,1), and all three are ground states there."""
    dots = Dots(torch.tensor([[80.0, -20.0], [-20.0, 60.0]]).double(), torch.eye(2).double() + 1)
    inverse = torch.linalg.inv(dots.capacitance)
    point = torch.linalg.solve(inverse, inverse.diagonal() / 2)
    states = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    energies = energy(dots, states, point)
    assert close(energies[:3], energies[:1].expand(3))
    assert energies[3] > energies[0]
    shifted = point + 1e-6 * torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0]]).double()
    assert ground_state(dots, shifted).tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


@given(SEEDS)
def test_one_transition_is_a_fermi_function(seed: int) -> None:
    dots = single_dot(rng(seed)).dots
    gate_charge = torch.linspace(3.4, 3.6, 9).double().unsqueeze(1)
    step = energy(dots, torch.tensor([4.0]).double(), gate_charge) - energy(
        dots, torch.tensor([3.0]).double(), gate_charge
    )
    expected = 3 + 1 / (1 + (step / (BOLTZMANN * 0.5)).exp())
    assert close(mean_charge(dots, gate_charge, temperature=0.5).squeeze(1), expected)


def test_impossible_devices_are_refused() -> None:
    gates = torch.ones(2, 2).double()
    with pytest.raises(SpecError, match="at most half"):
        Dots(torch.tensor([[60.0, -31.0], [-31.0, 80.0]]).double(), gates)
    with pytest.raises(SpecError, match="positive"):
        Dots(torch.tensor([[60.0]]).double(), torch.tensor([[1.0, -1.0]]).double())
    with pytest.raises(SpecError, match="symmetric"):
        Dots(torch.tensor([[60.0, -20.0], [-10.0, 80.0]]).double(), gates)
    with pytest.raises(ModeError, match=r"\(3, 3\)"):
        Dots(torch.eye(3), torch.ones(3, 2))
    with pytest.raises(SpecError, match="charging energy"):
        mean_charge(single_dot(rng()).dots, torch.zeros(1, 1).double(), temperature=30.0)


# Noise


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_has_its_slope_and_variance(exponent: float) -> None:
    scans = torch.stack([pink(32, rng(seed), exponent=exponent).flatten() for seed in range(200)])
    power = torch.fft.rfft(scans).abs().square().mean(0)[1:-1]
    frequency = torch.fft.rfftfreq(32 * 32, dtype=torch.float64)[1:-1]
    slope = np.polyfit(frequency.log().numpy(), power.log().numpy(), 1)[0]
    assert abs(slope + exponent) < 0.05
    assert abs(float(scans.square().mean()) - 1) < 0.2
    assert float(scans.mean(1).abs().max()) < 1e-9


def test_telegraph_forgets_at_its_rate() -> None:
    jumps = torch.stack([telegraph(64, 0.02, rng(seed)).flatten() for seed in range(50)])
    for lag in (1, 5, 20):
        found = float((jumps[:, lag:] * jumps[:, :-lag]).mean())
        assert abs(found - (1 - 2 * 0.02) ** lag) < 0.05


def test_blur_keeps_constants_and_has_its_width() -> None:
    assert close(blur(torch.full((2, 9), 3.0).double(), 1.7), torch.full((2, 9), 3.0).double())
    spike = torch.zeros(1, 81).double()
    spike[0, 40] = 1.0
    place = torch.arange(-40, 41).double()
    assert abs(float((blur(spike, 2.0)[0] * place**2).sum()) - 4.0) < 0.02


def test_strengths_scale_and_are_not_negative() -> None:
    assert LEVELS["realistic"].times(0.0).times(3.0).at_sensor(8, rng()).count_nonzero() == 0
    assert LEVELS["realistic"].times(0.0).at_dots(8, rng()).count_nonzero() == 0
    with pytest.raises(SpecError, match="pink"):
        Noise(pink=-0.1)


# Sets of diagrams


def test_a_set_is_its_seeds_and_begins_with_the_smaller() -> None:
    images, labels = diagrams(6, LEVELS["realistic"], seed=3)
    assert diagrams(4, LEVELS["realistic"], seed=3)[0].equal(images[:4])
    assert not diagrams(6, LEVELS["realistic"], seed=4)[0].equal(images)
    assert labels.tolist() == [0, 1] * 3
    assert close(images.mean((1, 2, 3)) + 1, torch.ones(6))
    assert close(images.std((1, 2, 3)), torch.ones(6))


def test_noise_does_not_change_the_devices() -> None:
    clean, faint = (diagrams(6, noise, seed=0)[0] for noise in (Noise(), Noise(white=1e-7)))
    assert close(clean, faint)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_diagrams(tmp_path / "dots.png")
    assert (tmp_path / "dots.png").stat().st_size > 10_000


# Published files


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.save(folder / "csds.npy", images)
    np.save(folder / "labels.npy", labels)
    return folder


IMAGES = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 50, 50))


def test_published_diagrams_keep_their_order_and_shape(tmp_path: Path) -> None:
    images, labels = load_published(write(tmp_path, IMAGES, np.array([2, 1, 1, 2])))
    scaled = (IMAGES - IMAGES.mean((1, 2), keepdims=True)) / IMAGES.std((1, 2), ddof=1, keepdims=True)
    assert close(images.squeeze(1), torch.from_numpy(scaled))
    assert labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (IMAGES[:3], np.array([0, 1, 1, 0]), "4 diagrams of 50 x 50"),
        (IMAGES[:, :49], np.array([0, 1, 1, 0]), r"not \(4, 49, 50\)"),
        (IMAGES, np.array([0, 1, 2, 0]), "one of two labels"),
        (IMAGES, np.array([[0, 1], [1, 0], [1, 0], [0, 1]]), "one of two labels"),
        (IMAGES * np.nan, np.array([0, 1, 1, 0]), "not finite"),
        (np.ones_like(IMAGES), np.array([0, 1, 1, 0]), "diagram 0 is constant"),
        (IMAGES, np.array(["a", "b", "b", "a"]), "real numbers"),
        (IMAGES, np.array([0, 1, 1, None]), "no array of numbers"),
    ],
)
def test_published_files_are_checked(
    images: np.ndarray, labels: np.ndarray, match: str, tmp_path: Path
) -> None:
    write(tmp_path, images, labels)
    with pytest.raises(CheckpointError, match=match):
        load_published(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"csds_noiseless.npy: cannot be read"):
        load_published(tmp_path, noiseless=True)


# The task


@pytest.fixture(scope="module")
def still() -> DotTask:
    return quantum_dot_task("smoke", conv1="frozen", norm="frozen", noise="none")


@pytest.fixture(scope="module")
def moving() -> DotTask:
    return quantum_dot_task("smoke", noise="none", head="zero")


def test_published_extras_are_the_first_convolution(moving: DotTask) -> None:
    model = moving.model(0)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{CONV1}.weight": 3136}
    assert model.get_submodule(moving.targets[0]).weight.shape == (2, 512)


def test_head_is_random_or_nothing(still: DotTask, moving: DotTask) -> None:
    loss = moving.evaluate(moving.model(0), {k: v[:8] for k, v in moving.data.test.items()})["loss"]
    assert close(torch.tensor(loss), torch.tensor(math.log(2)))
    weights = [still.model(seed).classifier.weight for seed in (0, 0, 1)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_norm_moves_as_published_or_not_at_all(moving: DotTask) -> None:
    batch = {name: rows[:4] for name, rows in moving.data.train.items()}
    frozen = quantum_dot_task("smoke", noise="none", norm="frozen")
    for task, moves in ((moving, True), (frozen, False)):
        model = task.model(0).train()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        task.loss(model, batch)
        changed = [name for name, buffer in model.named_buffers() if not buffer.equal(before[name])]
        assert bool(changed) == moves


def test_features_are_what_the_frozen_backbone_gives(still: DotTask) -> None:
    images, labels = diagrams(240, Noise(), seed=0)
    raw = quantum_dot_task("smoke", noise="none", norm="frozen").model(0).eval()
    head = still.model(5)
    raw.classifier.load_state_dict(head.classifier.state_dict())
    with torch.no_grad():
        assert close(head(still.data.test["x"][:8]), raw(images[180:188]))
    assert still.data.test["labels"].equal(labels[180:])


def test_evaluation_leaves_the_mode_and_the_data_have_a_digest(still: DotTask) -> None:
    model = still.model(0).train()
    still.evaluate(model, still.data.test)
    assert model.training
    again = quantum_dot_task("smoke", conv1="frozen", norm="frozen", noise="none")
    assert again.data.digest() == still.data.digest()


def test_published_task_reads_the_folder(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(240, 50, 50))
    write(tmp_path, images, np.arange(240) % 2)
    task = quantum_dot_task("smoke", tmp_path)
    assert task.data.sizes == {"train": 120, "validation": 60, "test": 60}
    with pytest.raises(SpecError, match="this scale needs 2000"):
        quantum_dot_task("paper", tmp_path)
    with pytest.raises(SpecError, match="'none' or 'realistic'"):
        quantum_dot_task("smoke", tmp_path, noise="harsh")


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"conv1": "still"}, "conv1 is one of"),
        ({"norm": "batch"}, "norm is one of"),
        ({"backbone": "imagenet"}, "backbone is one of"),
        ({"head": "paper"}, "head is one of"),
        ({"noise": "loud"}, "noise is one of"),
        ({"scale": "huge"}, "scale is one of"),
    ],
)
def test_unknown_choices_are_named(option: dict[str, str], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        quantum_dot_task(**{"scale": "smoke", **option})
