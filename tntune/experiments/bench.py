"""Bench: the runs of an experiment, each made once; settings chosen on one seed, and reported on others."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch

from tntune.experiments.attach import target_sizes
from tntune.experiments.experiment import Contender, Experiment, Scale
from tntune.experiments.method import Targets
from tntune.experiments.record import Record, Records
from tntune.experiments.run import Assignment, Run, perform, with_setting
from tntune.experiments.task import Task

__all__ = ["TUNING_SEED", "Bench", "Report", "Trial", "best", "conduct", "grid", "trials"]

TUNING_SEED = 1000
"""The one seed with which settings are chosen; it is never reported."""

Report = Callable[[str, int, int], None]
"""Called with ``(what, done, total)``."""


class Bench:
    """One task and one folder of records: ``bench.record(run)`` makes a run where no record of it is.

    Args:
        task: The task.
        records: Where records are and go.
        device: Where to train.
        report: Told of the steps of a run.

    Attributes:
        targets: Sizes of the task's targets.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> Bench(Planes(), Records("nowhere"), device=torch.device("cpu"), report=print).targets
        {'blocks.0': (16, 16), 'blocks.1': (16, 16)}
    """

    def __init__(self, task: Task, records: Records, *, device: torch.device, report: Report) -> None:
        self.targets: Targets = target_sizes(task.model(0), task.targets)
        self._task, self._records, self._device, self._report = task, records, device, report
        self._digest = task.data.digest()

    def record(self, run: Run) -> Record:
        """The record of a run, made and saved where there is none."""
        found = self._records.find(run.key(self._digest))
        if found is None:
            found = perform(run, self._task, device=self._device, progress=self._step)
            self._records.save(found)
        return found

    def _step(self, done: int, total: int) -> None:
        self._report("steps", done, total)


@dataclass(frozen=True)
class Trial:
    """One contender at one budget.

    Attributes:
        run: The run on the tuning seed, before a setting is chosen.
        grid: The same at every point of the grid, at the budget where settings are tried; one run where there
            is nothing to choose.
        seeds: How many seeds are reported.
    """

    run: Run
    grid: tuple[Run, ...]
    seeds: int

    @property
    def runs(self) -> int:
        """Runs of the whole trial."""
        return self.seeds + (len(self.grid) if len(self.grid) > 1 else 0)

    def final(self, setting: Run) -> tuple[Run, ...]:
        """The runs that are reported, at the learning rate and scale of this point of the grid."""
        rate, scale = setting.training.learning_rate, setting.method.scale
        chosen = replace(with_setting(self.run, learning_rate=rate, scale=scale), role="final")
        return tuple(replace(chosen, seed=seed) for seed in range(self.seeds))


def conduct(
    experiment: Experiment, scale: str, bench: Bench, *, seeds: int | None = None, report: Report
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Tune every contender on one seed by validation, then run it on the others; what exists is read.

    Args:
        experiment: What to compare.
        scale: How much of it.
        bench: Task and records.
        seeds: How many seeds to report, in place of the scale's number.
        report: Told of the runs.

    Returns:
        The records that are reported, and in words the contenders that do not fit a budget.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.experiments.experiment import find_experiments
        >>> from tntune.experiments.planes import Planes
        >>> quiet = lambda what, done, total: None
        >>> experiment = find_experiments("planes")[0].only(["lora"])
        >>> with TemporaryDirectory() as folder:
        ...     bench = Bench(Planes(), Records(folder), device=torch.device("cpu"), report=quiet)
        ...     records, _ = conduct(experiment, "smoke", bench, seeds=1, report=quiet)
        >>> [(record.run["budget"], record.params["adapter"]) for record in records]
        [(192, 192), (384, 384)]
    """
    found, omitted = trials(experiment, scale, bench.targets, seeds=seeds)
    final: list[Record] = []
    done, total = 0, sum(trial.runs for trial in found)

    def made(run: Run) -> Record:
        nonlocal done
        report(experiment.name, done, total)
        record = bench.record(run)
        done += 1
        report(experiment.name, done, total)
        return record

    for trial in found:
        setting = trial.grid[0]
        if len(trial.grid) > 1:
            setting = trial.grid[best([made(run) for run in trial.grid])]
        final += [made(run) for run in trial.final(setting)]
    return tuple(final), omitted


def trials(
    experiment: Experiment, scale: str, targets: Targets, *, seeds: int | None = None
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """The trials of an experiment at a scale; and in words those whose least size is above the budget.

    Example:
        >>> from tntune.experiments.experiment import find_experiments
        >>> found, _ = trials(find_experiments("planes")[0], "smoke", {"fc": (16, 16)}, seeds=2)
        >>> {trial.seeds for trial in found}
        {2}
    """
    amount = experiment.scales[scale]
    found, omitted = [], []
    for contender in experiment.contenders:
        budgets: tuple[int | None, ...] = (None,)
        if contender.method.is_sized:
            least = contender.method.least(targets)
            budgets = tuple(budget for budget in amount.budgets if budget >= least)
            omitted += [
                f"{contender.method.label}: {budget} parameters are below the {least} of its least size"
                for budget in amount.budgets
                if budget < least
            ]
        runs = [_first(experiment, scale, contender, budget) for budget in budgets]
        for run in runs:
            points = grid(_nearest(runs, run, amount.tuning_budget), amount)
            found.append(Trial(run, points, amount.seeds if seeds is None else seeds))
    return tuple(found), tuple(omitted)


def grid(run: Run, scale: Scale) -> tuple[Run, ...]:
    """The run at every point of the grid: learning rates times scales, where the method has a scale.

    Example:
        >>> from tntune.experiments.method import Method
        >>> from tntune.experiments.training import Training
        >>> lora = Method.from_table({"label": "LoRA", "method": "lora"})
        >>> run = Run(Assignment("demo", "demo", "smoke", {}), lora, 100, Training(steps=5), seed=0)
        >>> len(grid(run, Scale(seeds=1, learning_rates=(0.1, 0.2), scales=(1.0, 4.0))))
        4
    """
    rates = scale.learning_rates or (run.training.learning_rate,)
    scales = scale.scales if scale.scales and run.method.has_maps else (run.method.scale,)
    return tuple(with_setting(run, learning_rate=rate, scale=s) for rate, s in product(rates, scales))


def best(records: list[Record]) -> int:
    """Place of the best validation score; of equal ones that of the least validation loss."""
    return max(range(len(records)), key=lambda i: _merit(records[i]))


def _merit(record: Record) -> tuple[float, float]:
    score = record.validation[record.score]
    return score if record.higher_is_better else -score, -record.validation["loss"]


def _first(experiment: Experiment, scale: str, contender: Contender, budget: int | None) -> Run:
    """A contender's run on the tuning seed."""
    options = {**experiment.options, **experiment.scales[scale].options}
    assignment = Assignment(experiment.name, experiment.task, scale, options)
    training = experiment.training_of(contender, scale)
    return Run(assignment, contender.method, budget, training, TUNING_SEED, "tuning")


def _nearest(runs: list[Run], run: Run, budget: int | None) -> Run:
    """The run at the budget where settings are tried: the nearest to it, or the run itself."""
    if budget is None or run.budget is None:
        return run
    return min(runs, key=lambda each: abs((each.budget or 0) - budget))
