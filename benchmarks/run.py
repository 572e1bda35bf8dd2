"""Run the benchmarks, write their tables to `results/`, and say which bars are met.

    python benchmarks/run.py --all                 # every script but auto_ranks and family_table
    python benchmarks/run.py --all --quick --readme  # small sizes, into a folder of its own: does it all run?
    python benchmarks/run.py layer generator       # these only
    python benchmarks/run.py --all --json          # the records on stdout as one JSON document
    python benchmarks/run.py --readme              # rewrite the README's figures and bars, and docs/cost.md

A table is what a script prints; a record is one of its rows by column. Nothing is judged but the bars below.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from common.chart import chart
from common.figures import cell, figures

HERE = Path(__file__).parent
README, COST = HERE.parent / "README.md", HERE.parent / "docs" / "cost.md"
SMALL_GPT2 = ("--layers", "12", "--rows", "4", "--tokens", "256", "--rounds", "5")
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "layer": {"layer": (), "layer_7b_up": ("--outputs", "11008", "--rounds", "7")},
    "peft_step": {"peft_step": SMALL_GPT2},
    "tt_svd": {"tt_svd": ("--size", "24")},
}
"""Arguments by name of the table, where it is not the script's own with its defaults."""

BY_NAME = ("auto_ranks", "family_table")
"""What takes longer than all the rest, and what reads records of experiments: run where named."""

FEW = ("--rounds", "2")
QUICK = {
    "batching": ("--layers", "2", *FEW),
    "conversion": ("--layers", "1", "--method", "tensorguide"),
    "cost": FEW,
    "factorised": ("--features", "1024", *FEW),
    "family": ("--layers", "2", *FEW),
    "generator": FEW,
    "gpu": ("--device", "cpu", "--tiny", *FEW),
    "growth": FEW,
    "import_time": ("--runs", "1"),
    "jacobian": ("--repeats", "1"),
    "layer": ("--inputs", "256", "--outputs", "256", *FEW),
    "ntk": ("--repeats", "1"),
    "peft_step": ("--layers", "1", "--tokens", "16", *FEW),
    "rounding": ("--repeats", "1"),
    "scale": ("--layers", "1"),
    "tt_svd": ("--size", "16", "--repeats", "1"),
}
"""Arguments that make a script small; its figures then mean nothing."""


@dataclass(frozen=True)
class Bar:
    """A ratio that one row of a table must keep: at most, or at least, a limit.

    Attributes:
        script: Whose table.
        row: Texts that all occur in the row.
        column: Column of the ratio.
        limit: Its limit.
        most: Whether the limit is an upper one.
    """

    script: str
    row: tuple[str, ...]
    column: str
    limit: float
    most: bool = True

    def found(self, records: list[dict[str, str]]) -> float | None:
        """The ratio, where the table has the row."""
        found = cell(records, self.row, self.column)
        return None if found is None else float(re.findall(r"[\d.]+", found)[0])

    def line(self, ratio: float | None) -> str:
        """A row of the table of bars."""
        bar = f"{'at most' if self.most else 'at least'} {self.limit:g}"
        found, verdict = "", "not measured"
        if ratio is not None:
            found = f"{ratio:g}"
            verdict = "met" if (ratio <= self.limit if self.most else ratio >= self.limit) else "missed"
        return f"| {' | '.join((', '.join(self.row), bar, found, verdict, f'`{self.script}`'))} |"


STEP, DECODED = "training step", "16 tokens decoded"
GENERATED = "start published: forward"
BARS = (
    Bar("layer", ("layer, forward and backward", "TensorGuide"), "times LoRA's", 1.10),
    Bar("layer", ("layer, one token", "TensorGuide"), "times LoRA's", 1.02),
    Bar("layer", ("adapter alone, forward and backward, tltorch / ours",), "times LoRA's", 5, most=False),
    Bar("layer_7b_up", ("layer, forward and backward", "TensorGuide"), "times LoRA's", 1.10),
    Bar("peft_step", (STEP, "TensorGuide"), "times LoRA's", 1.10),
    Bar("peft_step", (STEP, "TensorGuide, shared"), "times LoRA's", 1.10),
    Bar("peft_step", (DECODED, "TensorGuide"), "times LoRA's", 1.02),
    Bar("peft_step", ("peak memory", "TensorGuide"), "times LoRA's", 1.05),
    Bar("generator", (f"{GENERATED} and backward, against einsum",), "other / ours", 3, most=False),
    Bar("generator", (f"{GENERATED}, against filling",), "ours / other", 12),
    Bar("gpu", (f"{STEP}, autocast bfloat16", "TensorGuide"), "ratio", 1.03),
    Bar("gpu", (f"{STEP}, autocast float16", "TensorGuide"), "ratio", 1.03),
    Bar("gpu", ("generation of 224 sites, forward", "together, a CUDA graph"), "ms", 0.3),
    Bar("gpu", (f"{DECODED}, autocast bfloat16", "TensorGuide"), "ratio", 1.02),
)
"""Those of ``gpu`` need one; elsewhere they say that they were not measured."""


