"""``tntune collect``: several LoRAs of one model as one library, or new members of a library."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from tntune.checkpoint.calibration import Calibration, open_calibration
from tntune.checkpoint.library import open_library
from tntune.cli.console import emit, emit_json, note, percent, progress_bar, table
from tntune.cli.options import (
    Json,
    MaxParams,
    Output,
    Overwrite,
    Params,
    Quiet,
    StoredDtype,
    make_target,
    parse_dtype,
)
from tntune.convert.collection import CollectionSettings, convert_collection
from tntune.convert.collection_report import CollectionReport, MemberReport
from tntune.convert.enlarge import enlarge_library
from tntune.errors import SpecError

__all__ = ["collect"]

_COLUMNS = ("member", "layers", "before", "own after", "error", "SVD error", "bases of its own")


def collect(
    sources: Annotated[
        list[str], typer.Argument(help="LoRA folders, or NAME=FOLDER; with --add one library.")
    ],
    output: Output,
    params: Params = None,
    max_params: MaxParams = None,
    add: Annotated[
        list[str] | None,
        typer.Option(help="LoRA folder, or NAME=FOLDER, to add on the library's bases; repeatable."),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="File of tntune calibrate for all members, or NAME=FILE for each; repeatable."),
    ] = None,
    dtype: StoredDtype = None,
    mixed_bases: Annotated[
        bool, typer.Option("--mixed-bases", help="Allow members that name different base models.")
    ] = False,
    carry: Annotated[bool, typer.Option("--carry", help="Carry unknown tensors along.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store several LoRAs of one model as a library whose members share their bases.

    Example: tntune collect math code chat -o library --params 0.1
    """
    if add:
        if len(sources) != 1 or carry or any(each is not None for each in (params, max_params, dtype)):
            raise SpecError("--add takes one library as SOURCES, and its size and dtype from there")
        members = _named(add)
        calibrations = _calibrations(calibration, members)
        reports = enlarge_library(
            sources[0],
            members,
            output,
            calibrations=calibrations,
            mixed_bases=mixed_bases,
            overwrite=overwrite,
        )
        _print_added(output, reports, json=json)
        return
    if params is None and max_params is None:
        raise SpecError("give --params or --max-params: how much of all members together to keep")
    members = _named(sources)
    settings = CollectionSettings(
        make_target(params, max_params, None, None), parse_dtype(dtype), mixed_bases, carry
    )
    calibrations = _calibrations(calibration, members)
    with progress_bar(not quiet) as progress:
        report = convert_collection(
            members, output, settings, calibrations=calibrations, overwrite=overwrite, progress=progress
        )
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
    _remark(report)


def _named(texts: Iterable[str]) -> dict[str, Path]:
    """Folders by member name: NAME=FOLDER, or a folder's own name."""
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            name, path = Path(text).resolve().name, text
        if name in found:
            raise SpecError(f"two members are called {name!r}; name them apart: NAME=FOLDER")
        found[name] = Path(path)
    return found


def _calibrations(texts: list[str] | None, members: dict[str, Path]) -> dict[str, Calibration]:
    """The calibration of each member."""
    if not texts:
        return {}
    if len(texts) == 1 and ("=" not in texts[0] or Path(texts[0]).exists()):
        return dict.fromkeys(members, open_calibration(texts[0]))
    found = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or name not in members:
            raise SpecError(f"--calibration {text}: is not NAME=FILE with one of {', '.join(members)}")
        if name in found:
            raise SpecError(f"--calibration {text}: {name} has one already")
        found[name] = open_calibration(path)
    return found


def _print(report: CollectionReport) -> None:
    table(f"{report.output}: {report.norm}", _COLUMNS, [_row(own) for own in report.members])
    totals = [
        ("parameters", report.params_before, report.params_after),
        ("of which shared", "", report.shared_params),
        ("bytes", report.bytes_before, report.bytes_after),
        ("error", "", percent(report.error)),
    ]
    if report.svd_error is not None:
        totals.append(("SVDs at this size", "", percent(report.svd_error)))
    if report.apart_error is not None:
        totals.append(("members apart at this size", "", percent(report.apart_error)))
    emit("")
    table("", ("total", "before", "after"), totals)


def _print_added(output: Path, reports: tuple[MemberReport, ...], *, json: bool) -> None:
    library = open_library(output)
    if json:
        emit_json({"output": str(output), "params": library.params, "added": [vars(own) for own in reports]})
        return
    table(f"{output}: {len(library.members)} members", _COLUMNS, [_row(own) for own in reports])
    emit(f"\nparameters {library.params:,}, bytes {library.num_bytes:,}")


def _row(own: MemberReport) -> tuple[object, ...]:
    errors = (own.error, own.svd_error, own.apart_error)
    shown = ("-" if error is None else percent(error) for error in errors)
    return (own.name, own.layers, own.params_before, own.params_after, *shown)


def _remark(report: CollectionReport) -> None:
    """Say where something else of this size would have been closer, and what was lost."""
    others = {"truncated SVDs": report.svd_error, "members apart": report.apart_error}
    for name, error in others.items():
        if error is not None and error < report.error * (1 - 1e-6):
            note(f"{name} of this size are closer: {percent(error)} against {percent(report.error)}")
    if len(report.members) > 1 and not report.shared_params:
        note("no two members share a basis: it does not pay for these at this size")
    lost = [own.name for own in report.members if not own.layers]
    if lost:
        note(f"nothing of {', '.join(lost)} fits the budget")
