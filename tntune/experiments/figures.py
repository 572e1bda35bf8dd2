"""Figures of records, drawn by matplotlib: curves over steps, and scores over what a method costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from tntune.experiments.comparison import Entry, series
from tntune.experiments.loading import extra
from tntune.experiments.method import EXACT, HEAD
from tntune.experiments.record import Record
from tntune.experiments.statistics import Interval
from tntune.maps.build_joint import STACK_METHODS
from tntune.maps.recipe import DEFAULT_WIDTH

__all__ = ["AXES", "curve_figure", "score_figure", "width_of"]

_COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1"),
    *("#9c755f", "#edc948", "#ff9da7", "#79706e", "#86bcb6", "#d37295"),
)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tntune",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
_FORMATS: Mapping[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 110}}


def width_of(entry: Entry) -> int | None:
    """M of the maps: the size of a LoRA, an option of others; None where there is no map."""
    method = entry.first.run["method"]
    if method["method"] in (HEAD, EXACT):
        return None
    is_rank = method["method"] == "lora" or method["method"] in STACK_METHODS
    return entry.first.size if is_rank else int(method.get("width", DEFAULT_WIDTH))


def _rank_of(entry: Entry) -> int | None:
    return None if entry.first.run["method"]["method"] in (HEAD, EXACT, "lora") else entry.first.size


AXES: Mapping[str, tuple[str, Callable[[Entry], int | None]]] = {
    "parameters": ("parameters of the adapter", lambda entry: entry.adapter),
    "bytes": ("bytes to store", lambda entry: entry.first.bytes),
    "width": ("width M", width_of),
    "rank": ("largest rank", _rank_of),
}
"""What a score can be drawn over: the label of the axis, and the number, None where a method has none."""


def curve_figure(path: Path, entries: Sequence[Entry]) -> list[Path]:
    """Training loss and validation score over steps: means over seeds, one curve for each method.

    Each method is shown at its largest budget.

    Args:
        path: Without suffix; an SVG and a PNG are written.
        entries: Of one experiment.

    Returns:
        The files.
    """
    largest = {entry.first.label: entry for entry in sorted(entries, key=lambda e: e.budget or 0)}
    with _figure(path, 2, 4.2) as (axes, files):
        for style, (label, entry) in zip(_styles(), largest.items(), strict=False):
            losses = _mean_curve([record.losses for record in entry.records])
            scores = _mean_curve([_scores(record) for record in entry.records])
            for axis, (x, y) in zip(axes, (losses, scores), strict=True):
                axis.plot(x, y, **style, marker="", linewidth=1.4, label=label)
        axes[0].set(xlabel="step", ylabel="training loss")
        axes[1].set(xlabel="step", ylabel=f"validation {entries[0].first.score}")
    return files


def score_figure(path: Path, entries: Sequence[Entry], over: str) -> list[Path]:
    """Test score over one of :data:`AXES`: means with 95 % t intervals, one line for each series.

    Returns:
        The files, none where no series has two different values on the axis.
    """
    label, value = AXES[over]
    lines: dict[str, list[tuple[int, Entry]]] = {}
    for entry in entries:
        x = value(entry)
        if x is not None:
            lines.setdefault(series(entry.first), []).append((x, entry))
    if not any(len({x for x, _ in points}) > 1 for points in lines.values()):
        return []
    with _figure(path, 1, 4.6) as ((axis,), files):
        for style, (name, points) in zip(_styles(), lines.items(), strict=False):
            _line(axis, sorted(points, key=lambda point: point[0]), style, name)
        axis.set(xlabel=label, ylabel=f"test {entries[0].first.score}", xscale="log")
    return files


def _line(axis: Any, points: Sequence[tuple[int, Entry]], style: Mapping[str, str], name: str) -> None:
    """Means joined by a line, with a band of their intervals; a bar where there is one point."""
    x, scores = [value for value, _ in points], [entry.score for _, entry in points]
    low, high = ([_end(score, end) for score in scores] for end in ("low", "high"))
    means, colour = [score.mean for score in scores], style["color"]
    axis.plot(x, means, **style, marker="o", label=name, markersize=3.5, linewidth=1.3)
    if len(set(x)) > 1:
        axis.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    else:
        axis.vlines(x, low, high, color=colour, linewidth=1, alpha=0.6)


def _end(score: Interval, end: str) -> float:
    """An end of the interval, or the mean where a single seed gives none."""
    value: float = getattr(score, end)
    return value if score.n > 1 else score.mean


@contextmanager
def _figure(path: Path, panels: int, height: float) -> Iterator[tuple[Any, list[Path]]]:
    """Axes side by side with a common legend below; files are written when the block ends."""
    files: list[Path] = []
    with extra("matplotlib").rc_context(_STYLE):
        figure = extra("matplotlib.figure").Figure(figsize=(8.6, height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        yield axes, files
        for axis in axes:
            axis.grid(True)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        for suffix, options in _FORMATS.items():
            file = path.with_name(f"{path.name}.{suffix}")
            figure.savefig(file, format=suffix, **options)
            files.append(file)


def _styles() -> Iterator[dict[str, str]]:
    """Colours of solid lines, then of dashed, dotted, and mixed ones; then again."""
    while True:
        for line in ("-", "--", ":", "-."):
            yield from ({"color": colour, "linestyle": line} for colour in _COLOURS)


def _scores(record: Record) -> list[tuple[int, float]]:
    return [(step, scores[record.score]) for step, scores in record.scores]


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """The mean at every step that all curves have."""
    tables = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return steps, [fmean(table[step] for table in tables) for step in steps]