def scripts() -> list[str]:
    """All benchmarks but this one."""
    return sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__))


def rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of every Markdown table in a text, by column."""
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if not head:
            head = cells
        elif not set(line) <= set("|-: "):
            yield dict(zip(head, cells, strict=False))


def machine() -> str:
    """What the tables were made on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, {versions}"


def variants(script: str, results: Path, *, quick: bool) -> dict[str, tuple[str, ...]]:
    """The arguments of a script by the name of the table."""
    if quick:
        return {script: QUICK.get(script, ())}
    files = {
        "growth": ("--plot", str(results / "growth.png")),
        "family": ("--json", str(results / "family.json")),
    }
    return VARIANTS.get(script, {script: files.get(script, ())})


def run(script: str, results: Path, *, quick: bool) -> bool:
    """Run one script, write its tables and charts; whether it succeeded."""
    for name, arguments in variants(script, results, quick=quick).items():
        command = [sys.executable, "-W", "ignore", str(HERE / f"{script}.py"), *arguments]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return False
        sys.stderr.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
        heading = f"# {name}\n\nMade by `python benchmarks/run.py {script}` on {machine()}.\n\n"
        (results / f"{name}.md").write_text(heading + done.stdout, encoding="utf-8")
        chart(list(rows(done.stdout)), results / f"{name}.png")
    return True


def records(results: Path) -> dict[str, list[dict[str, str]]]:
    """What the tables hold, by script."""
    return {path.stem: list(rows(path.read_text("utf-8"))) for path in sorted(results.glob("*.md"))}


def bars(results: Path) -> list[str]:
    """The table of bars, as far as the tables are there."""
    known = records(results)
    head = ["| what | bar | measured | | table |", "|---|---|---|---|---|"]
    return head + [bar.line(bar.found(known.get(bar.script, []))) for bar in BARS]


def fill(page: Path, name: str, lines: list[str]) -> None:
    """Put these lines between the two comments of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = "\n".join([begin, *lines, end])
    text = re.sub(f"{begin}.*{end}", lambda _: section, page.read_text("utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def main() -> int:
    """Number of scripts that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(scripts())}")
    parser.add_argument("--all", action="store_true", help=f"all of them but {', '.join(BY_NAME)}")
    parser.add_argument("--json", action="store_true", help="print the records of all tables")
    parser.add_argument("--readme", action="store_true", help="rewrite the section of the README")
    parser.add_argument("--quick", action="store_true", help="small sizes, and nothing of ours is changed")
    options = parser.parse_args()
    wanted = [name for name in scripts() if name not in BY_NAME] if options.all else options.names
    if not set(wanted) <= set(scripts()):
        parser.error(f"no such benchmark: {', '.join(sorted(set(wanted) - set(scripts())))}")
    results, readme, cost = HERE / "results", README, COST
    if options.quick:
        results = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        readme, cost = (Path(shutil.copy(page, results / f"{page.stem}.txt")) for page in (README, COST))
    results.mkdir(exist_ok=True)
    failed = [name for name in wanted if not run(name, results, quick=options.quick)]
    if options.readme:
        fill(readme, "benchmarks", bars(results))
        fill(readme, "figures", figures(records(results)))
        if (results / "cost.md").exists():
            fill(cost, "cost", (results / "cost.md").read_text("utf-8").splitlines()[2:])
    print(json.dumps(records(results), indent=2) if options.json else "\n".join(bars(results)))
    if options.quick:
        sys.stderr.write(f"quick tables, which mean nothing: {results}\n")
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
