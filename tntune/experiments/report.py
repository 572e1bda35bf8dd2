"""write_report: every table and figure of a folder of records, from the records alone."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tntune.errors import OutputError, SpecError
from tntune.experiments.comparison import Entry, compare_records
from tntune.experiments.convergence import correlations
from tntune.experiments.experiment import Experiment, read_experiment
from tntune.experiments.figures import AXES, curve_figure, score_figure
from tntune.experiments.record import Record, Records
from tntune.experiments.registry import SCALES
from tntune.experiments.tables import comparison_table, markdown, published_table, score_table
from tntune.files import write_text

__all__ = ["REPORT", "save_settings", "write_report"]

REPORT = "report.md"
"""The file that shows all tables and figures."""


def save_settings(records: Records, experiment: Experiment) -> None:
    """Put the settings of an experiment beside its records, so that a report needs nothing else.

    Raises:
        OutputError: Where the disk refuses.
    """
    folder = records.folder / experiment.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    write_text(folder / f"{experiment.name}.toml", experiment.text)


def write_report(records: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.md`` and its figures; equal records give equal tables and pictures.

    Args:
        records: Folder of records with the settings of their experiments.
        out: Folder to write into; files of the same names are replaced.

    Returns:
        The files.

    Raises:
        SpecError: Where there are no records, or settings cannot be read.
        CheckpointError: Naming a file that is no record.
        OutputError: Where the disk refuses.
        UnsupportedError: Where matplotlib is not installed.

    Example:
        >>> write_report("nowhere", "report")
        Traceback (most recent call last):
        tntune.errors.SpecError: nowhere: no records; tntune reproduce writes them
    """
    experiments = [read_experiment(path) for path in sorted(Path(records).rglob("*.toml"))]
    found = list(Records(records))
    if not found:
        raise SpecError(f"{records}: no records; tntune reproduce writes them")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    files: list[Path] = []
    sections = ["# Experiments"]
    for experiment in experiments:
        if not experiment.published:
            for scale, own in _by_scale(found, experiment):
                text, drawn = _section(experiment, scale, own, folder)
                sections.append(text)
                files += drawn
    sections += _published_sections(experiments, found)
    report = folder / REPORT
    write_text(report, "\n\n".join(sections) + "\n")
    return [report, *files]


def _by_scale(records: Sequence[Record], experiment: Experiment) -> Iterator[tuple[str, list[Record]]]:
    """The final records of an experiment by scale, those with any, in the order of its contenders."""
    labels = [contender.method.label for contender in experiment.contenders]
    for scale in SCALES:
        own = [
            record
            for record in records
            if (record.run["experiment"], record.run["scale"]) == (experiment.name, scale) and record.is_final
        ]
        strange = sorted({record.label for record in own} - set(labels))
        if strange:
            raise SpecError(
                f"{experiment.name}: its settings name no {', '.join(strange)}, of which there are records"
            )
        if own:
            yield scale, sorted(own, key=lambda record: labels.index(record.label))


def _section(
    experiment: Experiment, scale: str, records: Sequence[Record], folder: Path
) -> tuple[str, list[Path]]:
    """One experiment at one scale: its table, its figures, and what kernels foretell."""
    entries = compare_records(records, experiment.baseline)
    name = folder / f"{experiment.name}-{scale}"
    drawn = curve_figure(name.with_name(f"{name.name}-curves"), entries)
    for over in AXES:
        drawn += score_figure(name.with_name(f"{name.name}-{over}"), entries, over)
    tables = (score_table(entries, experiment.baseline), comparison_table(entries, experiment.baseline))
    parts = [f"## {experiment.title} ({scale})", *tables]
    parts += [f"![{path.stem}]({path.name})" for path in drawn if path.suffix == ".svg"]
    parts += _kernel_table(records)
    return "\n\n".join(parts), drawn


def _kernel_table(records: Sequence[Record]) -> list[str]:
    """Rank correlations of kernels at the start with steps to the target."""
    found = correlations(records)
    if not found:
        return []
    rows = [(each.name, f"{each.rho:+.2f}", f"{each.p:.2g}", each.n) for each in found]
    return [
        "Tangent kernel at the start, and steps to 90 % of the best validation score (Spearman):",
        markdown(("of the kernel", "rank correlation", "p", "runs"), rows),
    ]


def _published_sections(experiments: Sequence[Experiment], records: Sequence[Record]) -> list[str]:
    """Published rows of every task: at each scale that was run, or their parameters alone."""
    sections = []
    for task in sorted({experiment.task for experiment in experiments if experiment.published}):
        rows = [experiment for experiment in experiments if experiment.published and experiment.task == task]
        at = {scale: _published_entries(rows, records, scale) for scale in SCALES}
        tables = {scale: entries for scale, entries in at.items() if entries} or {"not run": {}}
        sections += [
            f"## As published: {task} ({scale})\n\n{published_table(rows, entries)}"
            for scale, entries in tables.items()
        ]
    return sections


def _published_entries(
    experiments: Sequence[Experiment], records: Sequence[Record], scale: str
) -> dict[str, Entry]:
    """What was run of these rows at a scale, by the name of the experiment."""
    found = {}
    for experiment in experiments:
        own = dict(_by_scale(records, experiment)).get(scale)
        if own:
            (found[experiment.name],) = compare_records(own, experiment.baseline)
    return found
