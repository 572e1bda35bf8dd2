"""``tntune analyze``: what theory says of an adapter, layer by layer."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tntune.cli.console import emit, emit_json, note, progress_bar, table
from tntune.cli.options import (
    Compare,
    Html,
    Inputs,
    Json,
    OverwritePage,
    Quiet,
    Readouts,
    Samples,
    Seed,
    make_probe,
)
from tntune.report.analysis import AdapterAnalysis, LayerAnalysis, analyze_adapter
from tntune.report.html import analysis_page
from tntune.report.methods import MethodComparison, compare_methods
from tntune.report.page import check_page, write_page
from tntune.report.plots import check_matplotlib
from tntune.report.report import AnalysisReport
from tntune.report.summary import shown, summarize

__all__ = ["analyze"]

_ROUNDING = 1e-12
_COLUMNS = (
    *("layer", "stored as", "ranks", "params", "zero dirs", "cond J", "canonical"),
    *("λ_min⁺ T", "cond⁺ T", "stable rank", "B²"),
)


def analyze(
    adapter: Annotated[Path, typer.Argument(help="LoRA or TensorGuide folder.")],
    compare: Compare = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer to compare with references. Default: the largest.")
    ] = None,
    inputs: Inputs = None,
    samples: Samples = 32,
    readouts: Readouts = 4,
    seed: Seed = 0,
    html: Html = None,
    overwrite: OverwritePage = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Analyse an adapter: Jacobians, conditioning, tangent kernels, descent, bounds beside what they bound.

    Example: tntune analyze my-lora --compare my-lora-half --html analysis.html
    """
    folders = [adapter, *(compare or [])]
    if html is not None:
        check_page(html, overwrite=overwrite)
        check_matplotlib()
    probe = make_probe(inputs, samples, readouts, seed)
    with progress_bar(not quiet) as progress:
        analyses = tuple(analyze_adapter(folder, probe, progress=progress) for folder in folders)
        methods = compare_methods(folders, probe, layer=layer)
    report = AnalysisReport(shlex.join(["tntune", *sys.argv[1:]]), probe, analyses, methods)
    if html is not None:
        write_page(html, analysis_page(report), overwrite=overwrite)
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
    if html is not None:
        note(f"written: {html}")


def _print(report: AnalysisReport) -> None:
    """Layers of each adapter, one layer beside its references, bounds."""
    for adapter in report.adapters:
        _print_layers(adapter)
        emit("")
    _print_methods(report.methods)
    for adapter in report.adapters:
        emit("")
        _print_bounds(adapter)


def _print_layers(adapter: AdapterAnalysis) -> None:
    rows = [_layer_row(each) for each in adapter.layers]
    table(f"{adapter.path}: {adapter.params:,} parameters", _COLUMNS, rows)


def _layer_row(layer: LayerAnalysis) -> tuple[object, ...]:
    own, kernel = layer.jacobian, layer.kernel.spectrum
    return (
        layer.layer.name,
        layer.layer.layout or layer.layer.site.map.kind,
        layer.layer.ranks,
        own.params,
        "-" if own.spectrum is None else own.spectrum.nullity,
        "-" if own.spectrum is None else shown(own.spectrum.condition),
        "-" if own.gauge_fixed is None else shown(own.gauge_fixed.condition),
        shown(kernel.lambda_min_plus),
        shown(kernel.cond_plus),
        shown(kernel.stable_rank),
        shown(kernel.norm_squared),
    )


def _print_methods(methods: MethodComparison) -> None:
    rows = [
        (
            each.label,
            each.params,
            each.kernel.rank,
            shown(each.kernel.lambda_max),
            shown(each.kernel.lambda_min_plus),
            shown(each.kernel.cond_plus),
            shown(each.kernel.norm_squared),
            "-" if each.descent is None else _left(each.descent.measured[-1]),
            "-" if each.descent is None else _left(each.descent.bound[-1]),
        )
        for each in methods.contenders
    ]
    columns = (
        "parametrisation",
        "params",
        "rank T",
        "λ_max",
        "λ_min⁺",
        "cond⁺",
        "B²",
        "|r|² at 5000",
        "bound",
    )
    table(f"{methods.layer}: kernels and descent to what the first adapter does", columns, rows)


def _left(value: float) -> str:
    """A squared residual, 0 where it is rounding."""
    return shown(value if value > _ROUNDING else 0.0)


def _print_bounds(adapter: AdapterAnalysis) -> None:
    groups = summarize(bound for layer in adapter.layers for bound in layer.bounds)
    rows = [
        (
            group.label,
            group.statement,
            f"{group.held} of {group.layers}",
            shown(group.tightest),
            shown(group.median),
        )
        for group in groups
    ]
    columns = ("label", "bound", "holds in", "tightest", "median ratio")
    table(f"{adapter.path}: bounds (E26+ is no theorem)", columns, rows)
