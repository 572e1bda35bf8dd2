"""The README's figures and bars are cells of the tables in `benchmarks/results`, and nothing else."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def run() -> Iterator[ModuleType]:
    """The script that writes the README, with its folder on the path."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("run")
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name == "run" or name.partition(".")[0] == "common"]:
        del sys.modules[name]


def section(name: str) -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- end of {name} -->")[0].splitlines()


def test_the_readme_has_what_the_tables_have(run: ModuleType) -> None:
    """Whoever reruns a benchmark and forgets the README, or corrects a number by hand, fails here."""
    assert section("figures") == run.figures(run.records(BENCHMARKS / "results"))
    assert section("benchmarks") == run.bars(BENCHMARKS / "results")


def test_every_figure_names_a_benchmark(run: ModuleType) -> None:
    figures = importlib.import_module("common.figures").FIGURES
    assert {figure.script for figure in figures} <= set(run.scripts())
    assert all(figure.text.count("{}") == len(figure.cells) for figure in figures)


def test_a_figure_is_made_of_its_cells(run: ModuleType) -> None:
    figure = importlib.import_module("common.figures").Figure(
        "fast?", "some", "{} of {}", ((("a",), "time"), (("a", "b"), "size")), "--long"
    )
    rows = [
        {"what": "a", "how": "c", "time": "1 s", "size": "2"},
        {"what": "a", "how": "b", "time": "3 s", "size": "4"},
    ]
    assert figure.line({"some": rows}) == "| fast? | 1 s of 4 | `python benchmarks/some.py --long` |"
    assert figure.line({"some": rows[:1]}) == "| fast? | not measured | `python benchmarks/some.py --long` |"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.2, "missed"), (1.1, "met"), (None, "not measured")])
def test_a_bar_says_what_was_found(run: ModuleType, ratio: float | None, verdict: str) -> None:
    bar = run.Bar("some", ("a",), "ratio", 1.1)
    rows = [] if ratio is None else [{"what": "a", "ratio": f"{ratio} of it"}]
    assert bar.found(rows) == ratio
    assert f"| at most 1.1 | {'' if ratio is None else ratio} | {verdict} |" in bar.line(ratio)
