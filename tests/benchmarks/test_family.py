"""The table of the family: formulas are the maps' counts, facts what maps do, scores the records'."""

import argparse
import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support.tolerance import TOLERANCE
from tntune.experiments import Record, find_experiments, mean_interval
from tntune.maps import LAYER_METHODS, METHODS, Geometry, Recipe, Stack, WeightMap, build_joint, build_map
from tntune.maps.build_joint import HEAD_METHODS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

Load = dict[str, ModuleType]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """The scripts and what they share, with their folder on the path."""
    for package in ("transformers", "matplotlib"):
        pytest.importorskip(package)
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    names = ("common.family", "family", "family_table", "run")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# Formulas.


def value(formula: str, names: dict[str, object]) -> int:
    """A formula as it is printed: what stands side by side is multiplied."""
    python = formula.replace("²", "**2").replace("³", "**3")
    return eval(re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", python), {"__builtins__": {}}, names)


def trains(map: WeightMap) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Modes and ranks of every train of a map."""
    if map.kind in ("tt_lora", "loretta"):
        both = getattr(map, "trains", map)
        return [(train.modes, train.ranks) for train in (both.down_train, both.up_train)]
    if map.kind == "delta_train":
        return [((*map.in_modes, *map.out_modes), map.ranks)]
    return [(map.layout.modes, map.ranks)] if map.kind == "tensorguide" else []


def names(map: WeightMap, sizes: tuple[int, ...], rank: int) -> dict[str, object]:
    """The letters of a formula; T takes a train of the map whose modes have that product."""
    left = trains(map)

    def train(*spans: int) -> int:
        (modes, ranks), *_ = found = [own for own in left if math.prod(own[0]) == math.prod(spans)]
        left.remove(found[0])
        return sum(a * m * b for (a, b), m in zip(pairwise(ranks), modes, strict=True))

    features = map.layout.span("f") if map.kind == "tensorguide" else max(sizes[:2])
    letters = dict(zip("DQLPH", sizes, strict=True))
    return {**letters, "d": sizes[1] // sizes[4], "F": features, "M": map.width, "r": rank, "T": train}


def made(method: str, sizes: tuple[int, ...], rank: int) -> tuple[WeightMap, int]:
    """A map as a budget makes it, with the parameters of all layers."""
    d, q, layers, projections, heads = sizes
    if method in LAYER_METHODS:
        width = rank if method == "lora" else 5
        map = build_map(method, Geometry(d, q, width), rank=None if method == "lora" else rank)
        return map, layers * projections * map.num_parameters
    if method == "joint":
        paths = {f"h.{i}.p{k}": (d, q) for i in range(layers) for k in range(projections)}
        ((_, map),) = Recipe(method=method, width=5, rank=rank).joint_maps(paths).values()
    else:
        stack = Stack(d, q, layers=layers, projections=projections)
        map = build_joint(method, stack, rank=rank, heads=heads if method in HEAD_METHODS else 1)
    return map, map.num_parameters


@pytest.mark.parametrize("sizes", [(24, 24, 2, 3, 4), (30, 24, 3, 2, 6), (24, 36, 5, 4, 6)])
@pytest.mark.parametrize("method", METHODS)
def test_formulas_count(load: Load, method: str, sizes: tuple[int, ...]) -> None:
    for rank in (1, 3):
        map, count = made(method, sizes, rank)
        assert value(load["common.family"].FORMULAS[method], names(map, sizes, rank)) == count


def test_every_method_has_a_row(load: Load) -> None:
    shared = load["common.family"]
    assert set(shared.SYSTEMS) == set(shared.FORMULAS) == set(METHODS)
    assert len(set(shared.SYSTEMS.values())) == len(METHODS)


# Facts.


@pytest.mark.parametrize("method", METHODS)
def test_all_start_at_zero_merge_and_export(load: Load, method: str) -> None:
    facts = load["common.family"].Facts.of(method)
    assert max(facts.merge_error, facts.export_error) < TOLERANCE[torch.float64]
    assert facts.silent != "no"
    assert ("head" in facts.tied) == (method in HEAD_METHODS)


@pytest.mark.parametrize(
    ("method", "tied", "silent", "rank"),
    [
        ("lora", (), "`lora_up`", "r"),
        ("tt_lora", (), "`tt_up_core_2`", "M"),
        ("tensorguide", ("side",), "half of `tt_core_2`", "M"),
        ("joint", ("side", "proj", "layer"), "half of `tt_core_4`", "M"),
        ("lotr", ("proj", "layer"), "`tn_core`", "r"),
        ("tenslora_depth", ("layer",), "`tn_core`", "r"),
        ("tenslora_att_qkv_cp", ("head", "proj"), "`tn_dh`", "r"),
    ],
)
def test_facts_that_are_known(load: Load, method: str, tied: tuple[str, ...], silent: str, rank: str) -> None:
    facts = load["common.family"].Facts.of(method)
    assert (facts.tied, facts.silent, facts.export_rank) == (tied, silent, rank)


def test_a_start_that_is_not_zero_says_so(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = load["common.family"]
    own = shared.small_spec
    monkeypatch.setattr(
        shared, "small_spec", lambda method: own(method).__class__(method=method, start="random")
    )
    assert shared.Facts.of("lotr").silent == "no"


# Scores and times.


def record(label: str, budget: int, seed: int, accuracy: float) -> Record:
    run = {
        "experiment": "sentences",
        "scale": "small",
        "method": {"label": label},
        "budget": budget,
        "seed": seed,
        "role": "final",
    }
    rest = {"run": run, "key": f"{label} {budget} {seed}", "data": {"digest": "x", "sizes": {"test": 500}}}
    blank = dict.fromkeys((f.name for f in fields(Record)), 0)
    more = {"score": "accuracy", "higher_is_better": True, "test": {"accuracy": accuracy}, "measured": {}}
    return Record(**{**blank, "losses": [], "scores": [], "params": {}, **rest, **more})


def cells(lines: list[str], method: str) -> list[str]:
    (line,) = (line for line in lines if f"| `{method}` |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_scores_are_means_of_records_with_their_intervals(load: Load) -> None:
    values = [0.5, 0.52, 0.6]
    records = [record("LoTR", 41_472, seed, x) for seed, x in enumerate(values)]
    records += [record("LoRA", 165_888, 0, 0.7)]
    least = dict.fromkeys(METHODS, 1) | {"lora": 41_472}
    times = {"machine": "here", "params": 9, "methods": {"lotr": {"ratio": 1.25, "quartiles": "1.2 to 1.3"}}}
    lines = load["family_table"].table(records, times, least)
    mean, low, high, *_ = mean_interval(values)
    assert cells(lines, "lotr")[-4:] == [
        "not run",
        f"{100 * mean:.1f} ± {50 * (high - low):.1f}",
        "not run",
        "1.25 (1.2 to 1.3)",
    ]
    assert cells(lines, "lora")[-4:] == ["-", "not run", "70.0 (one seed)", "not measured"]
    assert cells(lines, "tenslora_att")[-4:-1] == ["not run"] * 3
    assert len(lines) == 2 + len(METHODS) + 2


def test_the_columns_are_the_budgets_of_the_experiment(load: Load) -> None:
    (experiment,) = find_experiments("sentences")
    head = load["family_table"].table([], {}, dict.fromkeys(METHODS, 1))[0]
    assert [f"{budget:,}" in head for budget in experiment.scales["small"].budgets] == [True] * 3


def test_the_readme_has_a_place_for_it(load: Load, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text((BENCHMARKS.parent / "README.md").read_text("utf-8"), encoding="utf-8")
    load["run"].fill(page, load["family_table"].SECTION, ["one", "two"])
    assert "<!-- family -->\none\ntwo\n<!-- end of family -->" in page.read_text("utf-8")


def test_the_benchmark_measures_every_system(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load["family"]
    monkeypatch.setattr(script, "SYSTEMS", {"lora": "LoRA", "lotr": "LoTR"})
    monkeypatch.setattr(script, "SIZE", 24)
    options = argparse.Namespace(layers=1, params=2_000, rows=2, tokens=3, rounds=2)
    found = json.loads(json.dumps(script.measured(options)))
    assert found["lora"]["ratio"] == 1
    assert found["lotr"]["ratio"] > 0
    assert all(0 < own["params"] <= 2_000 for own in found.values())
