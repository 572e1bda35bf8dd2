"""What commands print: JSON or a table on stdout, everything else on stderr."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["emit_json", "note", "percent", "progress_bar", "table"]


def emit_json(value: object) -> None:
    """Write one JSON document to stdout; numbers that JSON does not have become null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(" ".join(text.split()) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to stdout; numbers to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) or _looks_numeric(row[i]) for row in rows)
        made.add_column(column, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        made.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    wide = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=wide, highlight=False).print(made)


def percent(value: float | None) -> str:
    """A relative error for people: ``0.1226``, or ``-`` where there is none."""
    return "-" if value is None else f"{value:.4g}"


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback ``(stage, done, total)`` that moves a bar on stderr, if that is a terminal."""
    console = Console(file=sys.stderr)
    if not enabled or not console.is_terminal:
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def move(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield move


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _looks_numeric(cell: object) -> bool:
    return isinstance(cell, str) and (cell == "-" or cell.replace(".", "").replace("e-", "").isdigit())
