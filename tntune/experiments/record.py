"""Record: what one run was and gave, as one small JSON file; and the folder of them."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from secrets import token_hex
from typing import Any

from tntune.errors import CheckpointError, OutputError
from tntune.files import Json, read_json, write_text

__all__ = ["Point", "Record", "Records"]

Point = tuple[int, dict[str, float]]
"""``(step, scores)``."""


@dataclass(frozen=True)
class Record:
    """Everything about one run; two runs of one seed on one machine differ in ``measured`` at most.

    Attributes:
        key: Of the run on its data; records with the same key are the same run.
        run: The run: experiment, task, method, budget, training, seed, role.
        data: Digest and sizes of the splits.
        score: Name of the score that chose.
        higher_is_better: Of that score.
        size: Width or rank that the budget chose; None where nothing was to choose.
        params: Trainable parameters by part: the adapter, and each extra of the task.
        bytes: Of the tensors that a checkpoint must hold.
        validation: Scores of the tested state on validation.
        test: Scores on test, taken once.
        losses: Training loss over steps, thinned.
        scores: Validation scores over steps.
        steps: Steps that were made.
        best_step: Step of the tested state.
        diverged: Whether training ended in a loss that was not finite.
        kernel: Spectrum of the tangent kernel at the start, of final runs with maps; else None.
        measured: Wall time in seconds, median time of a step, memory: what another machine has otherwise.
        environment: Versions, platform, device and threads.

    Example:
        >>> from dataclasses import fields
        >>> made = Record(**dict.fromkeys((f.name for f in fields(Record)), 0) | {"losses": [], "scores": []})
        >>> Record.from_json(made.to_json()) == made
        True
    """

    key: str
    run: dict[str, Any]
    data: dict[str, Any]
    score: str
    higher_is_better: bool
    size: int | None
    params: dict[str, int]
    bytes: int
    validation: dict[str, float]
    test: dict[str, float]
    losses: list[tuple[int, float]]
    scores: list[Point]
    steps: int
    best_step: int
    diverged: bool
    kernel: dict[str, float] | None
    measured: dict[str, float]
    environment: dict[str, str | int]

    @property
    def label(self) -> str:
        """Name of the method."""
        return str(self.run["method"]["label"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.run["seed"])

    @property
    def is_final(self) -> bool:
        """Whether it is to be reported, not only to choose a setting."""
        return bool(self.run["role"] == "final")

    @property
    def value(self) -> float:
        """The test score that counts."""
        return self.test[self.score]

    @property
    def file_name(self) -> str:
        """Readable, and unlike that of any other run."""
        words = [self.label, self.run["budget"] or "", self.run["role"], f"s{self.seed}", self.key[:8]]
        return "-".join(filter(None, (re.sub(r"\W+", "-", str(word)).strip("-") for word in words))) + ".json"

    def to_json(self) -> Json:
        """What :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: Json) -> "Record":
        """The record of an object; CheckpointError names keys that are missing or unknown."""
        names = {f.name for f in fields(cls)}
        if set(obj) != names:
            raise CheckpointError(
                f"no record: missing keys {sorted(names - set(obj))}, unknown keys {sorted(set(obj) - names)}"
            )
        try:
            curves = {name: [(step, value) for step, value in obj[name]] for name in ("losses", "scores")}
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"no record: a curve has points that are no pairs: {error}") from error
        return cls(**{**obj, **curves})


class Records:
    """A folder of records, one below it for each experiment; ``records.find(r.key) == r`` once saved.

    Args:
        folder: Made when the first record is saved.

    Example:
        >>> list(Records("nowhere"))
        []
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._found: dict[str, Record] = {record.key: record for record in self}

    def __iter__(self) -> Iterator[Record]:
        """All records of the folder, by path; CheckpointError names a file that is none."""
        for path in sorted(self.folder.rglob("*.json")):
            try:
                yield Record.from_json(read_json(path))
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error

    def find(self, key: str) -> Record | None:
        """The record of this key, if it was there when the folder was opened, or saved since."""
        return self._found.get(key)

    def save(self, record: Record) -> Path:
        """Write a record, whole or not at all.

        Raises:
            OutputError: Where the disk refuses.
        """
        path = self.folder / str(record.run["experiment"]) / str(record.run["scale"]) / record.file_name
        draft = path.with_name(f".{path.name}.{token_hex(4)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(draft, _text(record))
            draft.replace(path)
        except (OSError, ValueError) as error:
            with suppress(OSError):
                draft.unlink()
            raise OutputError(f"{path}: cannot be written: {error}") from error
        self._found[record.key] = record
        return path


def _text(record: Record) -> str:
    """JSON with a line for each entry: curves stay short, and two records can be compared by eye."""
    lines = (f'  "{name}": {json.dumps(value, allow_nan=False)}' for name, value in record.to_json().items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
