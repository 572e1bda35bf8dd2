"""Laws of tolerances: what is written meets them, as stored, and little less would not."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.convert.sample import lora_deltas, same
from tests.convert.shared import Network, batches, shared_folder
from tests.convert.test_recomputed import relative, stored_deltas
from tntune.checkpoint import Calibration, open_lora, save_calibration
from tntune.convert import (
    ConversionReport,
    ConversionSettings,
    Target,
    Task,
    calibrate,
    convert_lora,
    model_divergence,
)
from tntune.convert.candidate import Layers
from tntune.convert.contest import Contest
from tntune.convert.tolerance import smallest_budget, verified_budget
from tntune.errors import RankError

TOLERANCES = (0.4, 0.2, 0.1, 0.03)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory.mktemp("source") / "lora")


@pytest.fixture(scope="module")
def calibration(source: Path) -> Calibration:
    return calibrate(Network(), batches(), source)


def converted(
    source: Path,
    output: Path,
    method: str,
    task: Task | None,
    target: Target,
    dtype: torch.dtype | None = None,
) -> ConversionReport:
    return convert_lora(source, output, ConversionSettings(target, method, dtype=dtype), task=task)


@pytest.mark.parametrize("method", ["joint", "auto", "svd"])
def test_the_files_meet_the_tolerance_in_the_task_norm(
    tmp_path: Path, source: Path, calibration: Calibration, method: str
) -> None:
    save_calibration(tmp_path / "c.safetensors", calibration)
    sizes = []
    for tolerance in TOLERANCES:
        out = tmp_path / str(tolerance)
        report = converted(source, out, method, Task(calibration), Target(tolerance=tolerance))
        found = relative(lora_deltas(source), stored_deltas(out), tmp_path / "c.safetensors")
        assert found <= tolerance
        assert same(report.task_error, found, factor=1e4)
        assert report.target_met
        sizes.append(report.params_after)
    assert all(more > less for less, more in pairwise(sizes))
    assert sizes[-1] <= report.params_before


def test_without_data_joint_meets_it_in_frobenius(tmp_path: Path, source: Path) -> None:
    for tolerance in TOLERANCES:
        out = tmp_path / str(tolerance)
        report = converted(source, out, "joint", None, Target(tolerance=tolerance))
        assert relative(lora_deltas(source), stored_deltas(out), None) <= tolerance
        assert report.norm == "frobenius"
        assert report.target_met


def test_an_error_that_is_asked_for_to_the_last_bit_is_met(source: Path) -> None:
    """The search for a budget and the choice at it measure alike."""
    folder = open_lora(source)
    contest = Contest(Layers.load(folder), None, lambda stage, done, total: None)
    for share in (0.9, 0.7, 0.5, 0.3, 0.2, 0.1):
        for each in contest.baselines(int(share * folder.params)):
            tolerance = contest.error(each.candidate)
            assert each.error == tolerance
            budget = contest.budget_of("svd", tolerance, folder.params)
            assert contest.best("svd", budget, tolerance=tolerance).error <= tolerance


@pytest.mark.parametrize("method", ["joint", "svd"])
def test_a_tenth_less_would_miss_it(
    tmp_path: Path, source: Path, calibration: Calibration, method: str
) -> None:
    task = Task(calibration)
    report = converted(source, tmp_path / "a", method, task, Target(tolerance=0.1))
    smaller = Target(max_params=int(0.9 * report.params_after))
    less = converted(source, tmp_path / "b", method, task, smaller)
    assert less.task_error is not None
    assert less.task_error > 0.1


def test_a_model_chooses_among_those_that_meet_it(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    divergence = model_divergence(Network(), batches(seed=7), source)
    report = converted(source, tmp_path / "out", "auto", Task(calibration, divergence), Target(tolerance=0.1))
    meeting = [each for each in report.candidates if each.task_error is not None and each.task_error <= 0.1]
    assert meeting
    assert len(meeting) < len(report.candidates)
    assert report.divergence == min(each.divergence for each in meeting if each.divergence is not None)


def test_a_tolerance_that_no_size_meets_is_refused(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    for method, task in (("joint", None), ("auto", Task(calibration)), ("svd", Task(calibration))):
        settings = ConversionSettings(Target(tolerance=1e-5), method, dtype=torch.bfloat16)
        with pytest.raises(RankError, match=r"a tolerance of 1e-05 is missed even with \d+ parameters: .*b"):
            convert_lora(source, tmp_path / "out", settings, task=task)
    assert not (tmp_path / "out").exists()


@given(st.integers(1, 50), st.integers(0, 5000), st.floats(0.5, 2.0), st.floats(1e-4, 0.9))
def test_a_falling_error_is_met_within_a_percent(
    least: int, more: int, power: float, tolerance: float
) -> None:
    most = least + more

    def error(budget: int) -> float:
        return (budget + 1.0) ** -power

    found = smallest_budget(error, least, most, tolerance)
    assert least <= found <= most
    if error(most) > tolerance:
        assert found == most
    else:
        smaller = min(found - 1, int(found / 1.02))
        assert error(found) <= tolerance
        assert smaller < least or error(smaller) > tolerance


@given(st.floats(0.5, 2.0), st.floats(0.01, 0.9))
def test_a_forecast_that_is_off_costs_no_promise(bias: float, tolerance: float) -> None:
    least, most = 1000, 1_000_000
    found = verified_budget(lambda b: 1000 * bias / b, lambda b: 1000 / b, least, most, tolerance)
    assert found is not None
    assert 1000 / found <= tolerance < 1000 / (0.9 * found)
    assert verified_budget(lambda b: 1000 * bias / b, lambda b: 1.0, least, most, tolerance) is None


@given(st.floats(0.5, 2.0), st.integers(1, 30))
def test_small_numbers_are_no_trouble(bias: float, goal: int) -> None:
    found = verified_budget(lambda b: bias / b, lambda b: 1 / b, 1, 30, 1 / goal)
    assert found is not None
    assert goal <= found <= 1.5 * goal + 1
