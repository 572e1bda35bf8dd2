"""Laws of whole-adapter conversions: the report is what the files hold, and no candidate is better."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.convert.sample import lora_deltas, same
from tests.convert.shared import NAMES, SIZE, Network, batches, shared_factors, shared_folder
from tests.support.tolerance import close
from tntune.checkpoint import Calibration, open_lora, open_tensorguide
from tntune.convert import (
    ConversionReport,
    ConversionSettings,
    Distillation,
    Norm,
    Target,
    Task,
    Teacher,
    calibrate,
    compare_adapters,
    convert_lora,
    export_lora,
    model_divergence,
    round_adapter,
)
from tntune.convert.calibrate import lora_factors
from tntune.convert.candidate import Layers
from tntune.convert.search import JointSearch
from tntune.errors import NumericalError, RankError, SpecError, UnsupportedError
from tntune.maps.base import Factors

BASELINES = ("svd", "svd, even ranks", "weighted svd", "weighted svd, even ranks")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory.mktemp("source") / "lora")


@pytest.fixture(scope="module")
def calibration(source: Path) -> Calibration:
    return calibrate(Network(), batches(), source)


def converted(source: Path, output: Path, method: str, task: Task | None, **target: Any) -> ConversionReport:
    settings = ConversionSettings(Target(**(target or {"params": 0.35})), method)
    return convert_lora(source, output, settings, task=task)


def errors(source: Path, lora: Path, calibration: Calibration | None) -> float:
    """Relative error of an exported LoRA, dense in numpy, in the damped norm of a calibration."""
    exact, found = lora_deltas(source), lora_deltas(lora)
    lost = whole = 0.0
    for name, delta in exact.items():
        sides = [np.eye(size) for size in delta.T.shape]
        if calibration is not None:
            moments = [moment.double().numpy() for moment in calibration.moments(name)]
            sides = [(m + 0.1 * np.trace(m) / len(m) * np.eye(len(m))) / 1.1 for m in moments]
        gap = delta - found.get(name, 0.0)
        lost += np.trace(sides[1] @ gap @ sides[0] @ gap.T)
        whole += np.trace(sides[1] @ delta @ sides[0] @ delta.T)
    return float(np.sqrt(lost / whole))


@pytest.mark.parametrize("method", ["joint", "svd", "auto"])
@pytest.mark.parametrize("share", [0.5, 0.35, 0.1])
def test_the_report_is_what_the_exported_files_hold(
    tmp_path: Path, source: Path, calibration: Calibration, method: str, share: float
) -> None:
    report = converted(source, tmp_path / "out", method, Task(calibration), params=share)
    export_lora(tmp_path / "out", tmp_path / "lora", dtype=torch.float64)
    assert same(report.relative_error, errors(source, tmp_path / "lora", None), factor=100)
    assert report.task_error is not None
    assert same(report.task_error, errors(source, tmp_path / "lora", calibration), factor=1e4)
    assert same(compare_adapters(source, tmp_path / "out").relative_error, report.relative_error, factor=100)
    numbers = load_file(tmp_path / "out" / "adapter_model.safetensors").values()
    assert report.params_after == sum(value.numel() for value in numbers) <= share * report.params_before
    assert report.params_after == sum(layer.params_after for layer in report.layers)
    assert report.params_after == open_tensorguide(tmp_path / "out").params
    assert report.bytes_after == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert report.target_met
    for layer in report.layers:
        exact, found = lora_deltas(source)[layer.name], lora_deltas(tmp_path / "lora").get(layer.name, 0.0)
        assert same(layer.relative_error, np.linalg.norm(exact - found) / np.linalg.norm(exact), factor=100)


def test_auto_weighs_every_baseline_and_takes_the_best(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    report = converted(source, tmp_path / "out", "auto", Task(calibration))
    names = [each.name for each in report.candidates]
    assert names == [*BASELINES, "joint by size, task, damping 0.1"]
    assert report.task_error == min(each.task_error for each in report.candidates if each.task_error)
    assert report.chosen == "joint by size, task, damping 0.1"
    assert report.divergence is None
    assert report.norm == "task, damping 0.1"


def test_a_model_judges_where_one_is_given(tmp_path: Path, source: Path, calibration: Calibration) -> None:
    divergence = model_divergence(Network(), batches(seed=7), source)
    report = converted(source, tmp_path / "out", "auto", Task(calibration, divergence))
    judged = {each.name: each.divergence for each in report.candidates}
    louder = [name for name in judged if ", times " in name]
    assert len(judged) == len(BASELINES) + 2 * 3 + len(louder)  # two kinds of joint, three dampings
    assert louder
    leaders = {name.partition(", times ")[0] for name in louder}
    assert leaders < set(judged)
    assert len({name.partition(",")[0] for name in leaders}) == len(leaders)  # the best of each kind
    assert report.divergence == min(value for value in judged.values() if value is not None)
    assert judged[report.chosen] == report.divergence
    export_lora(tmp_path / "out", tmp_path / "lora")
    again = divergence(lora_factors(tmp_path / "lora"))
    assert close(torch.tensor(report.divergence), torch.tensor(again), factor=10)


def test_what_auto_chooses_is_the_judges_own_taste(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    """A judge that loves missing layers gets them, and the folder is then one of plain factors."""
    task = Task(calibration, lambda factors: float(len(factors)))
    report = converted(source, tmp_path / "out", "auto", task, params=0.05)
    assert report.chosen in BASELINES
    folder = open_tensorguide(tmp_path / "out")
    assert not folder.groups
    dropped = [layer for layer in report.layers if layer.method == "dropped"]
    assert report.divergence == len(folder.sites) == len(report.layers) - len(dropped)
    assert all(same(layer.relative_error, 1.0) and layer.params_after == 0 for layer in dropped)


def test_a_judge_that_likes_it_louder_gets_it(tmp_path: Path, source: Path, calibration: Calibration) -> None:
    def quietness(factors: dict[str, Any]) -> float:
        return -sum(float((up @ down).norm()) for down, up in factors.values())

    for method in ("joint", "svd"):
        out, lora = tmp_path / method, tmp_path / f"{method}-lora"
        report = converted(source, out, method, Task(calibration, quietness))
        assert report.chosen.endswith(", times 2.99, times 1.25")
        plain = {each.name: each for each in report.candidates}[report.chosen.partition(", times")[0]]
        assert plain.divergence is not None
        assert same(report.divergence, 1.2**6 * 1.25 * plain.divergence)
        export_lora(out, lora, dtype=torch.float64)
        assert same(report.relative_error, errors(source, lora, None), factor=100)


def test_a_judge_that_likes_one_role_louder_gets_it(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    def judge(factors: dict[str, Any]) -> float:
        norms = {name: float((up @ down).norm()) for name, (down, up) in factors.items()}
        return sum((-1.0 if name.endswith("q") else 0.01) * norm for name, norm in norms.items())

    task = Task(calibration, judge)
    report = converted(source, tmp_path / "out", "joint", task)
    assert report.chosen.endswith(", times 2.99, times 0.8 to 1.25")
    export_lora(tmp_path / "out", tmp_path / "lora", dtype=torch.float64)
    again = judge(lora_factors(tmp_path / "lora"))
    assert close(torch.tensor(report.divergence), torch.tensor(again))


def test_shared_layers_are_stored_in_one_map(tmp_path: Path, source: Path) -> None:
    report = converted(source, tmp_path / "out", "joint", None)
    folder = open_tensorguide(tmp_path / "out")
    sites = [group.map.sites for group in folder.groups.values()]
    assert sites == [len(NAMES)]
    assert report.norm == "frobenius"
    assert report.task_error is None
    methods = {layer.name: layer.method for layer in report.layers}
    assert methods["h.0.q"] == "joint"
    assert report.svd_relative_error is not None
    assert report.relative_error < report.svd_relative_error


def test_two_layers_in_one_map_are_joint(tmp_path: Path) -> None:
    made = {name: pair for name, pair in shared_factors().items() if name in NAMES[:2]}
    source = shared_folder(tmp_path / "lora", made=made)
    report = converted(source, tmp_path / "out", "joint", None, params=0.3)
    assert [group.map.sites for group in open_tensorguide(tmp_path / "out").groups.values()] == [2]
    assert [layer.method for layer in report.layers] == ["joint", "joint"]


def test_fitting_the_task_norm_serves_the_task(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    converted(source, tmp_path / "plain", "joint", None)
    converted(source, tmp_path / "task", "joint", Task(calibration))
    for name in ("plain", "task"):
        export_lora(tmp_path / name, tmp_path / f"{name}-lora", dtype=torch.float64)
    plain, task = (errors(source, tmp_path / f"{name}-lora", calibration) for name in ("plain", "task"))
    assert task < plain


def test_more_parameters_are_never_worse(tmp_path: Path, source: Path, calibration: Calibration) -> None:
    found = [
        converted(source, tmp_path / f"{share}", "auto", Task(calibration), params=share).task_error
        for share in (0.1, 0.2, 0.4, 0.8)
    ]
    assert all(more < less for less, more in pairwise(value for value in found if value is not None))


def test_a_plan_keeps_its_budget(source: Path, calibration: Calibration) -> None:
    layers = Layers.load(open_lora(source))
    for budget in (30, 150, 400, 900):
        search = JointSearch(layers, Norm(calibration))
        plan = search.plan(budget)
        assert sum(option.params for option in plan.values()) <= budget
        candidate = search.candidate(plan, Norm(calibration))
        assert candidate.params == sum(option.params for option in plan.values())


def test_untrained_layers_cost_nothing(tmp_path: Path) -> None:
    made = shared_factors()
    down, up = made["h.2.q"]
    made["h.2.q"] = (down, 0 * up)
    source = shared_folder(tmp_path / "lora", made=made)
    report = converted(source, tmp_path / "out", "joint", None)
    layer = next(layer for layer in report.layers if layer.name == "h.2.q")
    assert (layer.method, layer.params_after, layer.relative_error) == ("dropped", 0, 0.0)
    for name in made:
        made[name] = (made[name][0], 0 * made[name][1])
    with pytest.raises(NumericalError, match="every ΔW is zero: this adapter was never trained"):
        converted(shared_folder(tmp_path / "zero", made=made), tmp_path / "none", "joint", None)


def test_a_layer_that_the_output_ignores_comes_last(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    outputs = {**calibration.outputs, "up": torch.zeros(9, 9)}
    blind = Task(Calibration(calibration.inputs, outputs, calibration.input_of))
    report = converted(source, tmp_path / "out", "svd", blind, params=0.3)
    chosen = {each.name: each for each in report.candidates}["weighted svd"]
    assert report.task_error == chosen.task_error
    assert [layer.method for layer in report.layers if layer.name == "up"] == ["dropped"]


def test_what_makes_no_whole_adapter_is_refused(
    tmp_path: Path, source: Path, calibration: Calibration
) -> None:
    task = Task(calibration)
    with pytest.raises(SpecError, match="with a calibration the methods are joint, svd and auto"):
        converted(source, tmp_path / "out", "tensorguide", task)
    with pytest.raises(SpecError, match=r"for a budget .* or a tolerance; not 'auto' for .*max_rank"):
        converted(source, tmp_path / "out", "auto", task, max_rank=2)
    with pytest.raises(SpecError, match=r"method 'joint' needs a budget .* or a tolerance, not .*max_rank"):
        ConversionSettings(Target(max_rank=2), "joint")
    with pytest.raises(RankError, match=f"a budget of 5 parameters fits no layer; the least .* {SIZE + 9}"):
        converted(source, tmp_path / "out", "auto", task, max_params=5)
    assert not (tmp_path / "out").exists()


def judge_of(*said: Any) -> Callable[[Mapping[str, Factors]], Any]:
    """A judge that says these one after the other, then the last for ever."""
    left = list(said)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_divergence_that_is_not_finite_is_never_the_least(
    tmp_path: Path, source: Path, calibration: Calibration, odd: float
) -> None:
    task = Task(calibration, judge_of(odd, 3.0, odd, 1.0, 9.0))
    report = converted(source, tmp_path / "out", "svd", task)
    assert (report.chosen, report.divergence) == ("weighted svd, even ranks", 1.0)
    teacher = Teacher(Network(), batches(seed=5), source)
    task = Task(calibration, judge_of(odd, 3.0, odd, 1.0, 9.0), Distillation(teacher, 1))
    assert converted(source, tmp_path / "trained", "svd", task).chosen == "weighted svd, even ranks"
    with pytest.raises(NumericalError, match="the divergence of none of 4 candidates is finite"):
        converted(source, tmp_path / "none", "svd", Task(calibration, judge_of(odd)))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("number", [np.float32(0.5), torch.tensor(0.5)], ids=["numpy", "torch"])
def test_any_number_is_a_divergence(
    tmp_path: Path, source: Path, calibration: Calibration, number: Any
) -> None:
    report = converted(source, tmp_path / "out", "svd", Task(calibration, lambda _: number))
    assert report.divergence == 0.5
    with pytest.raises(SpecError, match="a divergence is a number, not str"):
        converted(source, tmp_path / "other", "svd", Task(calibration, lambda _: "low"))


@pytest.mark.parametrize("method", ["svd", "joint", "auto"])
@pytest.mark.parametrize("share", [0.1, 0.35, 1.0])
def test_float16_holds_what_float32_holds(
    tmp_path: Path, source: Path, calibration: Calibration, method: str, share: float
) -> None:
    """A layer without gradients has factors of very different sizes, in the norm that weighs it least."""
    outputs = {**calibration.outputs, "up": torch.zeros(9, 9)}
    task = Task(Calibration(calibration.inputs, outputs, calibration.input_of))
    errors = []
    for dtype in (torch.float16, torch.float32):
        settings = ConversionSettings(Target(params=share), method, dtype=dtype)
        errors.append(convert_lora(source, tmp_path / str(dtype), settings, task=task).task_error)
    assert errors[0] == pytest.approx(errors[1], rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_does_not_matter(
    tmp_path: Path, source: Path, calibration: Calibration, mode: Any
) -> None:
    model, runs = Network(), batches(seed=5)
    for name, around in (("plain", torch.enable_grad), ("other", mode)):
        with around():
            teacher = Teacher(model, runs, source)
            task = Task(calibration, teacher.divergence, Distillation(teacher, 10))
            converted(source, tmp_path / name, "svd", task)
    one, other = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("plain", "other"))
    assert one == other


def test_shared_maps_are_not_rounded(tmp_path: Path, source: Path) -> None:
    converted(source, tmp_path / "out", "joint", None)
    with pytest.raises(UnsupportedError, match="its layers share one map, and round knows maps of one layer"):
        round_adapter(tmp_path / "out", tmp_path / "smaller", Target(params=0.5))
