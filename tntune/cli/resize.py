"""``tntune resize``: a plain LoRA of lower ranks, in the format that it came in."""

from pathlib import Path
from typing import Annotated

import typer

from tntune.checkpoint.calibration import open_calibration
from tntune.cli.console import emit, emit_json, note, percent, progress_bar, table
from tntune.cli.estimate import show_estimate
from tntune.cli.options import DryRun, Jobs, Json, MaxParams, Params, Quiet, StoredDtype, parse_dtype
from tntune.convert.norm import Norm
from tntune.convert.resize import resize_lora
from tntune.convert.resize_report import ResizeReport
from tntune.convert.resize_settings import ResizeSettings
from tntune.errors import SpecError

__all__ = ["resize"]

_COLUMNS = ("layer", "out x in", "rank", "to", "before", "after", "error")


def resize(
    source: Annotated[
        Path, typer.Argument(help="PEFT LoRA folder, or a .safetensors file of kohya's scripts or diffusers.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="What to write, in the format of SOURCE.")],
    rank: Annotated[int | None, typer.Option(help="Largest rank of any layer.")] = None,
    params: Params = None,
    max_params: MaxParams = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative error to meet, in total; with --uniform in every layer.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of the squared norm to keep, such as 0.95.")
    ] = None,
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform/--global",
            help="The same share of every layer, or ranks by singular values over all layers.",
        ),
    ] = False,
    dtype: StoredDtype = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="File of tntune calibrate: errors are weighed as the model feels them."),
    ] = None,
    carry: Annotated[bool, typer.Option("--carry", help="Carry unknown tensors along.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is there.")] = False,
    jobs: Jobs = 1,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Lower the ranks of a plain LoRA by SVD; every tool that loads SOURCE loads the result.

    Example: tntune resize my-lora.safetensors -o smaller.safetensors --energy 0.95
    """
    aims = {
        "--rank": rank,
        "--params": params,
        "--max-params": max_params,
        "--tolerance": tolerance,
        "--energy": energy,
    }
    given = [name for name, value in aims.items() if value is not None]
    if len(given) != 1:
        raise SpecError(f"give exactly one of {', '.join(aims)}; given: {', '.join(given) or 'none'}")
    settings = ResizeSettings(rank, params, max_params, tolerance, energy, uniform, parse_dtype(dtype), jobs)
    if dry_run:
        show_estimate(source, settings, json=json)
        return
    norm = Norm() if calibration is None else Norm(open_calibration(calibration))
    with progress_bar(not quiet) as progress:
        report = resize_lora(
            source, output, settings, norm=norm, overwrite=overwrite, carry=carry, progress=progress
        )
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
    dropped = sum(layer.rank_after == 0 for layer in report.layers)
    if dropped:
        note(f"{dropped} of {len(report.layers)} layers are dropped: other layers need their ranks more")
    if not report.target_met:
        note("the target was missed; the output holds the nearest result")
        raise typer.Exit(1)


def _print(report: ResizeReport) -> None:
    rows = [
        (
            layer.name,
            "x".join(str(size) for size in layer.shape),
            layer.rank_before,
            layer.rank_after,
            layer.params_before,
            layer.params_after,
            percent(layer.relative_error),
        )
        for layer in report.layers
    ]
    table(f"{report.source} -> {report.output} ({report.format})", _COLUMNS, rows)
    totals = [
        ("parameters", report.params_before, report.params_after),
        ("bytes", report.bytes_before, report.bytes_after),
        ("error of ΔW", "", percent(report.relative_error)),
        ("energy kept", "", percent(report.energy)),
    ]
    if report.task_error is not None:
        totals.append((f"error, {report.norm}", "", percent(report.task_error)))
    emit("")
    table("", ("total", "before", "after"), totals)
