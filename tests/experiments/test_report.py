"""Reports: tables and figures are functions of records; published rows stand beside ours."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.experiments.sample import a_record, with_score
from tntune.errors import CheckpointError, OutputError, SpecError
from tntune.experiments.comparison import compare_records
from tntune.experiments.experiment import Experiment, find_experiments
from tntune.experiments.figures import AXES, score_figure
from tntune.experiments.record import Record, Records
from tntune.experiments.report import REPORT, save_settings, write_report
from tntune.experiments.tables import comparison_table, markdown, published_table, score_table

PUBLISHED = [e for e in find_experiments("quantum-dot") if e.published]


@pytest.fixture(scope="module")
def record() -> Record:
    return a_record()


def as_published(record: Record, experiment: Experiment, accuracy: float) -> Record:
    """The record as if it were of a published row, with its first convolution."""
    method = experiment.contenders[0].method.to_table()
    run = {**record.run, "experiment": experiment.name, "method": method, "budget": None}
    changed = with_score(record, 0, accuracy)
    return Record(
        **{**vars(changed), "run": run, "params": {"adapter": 1140, "conv1": 3136}, "key": experiment.name}
    )


def test_a_table_has_as_many_cells_in_every_row(record: Record) -> None:
    records = [
        with_score(record, seed, 0.5 + seed / 10, label) for seed in range(3) for label in ("LoRA", "a|b")
    ]
    table = comparison_table(compare_records(records, "LoRA"), "LoRA")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {13}
    assert "60.00 [35.16, 84.84]" in table  # 0.5, 0.6, 0.7: sd 0.1, t(2) = 4.303
    assert "+0.00 [+0.00, +0.00] | not told apart" in table


def test_a_score_is_marked_where_its_difference_holds(record: Record) -> None:
    scores = {"LoRA": (0.5, 0.51, 0.52), "clear": (0.7, 0.71, 0.73), "doubtful": (0.4, 0.55, 0.6)}
    records = [
        with_score(record, seed, own[seed], label) for label, own in scores.items() for seed in range(3)
    ]
    table = score_table(compare_records(records, "LoRA"), "LoRA")
    assert "| LoRA | 51.00 ± 2.48 |" in table  # sd 0.01, t(2) = 4.303
    assert "| clear | 71.33 ± 3.79 **better** |" in table
    assert table.count("**") == 2


def test_markdown_shows_numbers_with_separators() -> None:
    assert markdown(("a", "b"), [(1234567, "x|y")]) == "| a | b |\n|---|---|\n| 1,234,567 | x\\|y |"


def test_published_rows_show_the_first_convolution_apart() -> None:
    table = published_table(PUBLISHED, {})
    assert "| Table 1 | TensorGuide | 4,276 | 4,276 = 1,140 + 3,136 | 0 | 98.80 | not run |" in table
    assert "| Table 2 | M = 4096 | 4,356 | 4,356 = 1,220 + 3,136 | 0 |" in table
    assert "| Table 5 | [1, 2, 2, 1, 1] | 4,456 | 4,276 = 1,140 + 3,136 | -180 |" in table


def test_published_rows_show_ours_and_the_difference(record: Record) -> None:
    (experiment,) = (e for e in PUBLISHED if e.name == "published-tensorguide-1024")
    (entry,) = compare_records([as_published(record, experiment, 0.95)], experiment.baseline)
    table = published_table(PUBLISHED, {experiment.name: entry})
    assert "4,276 = 1,140 + 3,136 | 0 | 98.80 | 95.00 (one seed) | -3.80 | 0.0445 |" in table


def saved(folder: Path, record: Record) -> Path:
    """A folder of records of one published row."""
    records = Records(folder)
    for experiment in PUBLISHED:
        save_settings(records, experiment)
    records.save(as_published(record, PUBLISHED[0], 0.9))
    return folder


def test_published_sections_name_task_and_scale(tmp_path: Path, record: Record) -> None:
    write_report(saved(tmp_path / "records", record), tmp_path / "out")
    text = (tmp_path / "out" / REPORT).read_text()
    assert "## As published: quantum-dot (smoke)" in text
    assert text.count("not run") == 2 * (len([r for e in PUBLISHED for r in e.published]) - 1)


def test_figures_are_svg_and_png_and_repeat(tmp_path: Path, record: Record) -> None:
    records = [
        with_score(record, seed, 0.6, label) for seed in range(2) for label in ("LoRA @ 1", "LoRA @ 2")
    ]
    records[1] = Record(**{**vars(records[1]), "params": {"adapter": 99, "head": 34}})
    entries = compare_records([r for r in records if r.seed == 0], "LoRA @ 1")
    files = score_figure(tmp_path / "one", entries, "parameters")
    assert [file.suffix for file in files] == [".svg", ".png"]
    assert ElementTree.parse(files[0]).getroot().tag.endswith("svg")
    again = score_figure(tmp_path / "two", entries, "parameters")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]


def test_an_axis_on_which_nothing_differs_has_no_figure(tmp_path: Path, record: Record) -> None:
    entries = compare_records([with_score(record, 0, 0.6)], "LoRA")
    assert [score_figure(tmp_path / over, entries, over) for over in AXES] == [[]] * len(AXES)


def test_what_cannot_be_reported_is_an_error(tmp_path: Path, record: Record) -> None:
    with pytest.raises(SpecError, match="no records"):
        write_report(tmp_path, tmp_path / "out")
    folder = saved(tmp_path / "records", record)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be made"):
        write_report(folder, tmp_path / "file")
    renamed = with_score(as_published(record, PUBLISHED[0], 0.9), 1, 0.5, "renamed")
    stray = Records(folder).save(renamed)
    with pytest.raises(SpecError, match="its settings name no renamed, of which there are records"):
        write_report(folder, tmp_path / "out")
    stray.unlink()
    (folder / "odd.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"odd\.json: no record"):
        write_report(folder, tmp_path / "out")
