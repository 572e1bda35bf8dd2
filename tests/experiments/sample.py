"""Runs and records of the synthetic task, made in milliseconds."""

from dataclasses import replace

import torch

from tntune.experiments.method import Method
from tntune.experiments.planes import Planes
from tntune.experiments.record import Record
from tntune.experiments.run import Assignment, Run, perform
from tntune.experiments.training import Training

CPU = torch.device("cpu")
SHORT = Training(steps=6, learning_rate=1e-2, evaluations=3)
DEMO = Assignment("demo", "tntune.experiments.planes:planes_task", "smoke", {})


def method(kind: str = "lora", **options: object) -> Method:
    """A method labelled by its kind."""
    return Method.from_table({"label": kind, "kind": kind, **options})


def a_run(kind: str = "lora", *, budget: int | None = 400, seed: int = 0, **options: object) -> Run:
    """A short run."""
    return Run(DEMO, method(kind, **options), budget, SHORT, seed)


def a_record(kind: str = "lora", *, budget: int | None = 400, seed: int = 0) -> Record:
    """Its record."""
    return perform(a_run(kind, budget=budget, seed=seed), Planes(), device=CPU)


def with_score(record: Record, seed: int, accuracy: float, label: str = "LoRA") -> Record:
    """The same record as if of another seed and method, with this test score."""
    run = {**record.run, "seed": seed, "method": {**record.run["method"], "label": label}}
    return replace(record, run=run, test={**record.test, "accuracy": accuracy}, key=f"{label}/{seed}")


def settled(record: Record) -> dict[str, object]:
    """All of a record that a second run on the same machine repeats."""
    return {name: value for name, value in record.to_json().items() if name != "measured"}
