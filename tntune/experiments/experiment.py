"""Experiment: which methods meet on which task, at which budgets and seeds; read from one TOML file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from tntune.errors import SpecError
from tntune.experiments.method import EXACT, Method
from tntune.experiments.registry import SCALES
from tntune.experiments.toml import read_toml
from tntune.experiments.training import Training
from tntune.maps.base import positive, positives

__all__ = [
    "PROTOCOLS",
    "Contender",
    "Experiment",
    "Published",
    "Scale",
    "find_experiments",
    "read_experiment",
]

PROTOCOLS = ("fair", "as-published")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        table: Such as ``"Table 1"``.
        row: Its name there.
        params: Trainable parameters as printed.
        score: As printed, in the unit of the task: accuracies are in [0, 1].
        loss: As printed.
        other: Of the parameters, those that are not the method's.
        note: What a reader must know of it.

    Example:
        >>> Published("Table 1", "TensorGuide", 4276, 0.988, 0.0445).params
        4276
    """

    table: str
    row: str
    params: int
    score: float
    loss: float
    other: int = 0
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How much of an experiment is done.

    Attributes:
        seeds: Seeds 0, 1, .. that are reported.
        budgets: Parameters of the adapter, for methods whose size is to be chosen.
        learning_rates: The grid of every method; empty where the training's own rate is taken as it is.
        scales: The grid of the scale s of every method that has one, empty likewise.
        tuning_budget: The budget at which the grid is tried, the nearest where it does not fit a method; None
            for each budget by itself.
        options: Options of the task at this scale, beside the experiment's.
        training: Fields of :class:`tntune.experiments.Training` at this scale.

    Example:
        >>> Scale(seeds=5, learning_rates=(1e-3, 1e-2)).budgets
        ()
    """

    seeds: int
    budgets: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    tuning_budget: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive("seeds", self.seeds)
        for name in ("learning_rates", "scales"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "budgets", positives("budgets", self.budgets) if self.budgets else ())


@dataclass(frozen=True)
class Contender:
    """A method, and fields of the training that are its own.

    Example:
        >>> Contender(Method.from_table({"label": "LoRA", "method": "lora"})).training
        {}
    """

    method: Method
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A comparison: one task, contenders, and for each scale how much of it is done.

    Attributes:
        name: Of its file, without ``.toml``.
        title: For people.
        task: Name or reference of the task.
        protocol: ``"fair"`` or ``"as-published"``.
        baseline: Label of the contender that the others are compared with.
        contenders: The methods.
        scales: By name.
        options: Options of the task.
        training: Fields of the training.
        published: Rows of published tables that this repeats.
        text: The TOML that it was read from.

    Raises:
        SpecError: Where names are unknown or twice.

    Example:
        >>> find_experiments("planes")[0].names >= {"LoRA", "joint"}
        True
    """

    name: str
    title: str
    task: str
    protocol: str
    baseline: str
    contenders: tuple[Contender, ...]
    scales: dict[str, Scale]
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    text: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SpecError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {self.protocol!r}")
        if any(
            len(self.contenders) != 1 or c.method.name != EXACT for c in self.contenders if self.published
        ):
            raise SpecError("published rows are of one contender, of method exact")
        if not set(self.scales) <= set(SCALES):
            raise SpecError(f"scales are {', '.join(SCALES)}, not {', '.join(self.scales)}")
        labels = [contender.method.label for contender in self.contenders]
        if len(set(labels)) < len(labels) or self.baseline not in labels:
            raise SpecError(f"labels must differ, with {self.baseline!r} among them: {labels}")
        for scale in self.scales:
            for contender in self.contenders:
                self.training_of(contender, scale)

    def training_of(self, contender: Contender, scale: str) -> Training:
        """The training of a contender at a scale: its own fields before the scale's and the common ones."""
        given = [self.training, self.scales[scale].training, contender.training]
        merged: dict[str, Any] = {}
        for each in given:
            merged = (
                _without(merged, {"epochs", "steps"} if {"epochs", "steps"} & set(each) else set()) | each
            )
        return _made(Training, merged)

    @property
    def names(self) -> set[str]:
        """Labels and methods of the contenders."""
        return {name for c in self.contenders for name in (c.method.label, c.method.name)}

    def only(self, names: Sequence[str]) -> "Experiment":
        """The same with the contenders of these labels or methods, and the baseline."""
        wanted = {*names, self.baseline}
        kept = tuple(c for c in self.contenders if {c.method.label, c.method.name} & wanted)
        return replace(self, contenders=kept)


def read_experiment(path: Path) -> Experiment:
    """The experiment of a TOML file.

    Raises:
        SpecError: Naming the file, and the key that is missing, unknown or wrong.

    Example:
        >>> read_experiment(Path("nowhere.toml"))
        Traceback (most recent call last):
        tntune.errors.SpecError: nowhere.toml: cannot be read: No such file or directory
    """
    table = read_toml(path)
    text = path.read_text(encoding="utf-8")
    try:
        made = {
            "contenders": tuple(_contender(row) for row in table.pop("methods", ())),
            "scales": {name: _made(Scale, row) for name, row in table.pop("scales", {}).items()},
            "published": tuple(_made(Published, row) for row in table.pop("published", ())),
        }
        return _made(Experiment, {**table, **made, "name": path.stem, "text": text})
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def find_experiments(task: str) -> tuple[Experiment, ...]:
    """The experiments on a task that come with tntune, the fair ones first; or those of one TOML file.

    Raises:
        SpecError: Where there is none.

    Example:
        >>> [experiment.protocol for experiment in find_experiments("planes")]
        ['fair']
    """
    if task.endswith(".toml"):
        return (read_experiment(Path(task)),)
    found = [experiment for experiment in _shipped() if experiment.task == task]
    if not found:
        tasks = sorted({experiment.task for experiment in _shipped()})
        raise SpecError(
            f"there are experiments on {', '.join(tasks)}, or a .toml file of yours, not {task!r}"
        )
    return tuple(sorted(found, key=lambda each: (PROTOCOLS.index(each.protocol), each.name)))


def _shipped() -> Iterator[Experiment]:
    folder = Path(str(files("tntune.experiments") / "settings"))
    return (read_experiment(path) for path in sorted(folder.glob("*.toml")))


def _contender(row: Mapping[str, Any]) -> Contender:
    return Contender(Method.from_table(_without(row, {"training"})), dict(row.get("training", {})))


def _without(table: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def _made(kind: type[Value], table: Mapping[str, Any]) -> Value:
    """A dataclass of these fields; SpecError names one that it has not, or lacks."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - names)
    if unknown:
        raise SpecError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(names))}")
    try:
        return kind(**table)
    except TypeError as error:
        raise SpecError(f"{kind.__name__}: {error}") from error
