"""The page of a sweep: errors and scores over parameters and over bytes, and all rows."""

from collections.abc import Callable
from html import escape

from tntune.convert.report import CandidateReport
from tntune.convert.sweep import SweepReport
from tntune.report.page import figure, footer, html_table, page
from tntune.report.plots import Curve, curves
from tntune.report.summary import shown

__all__ = ["sweep_page"]

_MEASURES: dict[str, Callable[[CandidateReport], float | None]] = {
    "error of ΔW": lambda each: each.relative_error,
    "error in the task norm": lambda each: each.task_error,
    "divergence": lambda each: each.divergence,
    "score": lambda each: each.score,
}
_SIZES: dict[str, Callable[[CandidateReport], int]] = {
    "parameters": lambda each: each.params,
    "bytes": lambda each: each.bytes,
}
_COLUMNS = ("share", "stored as", "parameters", "bytes", *_MEASURES)


def sweep_page(report: SweepReport) -> str:
    """One page: a figure over parameters, one over bytes, and a table.

    Example:
        >>> row = CandidateReport("lora", 9, 0.0, None, None, 36)
        >>> sweep_page(SweepReport("my-lora", "my-sweep", "frobenius", row, ()))[:15]
        '<!doctype html>'
    """
    head = f"<p>Norm: {escape(report.norm)}. Written to <code>{escape(report.output)}</code>.</p>"
    sections = [(name, f"Over {name}", _figure(report, name)) for name in _SIZES if report.points]
    sections.append(("rows", "All rows", html_table(_COLUMNS, _rows(report), text=(1,))))
    return page(f"Sweep of {report.source}", head, sections, footer(f"tntune sweep {report.source}"))


def _figure(report: SweepReport, size: str) -> str:
    """One panel for each measure, one curve for what was written and for each kind of truncated SVD."""
    panels = {title: _curves(report, size, title) for title in _MEASURES}
    drawn = {title: own for title, own in panels.items() if own}
    svg = curves(f"sweep-{size}", drawn, x=size, y=list(drawn), log_x=True)
    return figure(svg, f"What was written at each budget, and truncated SVDs of it, over {size}.")


def _curves(report: SweepReport, size: str, title: str) -> list[Curve]:
    """The curves of a measure, points of it above 0."""
    series: dict[str, list[CandidateReport]] = {"written": [point.written for point in report.points]}
    for point in report.points:
        for each in point.baselines:
            series.setdefault(each.name, []).append(each)
    found: list[Curve] = []
    for k, (name, own) in enumerate(series.items()):
        points = sorted((_SIZES[size](each), _MEASURES[title](each) or 0.0) for each in own)
        above = [(x, y) for x, y in points if y > 0]
        if above:
            style = "o-" if name == "written" else "o--"
            found.append((name, [x for x, _ in above], [y for _, y in above], k, style))
    return found


def _rows(report: SweepReport) -> list[tuple[object, ...]]:
    rows = [_row("1", report.lora)]
    for point in report.points:
        rows += [_row(f"{point.share:g}", each) for each in (point.written, *point.baselines)]
    return rows


def _row(share: str, each: CandidateReport) -> tuple[object, ...]:
    return (share, each.name, each.params, each.bytes, *(shown(get(each)) for get in _MEASURES.values()))
