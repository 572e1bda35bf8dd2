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


SIZED = [
    *("lora", "tt_lora", "tensorguide", "delta_train", "loretta", "joint"),
    *("lotr", "lorta", "metatt_4d", "fact_tt", "tenslora_qkv_depth"),
]
"""Methods whose size a budget chooses; all that settings use, and one of each family."""


def method(name: str = "lora", **options: object) -> Method:
    """A method labelled by its name."""
    heads = {"head_dim": 8} if name == "lorta" else {}
    return Method.from_table({"label": name, "method": name, **heads, **options})


def a_run(name: str = "lora", *, budget: int | None = 400, seed: int = 0, **options: object) -> Run:
    """A short run."""
    return Run(DEMO, method(name, **options), budget, SHORT, seed)


def a_record(name: str = "lora", *, budget: int | None = 400, seed: int = 0) -> Record:
    """Its record."""
    return perform(a_run(name, budget=budget, seed=seed), Planes(), device=CPU)


def with_score(record: Record, seed: int, accuracy: float, label: str = "LoRA") -> Record:
    """The same record as if of another seed and method, with this test score."""
    run = {**record.run, "seed": seed, "method": {**record.run["method"], "label": label}}
    return replace(record, run=run, test={**record.test, "accuracy": accuracy}, key=f"{label}/{seed}")


def settled(record: Record) -> dict[str, object]:
    """All of a record that a second run on the same machine repeats."""
    return {name: value for name, value in record.to_json().items() if name != "measured"}
