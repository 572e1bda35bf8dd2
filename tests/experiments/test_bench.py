"""The bench: every run is made once, and settings are chosen by validation alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.experiments.sample import CPU, a_record, method
from tntune.experiments import bench as module
from tntune.experiments.bench import TUNING_SEED, Bench, best, conduct, grid, trials
from tntune.experiments.experiment import Contender, Experiment, Scale
from tntune.experiments.planes import Planes
from tntune.experiments.record import Record, Records
from tntune.experiments.run import Run

EXPERIMENT = Experiment(
    name="demo",
    title="A demonstration",
    task="tntune.experiments.planes:planes_task",
    protocol="fair",
    baseline="lora",
    contenders=(Contender(method("lora")), Contender(method("tensorguide")), Contender(method("head"))),
    scales={
        "smoke": Scale(
            seeds=2, budgets=(200, 400), learning_rates=(1e-3, 1e-1), scales=(1.0, 4.0), tuning_budget=400
        )
    },
    training={"steps": 4, "evaluations": 2},
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are really made."""
    runs: list[Run] = []
    perform = module.perform

    def noted(run: Run, *args: object, **options: object) -> Record:
        runs.append(run)
        return perform(run, *args, **options)

    monkeypatch.setattr(module, "perform", noted)
    return runs


def a_bench(folder: Path) -> Bench:
    return Bench(Planes(), Records(folder), device=CPU, report=lambda what, done, total: None)


def conducted(folder: Path, **options: int) -> tuple[Record, ...]:
    return conduct(EXPERIMENT, "smoke", a_bench(folder), report=lambda what, done, total: None, **options)[0]


def test_a_second_time_nothing_is_run(tmp_path: Path, made: list[Run]) -> None:
    first = conducted(tmp_path)
    count = len(made)
    assert conducted(tmp_path) == first
    assert len(made) == count == len(list(Records(tmp_path)))


def test_more_seeds_run_only_what_is_new(tmp_path: Path, made: list[Run]) -> None:
    first = conducted(tmp_path, seeds=1)
    made.clear()
    more = conducted(tmp_path, seeds=3)
    assert {run.seed for run in made} == {1, 2}
    assert set(r.key for r in first) < set(r.key for r in more)


def test_runs_are_those_of_the_plan(tmp_path: Path, made: list[Run]) -> None:
    final = conducted(tmp_path)
    assert {(r.label, r.run["budget"], r.seed) for r in final} == {
        *(
            (label, budget, seed)
            for label in ("lora", "tensorguide")
            for budget in (200, 400)
            for seed in (0, 1)
        ),
        *(("head", None, seed) for seed in (0, 1)),
    }
    tuning = [run for run in made if run.role == "tuning"]
    assert {run.seed for run in tuning} == {TUNING_SEED}
    assert len(tuning) == 4 + 4 + 2  # rates times scales; the head has no scale
    assert {run.budget for run in tuning if run.method.name != "head"} == {400}


def test_the_best_point_of_the_grid_is_used(tmp_path: Path) -> None:
    final = conducted(tmp_path)
    every = list(Records(tmp_path))
    for label in ("lora", "tensorguide", "head"):
        tuned = [r for r in every if r.label == label and not r.is_final]
        top = max(tuned, key=lambda r: (r.validation["accuracy"], -r.validation["loss"]))
        own = [r for r in final if r.label == label]
        assert {r.run["training"]["learning_rate"] for r in own} == {top.run["training"]["learning_rate"]}
        assert {r.run["method"].get("scale") for r in own} == {top.run["method"].get("scale")}


def test_ties_are_broken_by_loss_and_lower_is_better_where_it_is() -> None:
    record = a_record()

    def scored(accuracy: float, loss: float, *, higher: bool = True) -> Record:
        return replace(record, validation={"accuracy": accuracy, "loss": loss}, higher_is_better=higher)

    assert best([scored(0.5, 0.1), scored(0.9, 0.5), scored(0.9, 0.4)]) == 2
    assert best([scored(0.5, 0.1, higher=False), scored(0.9, 0.1, higher=False)]) == 0


def test_the_test_split_chooses_nothing() -> None:
    record = a_record()
    good_on_test = replace(record, test={"accuracy": 1.0, "loss": 0.0})
    good_on_validation = replace(record, validation={"accuracy": 1.0, "loss": 0.0})
    assert best([good_on_test, good_on_validation]) == 1


def test_a_budget_that_no_size_fits_is_left_out_in_words() -> None:
    scale = replace(EXPERIMENT.scales["smoke"], budgets=(40, 400))
    experiment = replace(EXPERIMENT, scales={"smoke": scale})
    found, omitted = trials(experiment, "smoke", {"a": (16, 16), "b": (16, 16)})
    assert {(t.run.method.name, t.run.budget) for t in found} == {
        ("lora", 400),
        ("tensorguide", 400),
        ("head", None),
    }
    assert omitted[0] == "lora: 40 parameters are below the 64 of its least size"


def test_without_a_grid_there_is_nothing_to_tune() -> None:
    scale = Scale(seeds=3, budgets=(400,))
    found, _ = trials(replace(EXPERIMENT, scales={"smoke": scale}), "smoke", {"a": (16, 16)})
    assert {(len(trial.grid), trial.runs) for trial in found} == {(1, 3)}
    (lora, *_) = found
    assert {run.training.learning_rate for run in lora.final(lora.grid[0])} == {1e-3}


def test_each_budget_is_tuned_by_itself_where_none_is_named() -> None:
    scale = replace(EXPERIMENT.scales["smoke"], tuning_budget=None)
    found, _ = trials(replace(EXPERIMENT, scales={"smoke": scale}), "smoke", {"a": (16, 16)})
    assert all({run.budget for run in trial.grid} == {trial.run.budget} for trial in found)


def test_the_grid_has_every_point_once() -> None:
    run = trials(EXPERIMENT, "smoke", {"a": (16, 16)})[0][0].run
    points = [(r.training.learning_rate, r.method.scale) for r in grid(run, EXPERIMENT.scales["smoke"])]
    assert sorted(points) == [(1e-3, 1.0), (1e-3, 4.0), (1e-1, 1.0), (1e-1, 4.0)]


def test_progress_counts_every_run(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    conduct(EXPERIMENT, "smoke", a_bench(tmp_path), report=lambda *what: told.append(what))
    total = told[0][2]
    assert told[0] == ("demo", 0, total)
    assert told[-1] == ("demo", total, total)
    assert {each[2] for each in told} == {total}
