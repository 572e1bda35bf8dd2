"""``tntune reproduce`` and ``tntune report``: experiments from settings to records, tables and figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from tntune.cli.console import emit, note, progress_bar
from tntune.cli.options import Quiet
from tntune.errors import SpecError
from tntune.experiments.bench import Bench, conduct
from tntune.experiments.experiment import PROTOCOLS, Experiment, find_experiments
from tntune.experiments.record import Records
from tntune.experiments.registry import SCALES, TASKS, make_task
from tntune.experiments.report import REPORT, save_settings, write_report
from tntune.experiments.task import Task

__all__ = ["report", "reproduce"]


def reproduce(
    task: Annotated[
        str, typer.Argument(help=f"{', '.join(TASKS)}, or a .toml file with an experiment of yours.")
    ],
    scale: Annotated[str, typer.Option(help=f"How much of it: {', '.join(SCALES)}.")] = "smoke",
    data: Annotated[Path | None, typer.Option(help="Folder of the data. Default: generated.")] = None,
    records: Annotated[
        Path, typer.Option(help="Folder of records; runs that are in it are not repeated.")
    ] = (Path("records")),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of tables and figures. Default: RECORDS/report."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Label or name of a method, beside the baseline; repeatable.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds to report. Default: the scale's number.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(PROTOCOLS)}. Default: both.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train, such as cuda.")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Run the paper's experiments, fair and as published, and write their tables and figures.

    Example: tntune reproduce quantum-dot --scale smoke
    """
    place, found = _device(device), find_experiments(task)
    if seeds is not None and seeds < 1:
        raise SpecError(f"seeds must be at least 1, not {seeds}")
    chosen = _chosen(found, scale, only or [], protocol)
    folder, tasks = Records(records), dict[str, Task]()
    for experiment in found:
        save_settings(folder, experiment)
    with progress_bar(not quiet) as move:
        for experiment in chosen:
            made = _task(experiment, scale, data, tasks)
            bench = Bench(made, folder, device=place, report=move)
            _, omitted = conduct(experiment, scale, bench, seeds=seeds, report=move)
            for line in omitted:
                note(f"left out: {line}")
    _write(records, records / "report" if output is None else output)


def report(
    records: Annotated[Path, typer.Argument(help="Folder of records.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of tables and figures.")],
) -> None:
    """Draw every table and figure anew from records.

    Example: tntune report records -o report
    """
    _write(records, output)


def _write(records: Path, out: Path) -> None:
    """Write a report, show its tables, and say where it is."""
    files = write_report(records, out)
    emit((out / REPORT).read_text(encoding="utf-8").rstrip())
    note(f"written: {out / REPORT} and {len(files) - 1} figures")


def _device(name: str) -> torch.device:
    """The device of that name; SpecError where this torch has none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def _chosen(
    experiments: Sequence[Experiment], scale: str, only: Sequence[str], protocol: str | None
) -> list[Experiment]:
    """Those of this protocol that have the scale, with these methods and their baselines."""
    if scale not in SCALES:
        raise SpecError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    if protocol is not None and protocol not in PROTOCOLS:
        raise SpecError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    found = [e for e in experiments if protocol in (None, e.protocol) and scale in e.scales]
    known = {name for e in found for name in e.names}
    unknown = sorted(set(only) - known)
    if not found:
        raise SpecError(f"there is no experiment of this protocol at scale {scale!r}")
    if unknown:
        raise SpecError(f"there is no {', '.join(unknown)} among {', '.join(sorted(known))}")
    return [e.only(only) if only else e for e in found if not only or e.names & set(only)]


def _task(experiment: Experiment, scale: str, data: Path | None, made: dict[str, Task]) -> Task:
    """The task of an experiment; experiments that ask for the same one share it."""
    options = {**experiment.options, **experiment.scales[scale].options}
    key = json.dumps([experiment.task, options], sort_keys=True)
    if key not in made:
        made[key] = make_task(experiment.task, scale, data=data, options=options)
    return made[key]
