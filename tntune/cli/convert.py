"""``tntune convert``, ``tntune round`` and ``tntune export``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tntune.checkpoint.calibration import open_calibration
from tntune.checkpoint.folder import open_adapter
from tntune.cli.console import emit, emit_json, note, percent, progress_bar, table
from tntune.cli.estimate import show_estimate
from tntune.cli.options import (
    DryRun,
    Jobs,
    Json,
    MaxParams,
    MaxRank,
    Member,
    Output,
    Overwrite,
    Params,
    Quiet,
    StoredDtype,
    Tolerance,
    make_target,
    parse_dtype,
)
from tntune.cli.task import CalibrationFile, Distill, Model, Train, check_task, make_task
from tntune.convert.convert import convert_lora
from tntune.convert.encode import DEFAULT_LAYOUTS
from tntune.convert.export import export_lora, export_member
from tntune.convert.family import convert_family
from tntune.convert.family_settings import FAMILY_METHODS, FamilySettings
from tntune.convert.report import CandidateReport, ConversionReport
from tntune.convert.rounding import round_adapter
from tntune.convert.settings import METHODS, ConversionSettings
from tntune.convert.whole import check_whole
from tntune.errors import SpecError

__all__ = ["convert", "export", "round_"]

_WEIGHED = ("candidate", "parameters", "error", "task norm", "divergence", "score")


def convert(
    source: Annotated[Path, typer.Argument(help="LoRA folder, as PEFT writes it.")],
    output: Output,
    params: Params = None,
    max_params: MaxParams = None,
    tolerance: Tolerance = None,
    max_rank: MaxRank = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join((*METHODS, *FAMILY_METHODS))}. Default: {METHODS[0]}, "
            f"and with --calibration {METHODS[-1]}."
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Layout to choose from, repeatable. Default: {', '.join(map(repr, DEFAULT_LAYOUTS))}."
        ),
    ] = None,
    calibration: CalibrationFile = None,
    model: Model = None,
    train: Train = None,
    distill: Distill = None,
    activation: Annotated[
        str, typer.Option(help="Activation of the result, by the exact lift.")
    ] = "identity",
    head_dim: Annotated[
        int | None, typer.Option(help="Size of an attention head, for methods with a mode for heads.")
    ] = None,
    input_heads: Annotated[
        list[str] | None,
        typer.Option(help="Ending of layers whose heads split the input, such as o_proj; repeatable."),
    ] = None,
    dtype: StoredDtype = None,
    carry: Annotated[bool, typer.Option("--carry", help="Carry unknown tensors along.")] = False,
    overwrite: Overwrite = False,
    jobs: Jobs = 1,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a trained LoRA to a smaller adapter, and report the error beside plain SVD's.

    Example: tntune convert my-lora -o my-lora-half --params 0.5
    """
    target, stored_as = make_target(params, max_params, tolerance, max_rank), parse_dtype(dtype)
    if method in FAMILY_METHODS:
        asked: dict[str, object] = {"--layout": layout, "--calibration": calibration, "--model": model}
        asked |= {"--train": train, "--distill": distill, "--dry-run": dry_run, "--jobs": jobs != 1}
        _refuse(method, asked | {"--activation": activation != "identity"})
        family = FamilySettings(target, method, head_dim, tuple(input_heads or ()), stored_as)
        with progress_bar(not quiet) as progress:
            found = convert_family(
                source, output, family, overwrite=overwrite, carry=carry, progress=progress
            )
        _finish(found, json)
        return
    method = method or METHODS[-1 if calibration else 0]
    _refuse(method, {"--head-dim": head_dim, "--input-heads": input_heads})
    layouts = tuple(layout or DEFAULT_LAYOUTS)
    settings = ConversionSettings(target, method, layouts, activation, stored_as, jobs)
    check_task(calibration, model=model, train=train, distill=distill)
    if calibration is not None or method == "joint":
        check_whole(settings, distilled=distill is not None)
    if dry_run:
        known = None if calibration is None else open_calibration(calibration)
        show_estimate(source, settings, calibration=known, json=json)
        return
    task = make_task(source, calibration, model=model, train=train, distill=distill)
    with progress_bar(not quiet) as progress:
        report = convert_lora(
            source, output, settings, overwrite=overwrite, carry=carry, progress=progress, task=task
        )
    _finish(report, json)


