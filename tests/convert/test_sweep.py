"""Laws of sweeps: each budget is what its own conversion makes, and the SVDs of it stand beside it."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.convert.sample import listing
from tests.convert.shared import Network, batches, shared_folder
from tntune.checkpoint import Calibration
from tntune.convert import (
    ConversionSettings,
    Distillation,
    SweepReport,
    Target,
    Task,
    Teacher,
    calibrate,
    convert_lora,
    model_divergence,
    model_score,
    sweep_lora,
)
from tntune.convert.score import Score
from tntune.errors import OutputError, RankError, SpecError

SHARES = (0.1, 0.5, 0.35)
BASELINES = ["svd", "svd, even ranks", "weighted svd", "weighted svd, even ranks"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory.mktemp("source") / "lora")


@pytest.fixture(scope="module")
def calibration(source: Path) -> Calibration:
    return calibrate(Network(), batches(), source)


def judged(source: Path, calibration: Calibration) -> Task:
    model = Network()
    taught = Distillation(Teacher(model, batches(seed=5), source), 10)
    score = model_score(model, lambda own: float(own(batches(seed=7)[0]).square().mean()), source)
    return Task(calibration, model_divergence(model, batches(seed=7), source), taught, score)


def budgets(*shares: float, method: str = "auto") -> list[ConversionSettings]:
    return [ConversionSettings(Target(params=share), method) for share in shares]


def swept(source: Path, output: Path, task: Task | None, method: str = "auto") -> SweepReport:
    return sweep_lora(source, output, budgets(*SHARES, method=method), task=task)


@pytest.mark.parametrize("method", ["auto", "joint", "svd"])
def test_each_budget_is_its_own_conversion(
    tmp_path: Path, source: Path, calibration: Calibration, method: str
) -> None:
    """The same tensors and configuration, bit for bit, whatever was asked before."""
    task = Task(calibration, model_divergence(Network(), batches(seed=7), source))
    report = swept(source, tmp_path / "sweep", task, method)
    assert [point.share for point in report.points] == sorted(SHARES, reverse=True)
    for point, own in zip(report.points, budgets(*sorted(SHARES, reverse=True), method=method), strict=True):
        alone = convert_lora(source, tmp_path / f"{point.share}", own, task=task)
        there = listing(tmp_path / "sweep" / f"{point.share:g}")
        here = listing(tmp_path / f"{point.share}")
        assert {name: here[name] for name in here if name != "README.md"} == {
            name: there[name] for name in there if name != "README.md"
        }
        assert point.report.candidates == alone.candidates
        assert [each.name for each in point.baselines] == BASELINES
        assert all(each.params <= point.share * point.report.params_before for each in point.baselines)


def test_the_file_holds_the_report(tmp_path: Path, source: Path, calibration: Calibration) -> None:
    report = swept(source, tmp_path / "sweep", judged(source, calibration))
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert found == report.to_json()
    assert [point["folder"] for point in found["points"]] == ["0.5", "0.35", "0.1"]
    for point, stored in zip(report.points, found["points"], strict=True):
        assert stored["written"] == json.loads(json.dumps(asdict(point.written)))
        assert stored["report"]["distillation"]["steps"] == 10
        assert point.written.divergence == min(
            each.divergence for each in (point.written, *point.baselines) if each.divergence is not None
        )
        scores = [each.score for each in (point.written, *point.baselines)]
        assert None not in scores
        assert len(set(scores)) > 1
    assert (report.lora.score, report.lora.divergence) == (report.points[0].report.score_before, 0.0)
    assert len(report.rows()) == 1 + len(SHARES) * (1 + len(BASELINES))


def test_without_a_task_two_svds_and_a_joint_train_are_weighed(tmp_path: Path, source: Path) -> None:
    report = swept(source, tmp_path / "sweep", None)
    assert report.norm == "frobenius"
    for point in report.points:
        assert [each.name for each in point.baselines] == BASELINES[:2]
        rows = (point.written, *point.baselines)
        assert point.written.relative_error == min(each.relative_error for each in rows)
    assert report.lora.bytes == 4 * report.lora.params
    assert report.lora.relative_error == 0


def test_nothing_is_written_where_one_budget_is_too_small(tmp_path: Path, source: Path) -> None:
    with pytest.raises(RankError, match="a budget of 0 parameters fits no layer"):
        sweep_lora(source, tmp_path / "sweep", budgets(0.5, 0.0001))
    assert not (tmp_path / "sweep").exists()


def test_what_is_no_sweep_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(SpecError, match=r"budgets must be ConversionSettings.*, not Target"):
        sweep_lora(source, tmp_path / "none", [Target(params=0.5)])
    out = tmp_path / "out"
    for asked, message in (
        ([], "a sweep needs shares of the parameters, each once"),
        (budgets(0.5, 0.5), "each once"),
        ([ConversionSettings(Target(max_rank=2), "svd")], "shares of the parameters"),
        (budgets(0.5, method="tensorguide"), "its methods are auto, joint and svd"),
        ([ConversionSettings(Target(params=0.5), "auto", layouts=("io w",))], "choose no layouts here"),
        (
            [*budgets(0.5), ConversionSettings(Target(params=0.2), "auto", dtype=torch.bfloat16)],
            "in one dtype",
        ),
    ):
        with pytest.raises(SpecError, match=message):
            sweep_lora(source, out, asked)
    (out / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match="exists already"):
        sweep_lora(source, out, budgets(0.5))
    with pytest.raises(OutputError, match=r"holds no sweep\.json, so it is no sweep"):
        sweep_lora(source, out, budgets(0.5), overwrite=True)
    assert listing(out) == {"mine": b""}


def test_a_score_that_is_not_finite_is_null_in_the_file(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    found = iter([1.0, math.inf, *[2.0] * 20])
    task = Task(calibration, score=Score(1.0, lambda _: next(found)))
    report = sweep_lora(source, tmp_path / "sweep", budgets(0.5, 0.2), task=task)
    stored = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(stored["points"]) == 2
    assert [row.score for row in report.rows()].count(math.inf) == 1
    scores = [each["score"] for point in stored["points"] for each in point["baselines"]]
    assert scores.count(None) == 1


def test_what_is_left_of_the_sweep_before_is_removed(tmp_path: Path, source: Path) -> None:
    sweep_lora(source, tmp_path / "sweep", budgets(0.5, 0.1))
    (tmp_path / "sweep" / "mine").mkdir()
    sweep_lora(source, tmp_path / "sweep", budgets(0.5), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["0.5", "mine", "sweep.json"]


def test_a_sweep_may_be_made_again(tmp_path: Path, source: Path) -> None:
    first = sweep_lora(source, tmp_path / "sweep", budgets(0.5))
    again = sweep_lora(source, tmp_path / "sweep", budgets(0.5, 0.2), overwrite=True)
    assert first.points[0] == again.points[0]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["0.2", "0.5", "sweep.json"]
