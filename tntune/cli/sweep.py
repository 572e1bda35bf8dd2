"""``tntune sweep``."""

from pathlib import Path
from typing import Annotated

import typer

from tntune.cli.console import emit_json, note, percent, progress_bar, table
from tntune.cli.options import Html, Json, Overwrite, Quiet, StoredDtype, parse_dtype
from tntune.cli.task import CalibrationFile, Distill, Model, Train, make_task
from tntune.convert.report import CandidateReport
from tntune.convert.settings import METHODS, ConversionSettings
from tntune.convert.sweep import SweepReport, sweep_lora
from tntune.convert.target import Target
from tntune.errors import SpecError
from tntune.report.page import check_page, write_page
from tntune.report.plots import check_matplotlib
from tntune.report.sweep import sweep_page

__all__ = ["sweep"]

_COLUMNS = (
    "share",
    "stored as",
    "parameters",
    "bytes",
    "error",
    "task norm",
    "divergence",
    "score",
    "written",
)


def sweep(
    source: Annotated[Path, typer.Argument(help="LoRA folder, as PEFT writes it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to make, with one adapter folder for each budget.")
    ],
    params: Annotated[
        str, typer.Option(help="Shares of the parameters to keep, with commas.")
    ] = "0.5,0.25,0.125,0.05,0.02",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS[1:])}.")] = "auto",
    calibration: CalibrationFile = None,
    model: Model = None,
    train: Train = None,
    distill: Distill = None,
    dtype: StoredDtype = None,
    carry: Annotated[bool, typer.Option("--carry", help="Carry unknown tensors along.")] = False,
    html: Html = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a trained LoRA at many budgets, with truncated SVDs of each beside it: a table and a plot.

    Example: tntune sweep my-lora -o my-sweep --params 0.5,0.25 --html sweep.html
    """
    if html is not None:
        check_page(html, overwrite=overwrite)
        check_matplotlib()
    target_dtype = parse_dtype(dtype)
    budgets = [
        ConversionSettings(Target(params=share), method, dtype=target_dtype) for share in _shares(params)
    ]
    task = make_task(source, calibration, model=model, train=train, distill=distill)
    with progress_bar(not quiet) as progress:
        report = sweep_lora(
            source,
            output,
            budgets,
            overwrite=overwrite,
            carry=carry,
            progress=progress,
            task=task,
        )
    if html is not None:
        write_page(html, sweep_page(report), overwrite=overwrite)
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
    if html is not None:
        note(f"written: {html}")


def _shares(params: str) -> list[float]:
    """The shares of a list with commas."""
    try:
        return [float(part) for part in params.split(",")]
    except ValueError as error:
        raise SpecError(f"--params is a list of shares such as 0.5,0.25, not {params!r}") from error


def _print(report: SweepReport) -> None:
    rows = [_row("1", report.lora, "")]
    for point in report.points:
        share = f"{point.share:g}"
        rows.append(_row(share, point.written, Path(point.report.output).name))
        rows += [_row(share, each, "") for each in point.baselines]
    table(f"{report.source} -> {report.output}; task norm: {report.norm}", _COLUMNS, rows)


def _row(share: str, each: CandidateReport, written: str) -> tuple[object, ...]:
    errors = (each.relative_error, each.task_error, each.divergence, each.score)
    return (share, each.name, each.params, each.bytes, *(percent(error) for error in errors), written)
