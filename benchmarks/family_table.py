"""The family in one table: size, sharing, start, merge, export, score and time of every method.

    python benchmarks/family_table.py                   # print it
    python benchmarks/family_table.py --readme          # and put it into the README

Nothing in it is taken on trust: formulas are tested against the maps, facts are found by running every method
on a small network, scores come from the records of `tntune reproduce sentences --scale small`, times from
`python benchmarks/family.py --json benchmarks/results/family.json`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from common.family import FORMULAS, LEGEND, SYSTEMS, Facts
from run import HERE, README, fill

from tntune.experiments import Entry, Experiment, Method, Record, Records, compare_records, find_experiments
from tntune.experiments.attach import target_sizes
from tntune.experiments.sentences import sentences_task

SECTION = "family"
SCALE = "small"
RECORDS = HERE.parent / "docs" / "reproduction" / "records"
TIMES = HERE / "results" / f"{SECTION}.json"
EXACT = 1e-6
"""Largest error of what counts as merged or exported exactly."""
TOO_SMALL, NOT_RUN = "-", "not run"


def methods(experiment: Experiment) -> dict[str, Method]:
    """The contender of each method, the first where it has several."""
    found: dict[str, Method] = {}
    for contender in experiment.contenders:
        found.setdefault(contender.method.name, contender.method)
    return {name: method for name, method in found.items() if name in SYSTEMS}


def leasts(experiment: Experiment) -> dict[str, int]:
    """Parameters of each method's contender at its least size, on the targets of the task."""
    task = sentences_task(SCALE)
    targets = target_sizes(task.model(0), task.targets)
    return {name: method.least(targets) for name, method in methods(experiment).items()}


def entries(records: Iterable[Record], experiment: Experiment) -> dict[tuple[str, int | None], Entry]:
    """What was run of the experiment at our scale, by label and budget."""
    own = (r for r in records if (r.run["experiment"], r.run["scale"]) == (experiment.name, SCALE))
    found = compare_records(own, experiment.baseline)
    return {(entry.first.label, entry.budget): entry for entry in found}


def score(entry: Entry) -> str:
    """Mean accuracy in percent and half of its 95 % t interval; without one where there is a single seed."""
    mean, low, high, _, n = entry.score
    return f"{100 * mean:.1f}" + (f" ± {50 * (high - low):.1f}" if n > 1 else " (one seed)")


def scores(
    records: Iterable[Record], experiment: Experiment, least: Mapping[str, int]
) -> Callable[[str, int], str]:
    """The cell of a method at a budget."""
    known, contenders = entries(records, experiment), methods(experiment)

    def cell(method: str, budget: int) -> str:
        if method not in contenders:
            return NOT_RUN
        if least[method] > budget:
            return TOO_SMALL
        entry = known.get((contenders[method].label, budget))
        return NOT_RUN if entry is None else score(entry)

    return cell


def time(measured: Mapping[str, Mapping[str, object]], method: str) -> str:
    """The ratio to LoRA's step with its quartiles."""
    own = measured.get(method)
    return "not measured" if own is None else f"{own['ratio']:.2f} ({own['quartiles']})"


def facts(method: str) -> tuple[str, str, str, str]:
    """Cells of modes tied, zero start, merge and export."""
    own = Facts.of(method)
    merges = "yes" if own.merge_error < EXACT else "no"
    exports = f"rank {own.export_rank}" if own.export_error < EXACT else "no"
    return ", ".join(own.tied) or "none", own.silent, merges, exports


def notes(experiment: Experiment, found: Mapping[str, object]) -> str:
    """What a reader must know."""
    scale = experiment.scales[SCALE]
    size = f"{found['params']:,} parameters, on {found['machine']}" if found else "equal parameters"
    return (
        f"{LEGEND} Tied: one tensor serves both sides, or all heads, projections or layers. Zero start: the "
        "tensor that is zero at the start. Export: the rank of the LoRA that is the same function. Accuracy: "
        "percent of test texts of the docstring task (`tntune reproduce sentences --scale small`), mean over "
        f"{scale.seeds} seeds with 95 % t intervals, every method at its own best rate; "
        f'"{TOO_SMALL}": no size is that small. Step: medians and quartiles of interleaved rounds at {size}.'
    )


def table(records: Iterable[Record], times: Mapping[str, object], least: Mapping[str, int]) -> list[str]:
    """The lines of the section."""
    (experiment,) = find_experiments("sentences")
    budgets = experiment.scales[SCALE].budgets
    cell = scores(records, experiment, least)
    measured = times.get("methods", {})
    columns = [
        *("system", "`method`", "parameters", "tied", "zero start", "merges", "exports to LoRA of"),
        *(f"accuracy at {budget:,}" for budget in budgets),
        "step over LoRA's",
    ]
    rows = [columns, ["---"] * len(columns)]
    for method, system in SYSTEMS.items():
        found = [cell(method, budget) for budget in budgets]
        formula = f"`{FORMULAS[method]}`"
        rows.append([system, f"`{method}`", formula, *facts(method), *found, time(measured, method)])
    return [*(f"| {' | '.join(row)} |" for row in rows), "", notes(experiment, times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of records")
    parser.add_argument("--times", type=Path, default=TIMES, help="JSON of benchmarks/family.py")
    parser.add_argument("--readme", action="store_true", help="rewrite the section of the README")
    options = parser.parse_args()
    (experiment,) = find_experiments("sentences")
    times = json.loads(options.times.read_text("utf-8")) if options.times.exists() else {}
    lines = table(Records(options.records), times, leasts(experiment))
    if options.readme:
        fill(README, SECTION, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
