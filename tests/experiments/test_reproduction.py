"""The reproduction in the repository: its report comes from its records, its story from its report."""

import re
from pathlib import Path

import pytest

from tntune.experiments.record import Records
from tntune.experiments.report import REPORT, write_report

HOME = Path(__file__).parents[2]
FOLDER = HOME / "docs" / "reproduction"
STORY = HOME / "REPRODUCTION.md"

_QUOTED = re.compile(r"[-+]?\d[\d,.]*(?: ± \d+(?:\.\d+)?| \[[-+\d., ]+\])")
"""A mean with its reach, or with its interval."""


def test_the_report_is_drawn_from_the_records(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(FOLDER / "records", tmp_path)
    assert (tmp_path / REPORT).read_text() == (FOLDER / REPORT).read_text()


def test_every_interval_of_the_story_is_in_the_report() -> None:
    quoted = _QUOTED.findall(STORY.read_text())
    report = (FOLDER / REPORT).read_text()
    assert len(quoted) > 20
    assert [each for each in quoted if each not in report] == []


def test_every_figure_of_the_report_is_there() -> None:
    for text, folder in ((FOLDER / REPORT, FOLDER), (STORY, HOME)):
        for name in re.findall(r"\]\(([^):]+)\)", text.read_text()):
            assert (folder / name).exists(), name


def test_no_run_is_recorded_that_is_not_reported() -> None:
    """Each cell has the seeds 0 .. n - 1, once each."""
    seeds: dict[tuple[str, str, int | None], list[int]] = {}
    for record in Records(FOLDER / "records"):
        if record.is_final:
            cell = (record.run["experiment"], record.label, record.run["budget"])
            seeds.setdefault(cell, []).append(record.seed)
    assert all(sorted(own) == list(range(len(own))) and len(own) >= 3 for own in seeds.values())
