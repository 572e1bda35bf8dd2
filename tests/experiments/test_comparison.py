"""Comparisons: paired by seed, beside the baseline of the same budget, on the same data only."""

from dataclasses import replace

import pytest
import torch

from tests.experiments.sample import a_record, with_score
from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.experiments.comparison import Entry, compare_records, series
from tntune.experiments.record import Record
from tntune.experiments.statistics import paired_interval

BASE, OWN = [0.80, 0.82, 0.78, 0.81], [0.84, 0.87, 0.83, 0.86]


@pytest.fixture(scope="module")
def record() -> Record:
    return a_record()


def at(record: Record, budget: int | None) -> Record:
    return replace(record, run={**record.run, "budget": budget}, key=f"{record.key}/{budget}")


def found(entries: tuple[Entry, ...], label: str, budget: int | None) -> Entry:
    (entry,) = [e for e in entries if (e.first.label, e.budget) == (label, budget)]
    return entry


def test_differences_are_paired_by_seed_in_whatever_order(record: Record) -> None:
    records = [with_score(record, seed, score, "LoRA") for seed, score in enumerate(BASE)]
    records += [with_score(record, seed, score, "ours") for seed, score in reversed(list(enumerate(OWN)))]
    entries = compare_records(records, "LoRA")
    difference = found(entries, "ours", 400).difference
    assert difference == paired_interval(OWN, BASE)
    assert found(entries, "ours", 400).verdict == "better"
    assert found(entries, "LoRA", 400).difference is None
    assert found(entries, "LoRA", 400).verdict == "-"


def test_only_seeds_that_both_have_are_compared(record: Record) -> None:
    records = [with_score(record, seed, score, "LoRA") for seed, score in enumerate(BASE)]
    records += [with_score(record, seed, score, "ours") for seed, score in enumerate(OWN[:2], 2)]
    difference = found(compare_records(records, "LoRA"), "ours", 400).difference
    assert difference == paired_interval(OWN[:2], BASE[2:])


def test_each_budget_has_its_own_baseline(record: Record) -> None:
    lora = [at(with_score(record, 0, score, "LoRA"), budget) for score, budget in ((0.5, 100), (0.7, 400))]
    ours = [at(with_score(record, 0, 0.8, "ours"), budget) for budget in (50, 100, 400, None)]
    entries = compare_records([*lora, *ours], "LoRA")
    assert found(entries, "ours", 50).difference is None
    gaps = [found(entries, "ours", budget).difference.mean for budget in (100, 400, None)]
    assert close(torch.tensor(gaps), torch.tensor([0.3, 0.1, 0.1]))  # without a budget, beside the largest


def test_tuning_runs_are_not_reported(record: Record) -> None:
    tuning = replace(with_score(record, 1000, 1.0), run={**record.run, "role": "tuning"})
    assert [e.score.n for e in compare_records([record, tuning], "lora")] == [1]


def test_records_of_different_data_are_not_compared(record: Record) -> None:
    other = replace(with_score(record, 1, 0.5), data={**record.data, "digest": "0" * 16})
    with pytest.raises(SpecError, match="records are of different data"):
        compare_records([record, other], "lora")


def test_records_of_one_seed_by_two_settings_are_not_averaged(record: Record) -> None:
    other = replace(record, run={**record.run, "training": {}}, key="f" * 16)
    with pytest.raises(SpecError, match="are both of seed 0, by different settings: keep one of them"):
        compare_records([record, other], "lora")


def test_the_series_is_the_label_before_the_at_sign(record: Record) -> None:
    assert (
        series(with_score(record, 0, 0.5, "ReLU @ M = 8"))
        == series(with_score(record, 0, 0.5, "ReLU"))
        == "ReLU"
    )
