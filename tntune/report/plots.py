"""Figures as inline SVG, drawn by matplotlib: colours and text follow the page, in light and in dark."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from io import StringIO
from typing import Any

from tntune.errors import UnsupportedError

__all__ = ["SERIES", "Curve", "check_matplotlib", "curves", "heat_maps", "small_multiples"]

SERIES = 9
"""Number of colours that the page defines: ``--s0`` to ``--s8``."""

_INK, _FAINT = "#000001", "#000002"
_COLOURS = [f"#0000{16 * (k + 1):02x}" for k in range(SERIES)]
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.alpha": 0.45,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Curve = tuple[str, Sequence[float], Sequence[float], int, str]
"""``(label, x, y, colour, line style)``; an empty label is left out of the legend."""


def check_matplotlib() -> None:
    """Raise UnsupportedError where matplotlib, the ``plots`` extra, is not installed.

    Example:
        >>> check_matplotlib()
    """
    _matplotlib("figure")


def curves(
    name: str, panels: Mapping[str, Sequence[Curve]], *, x: str, y: Sequence[str], log_x: bool = False
) -> str:
    """Panels side by side with curves on a logarithmic y axis, and one legend below them.

    Args:
        name: Of the figure, distinct on the page.
        panels: Curves by title.
        x: Label of the x axes.
        y: Label of the y axis of each panel.
        log_x: Whether x is logarithmic too; its ticks are then at values of the curves.

    Returns:
        An ``<svg>`` element.

    Example:
        >>> curves("demo", {"a": [("one", [1, 2], [1.0, 0.1], 0, "-")]}, x="k", y=["λ"])[:4]
        '<svg'
    """
    with _styled(name):
        figure = _figure(9.6, 4.2)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, own), label in zip(axes, panels.items(), y, strict=True):
            _draw(axis, own)
            axis.set(title=title, xlabel=x, ylabel=label, yscale="log")
            if log_x:
                _mark(axis, sorted({value for _, at, _, _, _ in own for value in at}))
        handles, labels = _legend(axes)
        columns = max(1, int(118 / (8 + max(map(len, labels), default=0))))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels) or 1))
        return _svg(figure)


def small_multiples(name: str, panels: Mapping[str, Sequence[Curve]], *, x: str, y: str, least: float) -> str:
    """One small panel for each title, on the same logarithmic y axis, cut at ``least``; x is symlog.

    Example:
        >>> panels = {"a": [("run", [0, 1], [1.0, 0.1], 0, "-")]}
        >>> small_multiples("demo", panels, x="step", y="r", least=1e-3)[:4]
        '<svg'
    """
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _styled(name):
        figure = _figure(2.6 * columns + 0.4, 2.1 * rows + 0.6)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (title, own) in zip(axes.flat, panels.items(), strict=False):
            _draw(axis, own)
            axis.set_title(title)
            axis.set_xscale("symlog", linthresh=1)
            axis.set(yscale="log", ylim=(least, 2.0), xlim=(0, None))
            axis.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
        handles, labels = _legend(axes.flat[:1])
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return _svg(figure)


def heat_maps(
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    panels: Mapping[str, Mapping[tuple[int, int], float]],
) -> str:
    """Panels of cells (row, column) with a value above 0 each, colours by its logarithm, common to all.

    Args:
        name: Of the figure.
        rows: Labels of the rows.
        columns: Labels of the columns.
        panels: Values by place, by title; a place without a value stays empty.

    Example:
        >>> heat_maps("demo", ["0"], ["fc"], {"condition": {(0, 0): 10.0}})[:4]
        '<svg'
    """
    found = [math.log10(value) for own in panels.values() for value in own.values()]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    high = max(high, low + 1e-9)
    with _styled(name):
        colours = _matplotlib("").colormaps["viridis"]
        width = 0.9 + max(map(len, rows)) * 0.07 + len(panels) * max(1.6, 0.62 * len(columns))
        figure = _figure(width, 1.5 + 0.27 * len(rows) + 0.055 * max(map(len, columns)))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, own) in zip(axes, panels.items(), strict=True):
            for (row, column), value in own.items():
                share = (math.log10(value) - low) / (high - low)
                axis.add_patch(_cell(row, column, colours(share)))
                _write(axis, row, column, value, share)
            axis.set(title=title, xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
            axis.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 1 else 0)
            axis.set_yticks(range(len(rows)), rows)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        return _svg(figure)


def _draw(axis: Any, own: Sequence[Curve]) -> None:
    """The curves of one panel."""
    for label, x, y, colour, style in own:
        axis.plot(x, y, style, color=_COLOURS[colour % SERIES], label=label or "_", linewidth=1.6)
    axis.grid(True)


def _mark(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis with ticks at some of these values, so far apart that their labels do not meet."""
    low, high = (values[0], values[-1]) if values else (1.0, 1.0)
    margin = max((high / low) ** 0.06, 1.05)
    axis.set_xscale("log")
    axis.set_xlim(low / margin, high * margin)
    gap = (high * margin**2 / low) ** (1 / 4)
    chosen: list[float] = []
    for value in values:
        if not chosen or value >= gap * chosen[-1]:
            chosen.append(value)
    axis.set_xticks(chosen, [_count(value) for value in chosen])
    axis.set_xticks([], minor=True)


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels of all panels, each label once."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True)}
    return list(found.values()), list(found)


def _cell(row: int, column: int, colour: Any) -> Any:
    return _matplotlib("patches").Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=colour, lw=0)


def _write(axis: Any, row: int, column: int, value: float, share: float) -> None:
    """The value in its cell, light on dark and dark on light."""
    text = _brief(value)
    ink = "#111111" if share > 0.6 else "#f8f8f8"
    axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7.5)


def _brief(value: float) -> str:
    """A positive number in at most five characters."""
    if not 0.01 <= value < 995e3:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    scaled, unit = (value / 1000, "k") if value >= 995 else (value, "")
    return f"{scaled:.2g}{unit}" if scaled < 99.5 else f"{scaled:.0f}{unit}"


def _count(value: float) -> str:
    """A size with three digits and a unit."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _figure(width: float, height: float) -> Any:
    return _matplotlib("figure").Figure(figsize=(width, height), layout="constrained")


def _styled(name: str) -> AbstractContextManager[None]:
    """Our style while one figure is made; the salt makes its inner names repeatable and its own."""
    context: AbstractContextManager[None] = _matplotlib("").rc_context({**_STYLE, "svg.hashsalt": name})
    return context


def _svg(figure: Any) -> str:
    """The figure as an element of a page: its colours are the page's, its size is the page's to say."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|id)="(?:http[^"]*|[A-Za-z0-9_.]+_\d+)"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', _sized, text, count=1)
    text = text.replace("xlink:href", "href").replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    for k, colour in enumerate(_COLOURS):
        text = text.replace(colour, f"var(--s{k})")
    return text.strip()


def _sized(match: re.Match[str]) -> str:
    """The opening tag with a width that shrinks with the page."""
    return f'{match[1]} style="width:100%;max-width:{float(match[2]) * 1.6:.0f}px;height:auto"'


def _matplotlib(module: str) -> Any:
    """A module of matplotlib, loaded when a figure is drawn: it is an extra, and takes half a second."""
    try:
        return import_module(f"matplotlib.{module}" if module else "matplotlib")
    except ImportError as error:
        raise UnsupportedError(
            "figures need matplotlib, which is not installed: pip install 'tntune[plots]'; "
            "the summary and --json do without"
        ) from error
