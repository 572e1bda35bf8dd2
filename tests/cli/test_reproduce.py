"""reproduce and report: from settings to records, tables and figures; and back from records alone."""

import os
from pathlib import Path

import pytest

from tests.cli.command import Ran, tntune

SETTINGS = """
title = "Sides of a plane"
task = "tntune.experiments.planes:planes_task"
protocol = "fair"
baseline = "LoRA"
[training]
steps = 12
evaluations = 4
[scales.smoke]
seeds = 2
budgets = [40, 200, 400]
learning_rates = [1e-3, 3e-2]
tuning_budget = 400
[[methods]]
label = "all weights"
method = "head"
[[methods]]
label = "LoRA"
method = "lora"
[[methods]]
label = "TensorGuide @ M = 4"
method = "tensorguide"
width = 4
[[methods]]
label = "TensorGuide @ M = 8"
method = "tensorguide"
width = 8
"""

FIGURES = {
    f"planes-smoke-{name}.{suffix}"
    for name in ("curves", "parameters", "bytes", "width", "rank")
    for suffix in ("svg", "png")
}


def reproduce(folder: Path, *options: object) -> Ran:
    path = folder / "planes.toml"
    path.write_text(SETTINGS)
    return tntune("reproduce", path, "--records", folder / "records", *options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_command_makes_records_tables_and_figures(tmp_path: Path) -> None:
    ran = reproduce(tmp_path)
    assert ran.code == 0
    assert set(contents(tmp_path / "records" / "report")) == FIGURES | {"report.md"}
    assert ran.out.startswith("# Experiments\n\n## Sides of a plane (smoke)")
    assert (
        "| LoRA | 400 | 384 | head 34 | 1,808 | 6 |" in ran.out
    )  # bytes: 4 * (384 + 34) and the moved statistics
    assert "differences to LoRA are paired" in ran.out
    assert "left out: LoRA: 40 parameters are below the 64 of its least size" in ran.err
    assert "written: " in ran.err


def test_a_second_time_nothing_is_run_and_all_is_equal(tmp_path: Path) -> None:
    first = reproduce(tmp_path)
    stamps = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
    before = contents(tmp_path / "records" / "report")
    second = reproduce(tmp_path)
    assert first.out == second.out
    assert stamps == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
    assert contents(tmp_path / "records" / "report") == before


def test_a_report_needs_records_alone(tmp_path: Path) -> None:
    ran = reproduce(tmp_path)
    (tmp_path / "planes.toml").unlink()
    again = tntune("report", tmp_path / "records", "-o", tmp_path / "elsewhere")
    assert (again.code, again.out) == (0, ran.out)
    assert contents(tmp_path / "elsewhere") == contents(tmp_path / "records" / "report")


def test_some_methods_and_seeds_only(tmp_path: Path) -> None:
    ran = reproduce(tmp_path, "--only", "TensorGuide @ M = 4", "--seeds", 1, "-o", tmp_path / "out")
    assert ran.code == 0
    assert "TensorGuide @ M = 8" not in ran.out
    assert "all weights" not in ran.out
    assert "| LoRA | 400 |" in ran.out  # the baseline is always there
    assert "(one seed)" in ran.out
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "DoRA"), "there is no DoRA among LoRA, TensorGuide @ M = 4"),
        (("--scale", "huge"), "scale must be one of smoke, small, paper, not 'huge'"),
        (("--scale", "paper"), "no experiment of this protocol at scale 'paper'"),
        (("--protocol", "as-published"), "no experiment of this protocol"),
        (("--protocol", "sloppy"), "protocol must be one of fair, as-published, not 'sloppy'"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path: Path, options: tuple[str, str], message: str) -> None:
    ran = reproduce(tmp_path, *options)
    assert ran.code == 2
    assert message in ran.err


def test_unknown_tasks_and_empty_folders_are_refused(tmp_path: Path) -> None:
    ran = tntune("reproduce", "chess")
    assert (ran.code, ran.out) == (2, "")
    assert "there are experiments on planes, quantum-dot, sentences, wikitext" in ran.err
    ran = tntune("report", tmp_path, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "no records; tntune reproduce writes them" in ran.err
