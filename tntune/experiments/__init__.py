"""Experiments: tasks, methods at equal budgets, records of runs, and the tables and figures made of them.

The tasks are in modules of their own, which need the ``experiments`` extra; :func:`make_task` loads them.
"""

from tntune.experiments.attach import Attached, attach
from tntune.experiments.bench import Bench, conduct, trials
from tntune.experiments.comparison import Entry, compare_records
from tntune.experiments.convergence import Correlation, correlations
from tntune.experiments.experiment import (
    Contender,
    Experiment,
    Published,
    Scale,
    find_experiments,
    read_experiment,
)
from tntune.experiments.kernel import start_kernel
from tntune.experiments.loop import History, train
from tntune.experiments.method import Method
from tntune.experiments.planes import Planes
from tntune.experiments.record import Record, Records
from tntune.experiments.registry import SCALES, TASKS, make_task
from tntune.experiments.report import write_report
from tntune.experiments.run import Assignment, Run, perform
from tntune.experiments.statistics import (
    Interval,
    detectable,
    discoveries,
    mean_interval,
    paired_interval,
    verdict,
)
from tntune.experiments.task import Data, Split, Task
from tntune.experiments.training import Training

__all__ = [
    "SCALES",
    "TASKS",
    "Assignment",
    "Attached",
    "Bench",
    "Contender",
    "Correlation",
    "Data",
    "Entry",
    "Experiment",
    "History",
    "Interval",
    "Method",
    "Planes",
    "Published",
    "Record",
    "Records",
    "Run",
    "Scale",
    "Split",
    "Task",
    "Training",
    "attach",
    "compare_records",
    "conduct",
    "correlations",
    "detectable",
    "discoveries",
    "find_experiments",
    "make_task",
    "mean_interval",
    "paired_interval",
    "perform",
    "read_experiment",
    "start_kernel",
    "train",
    "trials",
    "verdict",
    "write_report",
]
