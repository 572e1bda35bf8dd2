"""Laws of distillation: never worse than its start, the same by the same seed, and better where it can be."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.convert.sample import listing
from tests.convert.shared import NAMES, SIZE, Network, batches, shared_folder
from tests.support.tolerance import close
from tntune.checkpoint import Calibration, open_lora
from tntune.convert import (
    ConversionSettings,
    Distillation,
    Norm,
    Target,
    Task,
    Teacher,
    calibrate,
    convert_lora,
    model_divergence,
    squared_distance,
)
from tntune.convert.calibrate import lora_factors
from tntune.convert.candidate import Candidate, Layers
from tntune.convert.distill import distill
from tntune.convert.search import JointSearch, TruncatedSearch
from tntune.errors import SpecError
from tntune.maps.base import Factors
from tntune.maps.build import make_layout
from tntune.maps.group import Group
from tntune.maps.layout import Geometry
from tntune.maps.lora import LoRA
from tntune.maps.tensorguide import TensorGuide

GOALS = {"joint": 0.9, "svd": 0.9, "own": 0.98}
"""Share of the divergence that is left at most; one layer alone can do little."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory.mktemp("source") / "lora")


@pytest.fixture(scope="module")
def calibration(source: Path) -> Calibration:
    return calibrate(Network(), batches(), source)


@pytest.fixture(scope="module")
def teacher(source: Path) -> Teacher:
    return Teacher(Network(), batches(seed=5), source)


@pytest.fixture(scope="module")
def judge(source: Path) -> Teacher:
    return Teacher(Network(), batches(seed=7), source)


def candidates(source: Path, calibration: Calibration, dtype: torch.dtype) -> dict[str, Candidate]:
    """A shared train, truncated SVDs, and a train of its own for one layer."""
    layers = Layers.load(open_lora(source), dtype)
    search = JointSearch(layers, Norm(calibration))
    layout = make_layout("side w f1 f2", Geometry(SIZE, SIZE, 2))
    map = TensorGuide(SIZE, SIZE, 2, layout, (1, 2, 2, 2, 1), start="random")
    params, _ = map.init(torch.Generator().manual_seed(0), dtype=dtype)
    joint = search.candidate(search.plan(250), Norm(calibration))
    return {
        "joint": joint.scaled(dict.fromkeys(joint.modules, 1.1)),
        "svd": next(TruncatedSearch(layers, Norm()).candidates(250)),
        "own": Candidate("own", ((Group(map, (NAMES[0],), (0.5,)), params),)),
    }


