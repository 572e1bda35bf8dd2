"""Tables of records in Markdown: methods beside the baseline, and published rows beside ours."""

import math
from collections.abc import Mapping, Sequence

from tntune.experiments.comparison import Entry
from tntune.experiments.experiment import Experiment, Published
from tntune.experiments.statistics import Interval, detectable, discoveries
from tntune.maps.codec import decode_map

__all__ = ["comparison_table", "markdown", "published_table", "score_table"]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table: texts to the left, numbers to the right.

    Example:
        >>> print(markdown(("method", "params"), [("LoRA", 2056)]))
        | method | params |
        |---|---|
        | LoRA | 2,056 |
    """
    lines = [columns, *([_shown(cell) for cell in row] for row in rows)]
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def score_table(entries: Sequence[Entry], baseline: str) -> str:
    """The test score of every method over budgets, with a mark where it differs from the baseline's there.

    A mark is given where the paired difference holds among all of the table: at most 5 % of the marks may be
    chance (:func:`tntune.experiments.statistics.discoveries`).
    """
    compared = [entry for entry in entries if entry.difference is not None]
    held = discoveries([entry.difference for entry in compared if entry.difference is not None])
    marks = {id(entry): entry.verdict for entry, holds in zip(compared, held, strict=True) if holds}
    budgets = sorted({entry.budget for entry in entries}, key=lambda budget: budget or 0)
    cells = {(entry.first.label, entry.budget): _marked(entry, marks.get(id(entry), "")) for entry in entries}
    widest = sorted(entries, key=lambda entry: -(entry.budget or math.inf))  # where most have an entry
    labels = dict.fromkeys(entry.first.label for entry in widest)
    columns = ("method", *("any size" if budget is None else f"{budget:,}" for budget in budgets))
    rows = [(label, *(cells.get((label, budget), "") for budget in budgets)) for label in labels]
    head = f"Test {entries[0].first.score}, with half of its 95 % interval, over the budget of parameters;"
    return f"{head} better or worse than {baseline} of the same budget where said:\n\n" + markdown(
        columns, rows
    )


def comparison_table(entries: Sequence[Entry], baseline: str) -> str:
    """Every method at every budget: parameters, bytes, score, difference to the baseline, time; and notes."""
    score = entries[0].first.score
    columns = (
        *("method", "budget", "adapter", "other parameters", "bytes", "size", "rate", "scale"),
        *(f"test {score}", f"difference to {baseline}", "beside it", "ms per step"),
    )
    return markdown(columns, [_row(entry) for entry in entries]) + "\n\n" + _notes(entries, baseline)


def published_table(experiments: Sequence[Experiment], entries: Mapping[str, Entry]) -> str:
    """Every row of published tables beside ours: parameters, score and loss, each with the difference.

    Args:
        experiments: Those that repeat rows.
        entries: What was run, by the name of the experiment; rows without one show their parameters only.
    """
    rows = [(published, experiment) for experiment in experiments for published in experiment.published]
    columns = (
        *("table", "row", "parameters, paper", "ours: adapter + other", "difference"),
        *("score, paper", "ours", "difference", "loss, paper", "ours", "note"),
    )
    ordered = sorted(rows, key=lambda row: (row[0].table, row[1].name))
    return markdown(
        columns,
        [_published_row(row, experiment, entries.get(experiment.name)) for row, experiment in ordered],
    )


def _row(entry: Entry) -> tuple[object, ...]:
    first, percent = entry.first, _is_percent(entry)
    training, method = first.run["training"], first.run["method"]
    return (
        first.label,
        entry.budget or "-",
        entry.adapter,
        ", ".join(f"{part} {n:,}" for part, n in entry.extras.items()) or "-",
        first.bytes,
        first.size or "-",
        f"{training['learning_rate']:g}",
        f"{method.get('scale', 1.0):g}",
        _interval(entry.score, percent),
        "-" if entry.difference is None else _interval(entry.difference, percent, signed=True),
        entry.verdict,
        f"{entry.measured('ms_per_step'):.2f}",
    )


def _marked(entry: Entry, mark: str) -> str:
    """``mean ± reach``, and what it is beside the baseline."""
    percent, score = _is_percent(entry), entry.score
    reach = "" if score.n == 1 else f" ± {_value(score.high - score.mean, percent)}"
    return f"{_value(score.mean, percent)}{reach}" + (f" **{mark}**" if mark else "")


def _notes(entries: Sequence[Entry], baseline: str) -> str:
    """What a reader must know to read the table."""
    seeds = sorted({entry.score.n for entry in entries})
    tests = entries[0].first.data["sizes"]["test"]
    compared = sum(entry.difference is not None for entry in entries)
    notes = [
        f"Means over {_range(seeds)} seeds with 95 % t intervals; differences to {baseline} are paired by "
        f"seed. Here each of the {compared} stands for itself; the marks of the table above hold after a "
        "control of the false discovery rate at 5 %.",
        "Settings were chosen on one other seed by validation, from the same grid for every method.",
    ]
    if _is_percent(entries[0]):
        top = max(entry.score.mean for entry in entries)
        least = 100 * detectable(min(max(top, 0.5), 1 - 0.5 / tests), tests)
        notes.append(
            f"{tests:,} test examples show a difference of {least:.2f} points between two models at the top "
            "score (80 % power, binomial); what is smaller may be chance of the examples, whatever seeds say."
        )
    diverged = sum(record.diverged for entry in entries for record in entry.records)
    return " ".join([*notes, f"{diverged} runs diverged." if diverged else ""]).strip()


def _published_row(row: Published, experiment: Experiment, entry: Entry | None) -> tuple[object, ...]:
    (contender,) = experiment.contenders
    adapter = decode_map(contender.method.map).num_parameters
    other = row.other if entry is None else sum(entry.extras.values())
    total = adapter + other
    common = (
        row.table,
        row.row,
        row.params,
        f"{total:,} = {adapter:,} + {other:,}",
        _signed(total - row.params),
    )
    if entry is None:
        return (*common, _plain(row.score), "not run", "-", f"{row.loss:.4f}", "not run", row.note or "-")
    percent = _is_percent(entry)
    return (
        *common,
        _value(row.score, percent),
        _interval(entry.score, percent),
        _value(entry.score.mean - row.score, percent, signed=True),
        f"{row.loss:.4f}",
        f"{entry.mean('loss'):.4f}",
        row.note or "-",
    )


def _is_percent(entry: Entry) -> bool:
    return entry.first.score == "accuracy"


def _interval(interval: Interval, percent: bool, *, signed: bool = False) -> str:
    mean = _value(interval.mean, percent, signed=signed)
    if interval.n == 1:
        return f"{mean} (one seed)"
    low, high = (_value(end, percent, signed=signed) for end in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def _value(value: float, percent: bool, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f}" if percent else f"{value:{sign}.4g}"


def _plain(value: float) -> str:
    return _value(value, value < 1)


def _signed(value: int) -> str:
    return f"{value:+,}" if value else "0"


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _shown(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|")
