"""What commands print: JSON or a table on stdout, everything else on stderr."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tntune.files import finite

__all__ = ["emit", "emit_json", "note", "percent", "progress_bar", "table"]

_BROKEN_PIPE = 141  # what a shell reports of a command that SIGPIPE ended
_WIDE = 160  # columns where stdout is no terminal


def emit(text: str) -> None:
    """Write a text and a line end to stdout; exit 141 where its reader has gone, as with ``| head``.

    Characters that stdout's encoding lacks are spelled out.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        raise typer.Exit(_BROKEN_PIPE) from None


def emit_json(value: object) -> None:
    """Write one JSON document to stdout; numbers that JSON does not have become null.

    Example:
        >>> emit_json({"error": float("inf"), "ranks": (1, 2)})
        {
          "error": null,
          "ranks": [
            1,
            2
          ]
        }
    """
    emit(json.dumps(finite(value), indent=2, allow_nan=False))


def note(text: str) -> None:
    """Write one line to stderr; characters that a terminal would obey are spelled out."""
    sys.stderr.write(_visible(" ".join(text.split())) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a title and a table to stdout: numbers to the right, texts folded where space is short.

    Args:
        title: Printed as a line of its own, whatever the width; none where empty.
        columns: Heads of the columns.
        rows: Cells; integers get separators, booleans read ok or failed.

    Example:
        >>> table("Sizes", ("layer", "params"), [("fc", 1000), ("[head]", 24)])
        Sizes
        layer   params
        fc       1,000
        [head]      24
    """
    made = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(_is_numeric(row[i]) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        made.add_row(*(_shown(cell) for cell in row))
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=sys.stdout.isatty(),
        width=shutil.get_terminal_size((_WIDE, 24)).columns,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(made)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    emit("\n".join([_visible(title), *lines] if title else lines))


def percent(value: float | None) -> str:
    """A relative error for people; ``-`` where there is none.

    Example:
        >>> percent(0.122618), percent(None)
        ('0.1226', '-')
    """
    return "-" if value is None else f"{value:.4g}"


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback ``(stage, done, total)`` that moves a bar on stderr, if that is a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def move(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield move


def _shown(cell: object) -> str:
    if isinstance(cell, bool):
        return "ok" if cell else "failed"
    return f"{cell:,}" if isinstance(cell, int) else _visible(str(cell))


def _visible(text: str) -> str:
    """The text, with characters spelled out that a terminal would obey: files may name anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_numeric(cell: object) -> bool:
    """Whether a cell is a number, or the text of one."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return False
    return cell in ("", "-") or not isinstance(cell, str) or _is_number(cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
