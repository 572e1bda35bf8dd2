"""Experiments: tasks, methods at equal budgets, records of runs, and the tables and figures made of them."""

from tntune.experiments.task import Data, Split, Task

__all__ = ["Data", "Split", "Task"]