def round_(
    source: Annotated[Path, typer.Argument(help="TensorGuide folder.")],
    output: Output,
    params: Params = None,
    max_params: MaxParams = None,
    tolerance: Tolerance = None,
    max_rank: MaxRank = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Lower the ranks of a TensorGuide adapter, to an error or a size.

    Example: tntune round adapter -o adapter-small --tolerance 0.05
    """
    target = make_target(params, max_params, tolerance, max_rank)
    _finish(round_adapter(source, output, target, overwrite=overwrite), json)


def export(
    source: Annotated[Path, typer.Argument(help="TensorGuide folder, or library.")],
    output: Output,
    to: Annotated[str, typer.Option(help="Format to write: lora, or with --member tensorguide.")] = "lora",
    member: Member = None,
    dtype: StoredDtype = None,
    overwrite: Overwrite = False,
    jobs: Jobs = 1,
    json: Json = False,
) -> None:
    """Write a plain LoRA with the same ΔW, without an SVD; PEFT and LoRA servers load it.

    Example: tntune export adapter --to lora -o adapter-lora
    """
    if to == "tensorguide" and member is not None and dtype is None and jobs == 1:
        report = export_member(source, output, member=member, overwrite=overwrite)
    elif to == "lora":
        report = export_lora(
            source, output, dtype=parse_dtype(dtype), member=member, overwrite=overwrite, jobs=jobs
        )
    else:
        raise SpecError(
            f"export writes lora, and of a --member tensorguide without --dtype or --jobs, not {to!r}"
        )
    if json:
        emit_json(report.to_json())
        return
    rows = [
        ("parameters", report.params_before, report.params_after),
        ("bytes", report.bytes_before, report.bytes_after),
    ]
    table(
        f"{report.output}: {report.layers} layers, ranks up to {report.rank}", ("", "before", "after"), rows
    )
    if report.params_after > report.params_before:
        note("as plain factors the adapter has more parameters than as trains; tntune resize lowers them")
    note(f"error by rounding to {', '.join(report.dtypes)}: {percent(report.relative_error)}")


def _refuse(method: str, options: Mapping[str, object]) -> None:
    """SpecError for options that are given and that the method does not have."""
    given = [
        name for name, value in options.items() if value is not None and value is not False and value != []
    ]
    if given:
        raise SpecError(f"method {method!r} has no {', '.join(given)}")


def _finish(report: ConversionReport, json: bool) -> None:
    """Print the report; exit 1 where its target was missed."""
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
    _remark(report)
    if report.svd_wins and report.settings.get("method") in ("tensorguide", *FAMILY_METHODS):
        note(
            f"plain SVD truncation of this size is closer: {percent(report.svd_relative_error)} against "
            f"{percent(report.relative_error)}; --method auto keeps for each layer what is better"
        )
    if not report.target_met:
        note("the target was missed; the output holds the nearest result")
        raise typer.Exit(1)


def _remark(report: ConversionReport) -> None:
    """Say what the totals do not show."""
    dropped = [layer.name for layer in report.layers if layer.method == "dropped"]
    if dropped:
        note(f"{len(dropped)} of {len(report.layers)} layers are dropped: nothing of them fits the budget")
    carried = open_adapter(report.output, carry=True).passthrough
    embeddings = [key for key in carried if ".lora_embedding_" in key]
    if embeddings:
        note(f"{len(embeddings)} tensors of embeddings are carried along; only exports to LoRA apply them")


def _print(report: ConversionReport) -> None:
    rows = [
        (
            layer.name,
            layer.layout or layer.method,
            "-".join(str(rank) for rank in layer.ranks) or "-",
            layer.params_before,
            layer.params_after,
            percent(layer.relative_error),
            percent(layer.svd_relative_error),
        )
        for layer in report.layers
    ]
    columns = ("layer", "stored as", "ranks", "before", "after", "error", "SVD error")
    table(f"{report.source} -> {report.output}", columns, rows)
    totals: list[tuple[object, ...]] = [
        ("parameters", report.params_before, report.params_after),
        ("bytes", report.bytes_before, report.bytes_after),
        ("error of ΔW", "", percent(report.relative_error)),
    ]
    if report.svd_relative_error is not None:
        totals.append(("plain SVD at this size", "", percent(report.svd_relative_error)))
    if report.task_error is not None:
        totals.append((f"error, {report.norm}", "", percent(report.task_error)))
    if report.distillation is not None:
        own = report.distillation
        totals.append((f"divergence, {own.steps} steps", percent(own.before), percent(own.after)))
    if report.score_before is not None:
        totals.append(("score", percent(report.score_before), percent(report.score_after)))
    emit("")
    table("", ("total", "before", "after"), totals)
    if report.candidates:
        emit("")
        table(f"written: {report.chosen}", _WEIGHED, [_weighed(each) for each in report.candidates])


def _weighed(each: CandidateReport) -> tuple[object, ...]:
    """A row of the table of candidates."""
    errors = (each.relative_error, each.task_error, each.divergence, each.score)
    return (each.name, each.params, *(percent(error) for error in errors))