@pytest.mark.parametrize("kind", list(GOALS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_better_and_is_what_the_report_says(
    source: Path, calibration: Calibration, teacher: Teacher, judge: Teacher, kind: str, dtype: torch.dtype
) -> None:
    start = candidates(source, calibration, dtype)[kind]
    found, report = distill(start, Distillation(teacher, 60), judge.divergence)
    assert report.before == judge.divergence(start.factors())
    assert report.after == judge.divergence(found.factors())
    assert report.after < GOALS[kind] * report.before
    assert (found.params, found.name) == (start.params, f"{start.name}, distilled")
    for (group, own), (before, old) in zip(found.pieces, start.pieces, strict=True):
        assert group == before
        assert {name: (v.dtype, v.shape) for name, v in own.items()} == {
            name: (v.dtype, v.shape) for name, v in old.items()
        }


@pytest.mark.parametrize("rate", [1e-6, 0.02, 1.0, 1e6, 1e60])
def test_no_rate_makes_it_worse(
    source: Path, calibration: Calibration, teacher: Teacher, judge: Teacher, rate: float
) -> None:
    start = candidates(source, calibration, torch.float32)["joint"]
    found, report = distill(start, Distillation(teacher, 25, rate), judge.divergence)
    assert judge.divergence(found.factors()) == report.after <= report.before
    assert (report.best_step == 0) == (found is start)
    assert report.steps == 25


def test_a_judge_that_likes_nothing_new_gets_the_start_back(
    source: Path, calibration: Calibration, teacher: Teacher
) -> None:
    start = candidates(source, calibration, torch.float32)["svd"]
    seen: list[Mapping[str, Factors]] = []

    def stubborn(factors: Mapping[str, Factors]) -> float:
        seen.append(factors)
        return float(len(seen))

    found, report = distill(start, Distillation(teacher, 25, 0.08), stubborn)
    assert found is start
    assert (report.best_step, report.before, report.after, len(seen)) == (0, 1.0, 1.0, 4)
    assert report.last_rate == 0.08 / 8


def test_the_first_step_is_a_tenth_of_the_rate(source: Path, teacher: Teacher) -> None:
    """Adam's first step has every entry move by its rate, here a share of the tensor's size, and warms up."""
    map, generator = LoRA(SIZE, SIZE, 2, "random"), torch.Generator().manual_seed(0)
    params, _ = map.init(generator)
    start, seen = Candidate("own", ((Group(map, (NAMES[0],), (0.5,)), params),)), []

    def watched(factors: Mapping[str, Factors]) -> float:
        seen.append(factors[NAMES[0]])
        return -float(len(seen))

    distill(start, Distillation(teacher, 1, 0.05), watched)
    for before, after in zip(*seen, strict=True):
        moved = (after - before).abs() / before.square().mean().sqrt()
        assert float(moved.median()) == pytest.approx(0.005, rel=1e-3)


def test_the_seed_decides(source: Path, calibration: Calibration, teacher: Teacher, judge: Teacher) -> None:
    start = candidates(source, calibration, torch.float32)["joint"]

    def after(seed: int) -> float:
        return distill(start, Distillation(teacher, 20, seed=seed), judge.divergence)[1].after

    assert after(0) == after(0)
    assert after(0) != after(1)


def test_the_same_seed_makes_the_same_folder(
    tmp_path: Path, source: Path, calibration: Calibration, teacher: Teacher, judge: Teacher
) -> None:
    task = Task(calibration, judge.divergence, Distillation(teacher, 10))
    for name in ("one", "two"):
        settings = ConversionSettings(Target(params=0.35), "joint")
        (tmp_path / name).mkdir()
        convert_lora(source, tmp_path / name / "out", settings, task=task)
    one, two = listing(tmp_path / "one"), listing(tmp_path / "two")
    assert one == two


def test_the_teacher_itself_has_nothing_to_learn(source: Path, teacher: Teacher) -> None:
    own = lora_factors(source)
    assert teacher.divergence(own) < 1e-6
    assert len(teacher) == len(batches())
    leaf = {name: Factors(*(value.clone().requires_grad_() for value in pair)) for name, pair in own.items()}
    loss = teacher.loss(0, leaf)
    loss.backward()
    slopes = torch.cat([value.grad.flatten() for pair in leaf.values() for value in pair])
    assert float(slopes.abs().max()) < 1e-4


def test_outputs_that_are_no_logits_are_compared_by_squares(source: Path) -> None:
    judge = model_divergence(Network(), batches(seed=7), source, distance=squared_distance)
    model = Network()
    for name, (down, up) in lora_factors(source).items():
        model.get_submodule(name).weight.data += up @ down
    with torch.no_grad():
        gaps = [(model(x) - Network()(x)).square().mean() for x in batches(seed=7)]
    assert close(torch.tensor(judge({})), torch.stack(gaps).mean(), factor=10)


def test_a_whole_conversion_is_distilled_after_the_choice(
    tmp_path: Path, source: Path, calibration: Calibration, teacher: Teacher, judge: Teacher
) -> None:
    plain = Task(calibration, judge.divergence)
    settings = ConversionSettings(Target(params=0.25), "auto")
    before = convert_lora(source, tmp_path / "before", settings, task=plain)
    task = replace(plain, distillation=Distillation(teacher, 40))
    after = convert_lora(source, tmp_path / "after", settings, task=task)
    assert after.distillation is not None
    assert before.distillation is None
    assert after.distillation.before == before.divergence
    assert after.divergence == after.distillation.after < before.divergence
    assert after.chosen == f"{before.chosen}, distilled"
    assert after.candidates[:-1] == before.candidates
    assert "Distilled in 40 steps" in (tmp_path / "after" / "README.md").read_text()


def test_what_shares_and_what_does_not_are_both_distilled_where_both_are_close(
    tmp_path: Path,
    source: Path,
    calibration: Calibration,
    teacher: Teacher,
    judge: Teacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tntune.convert.contest._CLOSE", 1e6)
    task = Task(calibration, judge.divergence, Distillation(teacher, 40))
    settings = ConversionSettings(Target(params=0.25), "auto")
    report = convert_lora(source, tmp_path / "after", settings, task=task)
    trained = {each.name: each.divergence for each in report.candidates if each.name.endswith("distilled")}
    assert sorted(name.startswith("joint") for name in trained) == [False, True]
    assert report.divergence == min(trained.values()) == trained[report.chosen]
    assert report.distillation is not None
    assert report.distillation.after == report.divergence


def test_what_cannot_be_distilled_is_refused(
    tmp_path: Path, source: Path, calibration: Calibration, teacher: Teacher, judge: Teacher
) -> None:
    with pytest.raises(SpecError, match="at least 1 step, not 0"):
        Distillation(teacher, 0)
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(SpecError, match="the rate of distillation must be a number above 0"):
            Distillation(teacher, 1, rate)
    with pytest.raises(SpecError, match="a distillation needs a divergence"):
        Task(calibration, distillation=Distillation(teacher, 1))
    with pytest.raises(SpecError, match="there is no batch"):
        Teacher(nn.Linear(2, 2), [], source)
    task = Task(calibration, judge.divergence, Distillation(teacher, 1))
    settings = ConversionSettings(Target(tolerance=0.2), "auto")
    with pytest.raises(SpecError, match="give a budget to distil"):
        convert_lora(source, tmp_path / "out", settings, task=task)
