"""Runs: one seed gives one record, and the key changes with all that determines it."""

from dataclasses import replace

import pytest
import torch

from tests.experiments.sample import CPU, SHORT, a_run, method, settled
from tntune.errors import SpecError
from tntune.experiments.planes import Planes
from tntune.experiments.run import Run, perform, with_setting


@pytest.mark.parametrize("kind", ["lora", "joint", "head"])
def test_a_seed_gives_one_record(kind: str) -> None:
    run = a_run(kind, budget=None if kind == "head" else 400)
    one, same, other = (perform(each, Planes(), device=CPU) for each in (run, run, replace(run, seed=1)))
    assert settled(one) == settled(same)
    assert one.test != other.test


def test_the_record_holds_the_run_and_its_task() -> None:
    run, task = a_run(seed=3), Planes()
    record = perform(run, task, device=CPU)
    assert record.run == run.to_json()
    assert (record.seed, record.label, record.is_final) == (3, "lora", True)
    assert record.data == {"digest": task.data.digest(), "sizes": {"train": 96, "validation": 48, "test": 64}}
    assert (record.score, record.steps, record.size) == ("accuracy", 6, 6)
    assert record.value == record.test["accuracy"]
    assert set(record.measured) == {"wall_seconds", "ms_per_step", "memory_bytes"}
    assert min(record.measured.values()) > 0
    assert record.environment["torch"] == torch.__version__


def test_tuning_does_not_look_at_the_kernel() -> None:
    assert perform(replace(a_run(), role="tuning"), Planes(), device=CPU).kernel is None
    assert perform(a_run(), Planes(), device=CPU).kernel is not None


def variants(run: Run) -> list[Run]:
    """Runs that differ from one in a single thing each."""
    assignment = run.assignment
    return [
        replace(run, seed=1),
        replace(run, budget=500),
        replace(run, method=method("lora", scale=2.0)),
        replace(run, method=method("tt_lora")),
        replace(run, training=replace(SHORT, batch_size=8)),
        replace(run, assignment=replace(assignment, scale="small")),
        replace(run, assignment=replace(assignment, options={"dropout": 0.2})),
        replace(run, assignment=replace(assignment, experiment="other")),
        with_setting(run, learning_rate=0.5, scale=1.0),
    ]


def test_the_key_is_of_everything_that_determines_a_run() -> None:
    run = a_run()
    keys = [run.key("data"), run.key("other data"), *(each.key("data") for each in variants(run))]
    assert len(set(keys)) == len(keys)
    assert replace(run, role="tuning").key("data") == run.key("data")


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(SpecError, match="role must be one of tuning, final, not 'rehearsal'"):
        replace(a_run(), role="rehearsal")
