"""Comparison: the final records of one experiment by method and budget, each beside the baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tntune.errors import SpecError
from tntune.experiments.record import Record
from tntune.experiments.statistics import Interval, mean_interval, paired_interval, verdict

__all__ = ["Entry", "compare_records", "series"]

_SERIES = " @ "


@dataclass(frozen=True)
class Entry:
    """One method at one budget.

    Attributes:
        records: Its runs by seed.
        score: Interval of the test score.
        difference: Interval of the paired difference to the baseline at the same budget, or at its largest
            for a method without one; None for the baseline, and where it has no such budget.

    Example:
        >>> Entry((), mean_interval([0.9, 0.8]), None).verdict
        '-'
    """

    records: tuple[Record, ...]
    score: Interval
    difference: Interval | None

    @property
    def first(self) -> Record:
        """One of the records, for what all share."""
        return self.records[0]

    @property
    def budget(self) -> int | None:
        """Parameters that were allowed."""
        found: int | None = self.first.run["budget"]
        return found

    @property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        return self.first.params["adapter"]

    @property
    def extras(self) -> dict[str, int]:
        """Other trainable parameters by part."""
        return {part: n for part, n in self.first.params.items() if part != "adapter" and n}

    @property
    def verdict(self) -> str:
        """Beside the baseline; ``"-"`` where there is no difference."""
        if self.difference is None:
            return "-"
        return verdict(self.difference, higher_is_better=self.first.higher_is_better)

    def mean(self, name: str) -> float:
        """Mean of a test score."""
        return fmean(record.test[name] for record in self.records)

    def measured(self, name: str) -> float:
        """Mean of what was measured."""
        return fmean(record.measured[name] for record in self.records)


def compare_records(records: Iterable[Record], baseline: str) -> tuple[Entry, ...]:
    """Entries of all final records, in the order of labels as they come and of budgets.

    Args:
        records: Of one experiment at one scale, all on the same data.
        baseline: Label of the method that others are compared with.

    Raises:
        SpecError: Where records are of different data, or two of one method and budget have one seed, as
            where settings were changed between them: no comparison can be made of those.

    Example:
        >>> compare_records([], "LoRA")
        ()
    """
    cells: dict[tuple[str, int | None], list[Record]] = {}
    for record in records:
        if record.is_final:
            cells.setdefault((record.label, record.run["budget"]), []).append(record)
    digests = {record.data["digest"] for own in cells.values() for record in own}
    if len(digests) > 1:
        raise SpecError(
            f"records are of different data, {', '.join(sorted(digests))}: compare each by itself"
        )
    for own in cells.values():
        _check_seeds(own)
    ordered = sorted(cells.items(), key=lambda item: item[0][1] or 0)
    return tuple(
        _entry(sorted(own, key=lambda r: r.seed), _beside(cell, cells, baseline)) for cell, own in ordered
    )


def series(record: Record) -> str:
    """The label before ``" @ "``: what members of one curve share."""
    return record.label.partition(_SERIES)[0]


def _check_seeds(records: Sequence[Record]) -> None:
    """Raise where two records of a cell have one seed, so that a mean would count it twice."""
    first: dict[int, Record] = {}
    for record in records:
        known = first.setdefault(record.seed, record)
        if known is not record:
            raise SpecError(
                f"{record.label}: {known.file_name} and {record.file_name} are both of seed {record.seed}, "
                "by different settings: keep one of them"
            )


def _beside(
    cell: tuple[str, int | None], cells: dict[tuple[str, int | None], list[Record]], baseline: str
) -> list[Record]:
    """The baseline's records that a cell is compared with."""
    label, budget = cell
    if label == baseline:
        return []
    own = {b: records for (name, b), records in cells.items() if name == baseline}
    if budget is None and own:
        return own[max(own, key=lambda b: b or 0)]
    return own.get(budget, own.get(None, []))


def _entry(records: Sequence[Record], beside: Sequence[Record]) -> Entry:
    """An entry; the difference is over the seeds that both have."""
    score = mean_interval([record.value for record in records])
    other = {record.seed: record.value for record in beside}
    both = [record for record in records if record.seed in other]
    if not both:
        return Entry(tuple(records), score, None)
    difference = paired_interval([r.value for r in both], [other[r.seed] for r in both])
    return Entry(tuple(records), score, difference)
